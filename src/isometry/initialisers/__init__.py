"""Initialisers of whole models, for `model.apply(...)` or a direct call."""

from isometry.initialisers.assignment import Assignment
from isometry.initialisers.base import Initialiser
from isometry.initialisers.named import (
    DeltaOrthogonal,
    Kaiming,
    LeCun,
    Mirrored,
    Orthogonal,
    StandardNormal,
    VarianceScaling,
    Xavier,
)

__all__ = [
    "Assignment",
    "DeltaOrthogonal",
    "Initialiser",
    "Kaiming",
    "LeCun",
    "Mirrored",
    "Orthogonal",
    "StandardNormal",
    "VarianceScaling",
    "Xavier",
]
