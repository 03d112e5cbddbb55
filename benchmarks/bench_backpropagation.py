"""How many training steps does a prediction cost: when is a predicted step the cheaper one?

The study is `koopcore.lab.studies.backpropagation`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_backpropagation.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.backpropagation import STUDY


def test_backpropagation(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
