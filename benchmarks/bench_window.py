"""How does the cost grow with the window n?

The study is `koopcore.lab.studies.window`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_window.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.window import STUDY


def test_window(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
