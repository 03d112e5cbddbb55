"""How long does the whole job take, snapshots in and one endpoint out, beside one read of memory?

The study is `koopcore.lab.studies.endpoint`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_one_read.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.endpoint import STUDY


def test_endpoint(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
