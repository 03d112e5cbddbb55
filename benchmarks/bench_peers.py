"""How does koopcore compare with what one would use instead, in time and in prediction error?

The study is `koopcore.lab.studies.peers`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_peers.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.peers import STUDY


def test_peers(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
