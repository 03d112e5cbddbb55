"""What does recording a snapshot cost, beside copying as many bytes?

The study is `koopcore.lab.studies.capture`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_recording.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.capture import STUDY


def test_capture(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
