"""How does the cost of an endpoint depend on the horizon T?

The study is `koopcore.lab.studies.horizon`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_horizon.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.horizon import STUDY


def test_horizon(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
