"""What does recording a snapshot cost, beside copying as many bytes?

The study is `koopcore.studies.capture`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_recording.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.studies.capture import STUDY
from koopcore.studies.study import Case, Row


def test_capture(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
