"""What does a second thread bring, and do torch's own threads get in the way?

The study is `koopcore.lab.studies.threads`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_threads.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.threads import STUDY


def test_threads(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
