"""How much memory do fit and predict take, beside the snapshots?

The study is `koopcore.lab.studies.memory`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_memory.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.memory import STUDY


def test_memory(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
