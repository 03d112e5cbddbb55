"""How does the cost grow with the number of groups?

The study is `koopcore.lab.studies.groups`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_groups.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.groups import STUDY


def test_groups(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
