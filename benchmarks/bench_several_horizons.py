"""What do several horizons cost beside one, and are trajectories written as fast as memory allows?

The study is `koopcore.lab.studies.several_horizons`; ``koopcore bench`` runs it too.

    pytest benchmarks/bench_several_horizons.py    # --benchmark-disable: each case once, untimed
"""

from __future__ import annotations

from typing import Any

from study_case import run_case

from koopcore.lab.bench.study import Case, Row
from koopcore.lab.studies.several_horizons import STUDY


def test_several_horizons(benchmark: Any, study_rows: list[Row], case: Case) -> None:
    run_case(benchmark, study_rows, STUDY, case)
