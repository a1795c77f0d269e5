"""Plans of initialisations: records that print, compare, save, load, change and apply."""

from isometry.plans.difference import Difference, PlanDiff
from isometry.plans.laws import register_law
from isometry.plans.plan import Plan
from isometry.plans.row import Row
from isometry.plans.scales import Scaled, scaled
from isometry.plans.sizes import mean_of, std_of

__all__ = [
    "Difference",
    "Plan",
    "PlanDiff",
    "Row",
    "Scaled",
    "mean_of",
    "register_law",
    "scaled",
    "std_of",
]
