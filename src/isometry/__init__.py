"""Initial weights that keep the signal alive."""

from isometry import datasets, init, sampling
from isometry.audit import Audit, audit
from isometry.compare import compare
from isometry.compare.comparison import Comparison
from isometry.criticality import critical_line, critical_point, fixed_point
from isometry.diagnosis import diagnose
from isometry.fans import Fans, fans, fans_of_tensor
from isometry.gain import gain
from isometry.initialisers import (
    DeltaOrthogonal,
    Kaiming,
    LeCun,
    Mirrored,
    Orthogonal,
    StandardNormal,
    VarianceScaling,
    Xavier,
)
from isometry.measure import measure
from isometry.planning import init_, plan
from isometry.plans import Plan
from isometry.predict import predict
from isometry.profile import Profile, Signal, Stats
from isometry.report import report
from isometry.sampling import materialize_
from isometry.scaling import Scaling, scaling
from isometry.watch import watch

__all__ = [
    "Audit",
    "Comparison",
    "DeltaOrthogonal",
    "Fans",
    "Kaiming",
    "LeCun",
    "Mirrored",
    "Orthogonal",
    "Plan",
    "Profile",
    "Scaling",
    "Signal",
    "StandardNormal",
    "Stats",
    "VarianceScaling",
    "Xavier",
    "audit",
    "compare",
    "critical_line",
    "critical_point",
    "datasets",
    "diagnose",
    "fans",
    "fans_of_tensor",
    "fixed_point",
    "gain",
    "init",
    "init_",
    "materialize_",
    "measure",
    "plan",
    "predict",
    "report",
    "sampling",
    "scaling",
    "watch",
]
