"""Dynamic mode decomposition for people with data: thousands of systems at once.

scikit-learn's conventions (rows are time), PyDMD's words; docs/dmd.md translates them.
"""

from koopcore.dmd.algebra.decomposition import STATUS
from koopcore.dmd.estimator import DMD, LowerRankWarning, UnstableForecastWarning
from koopcore.dmd.fixed_points import FixedPoint, fixed_point
from koopcore.dmd.optimized import OptimizedDMD
from koopcore.dmd.persistence import load, save
from koopcore.dmd.time_index import UnevenTimeWarning
from koopcore.dmd.windows import sliding

__all__ = [
    "DMD",
    "STATUS",
    "FixedPoint",
    "LowerRankWarning",
    "OptimizedDMD",
    "UnevenTimeWarning",
    "UnstableForecastWarning",
    "fixed_point",
    "load",
    "save",
    "sliding",
]
