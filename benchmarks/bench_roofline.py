"""How near does each stage of the engine come to what the machine can do?

The study is `koopcore.lab.studies.roofline`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_roofline.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.roofline import STUDY


def test_roofline(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
