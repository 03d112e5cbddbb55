"""How does the cost grow with the number of groups?

The study is `koopcore.studies.groups`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_groups.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.studies.groups import STUDY
from koopcore.studies.study import Case, Row


def test_groups(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
