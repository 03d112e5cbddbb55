"""What does the partition cost, on equal parameters?

The study is `koopcore.lab.studies.partitions`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_partitions.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.partitions import STUDY


def test_partitions(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
