"""How does the cost depend on the group size m, for equally many parameters?

The study is `koopcore.lab.studies.group_size`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_group_size.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.group_size import STUDY


def test_group_size(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
