"""How does the cost of fit and predict grow with the number of parameters P?

The study is `koopcore.lab.studies.parameters`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_parameters.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.parameters import STUDY


def test_parameters(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
