"""The same weights everywhere: draws that depend on seed, name, index and distribution alone."""

from isometry.sampling.distributions import (
    Constant,
    Distribution,
    Elementwise,
    Normal,
    TruncatedNormal,
    Uniform,
    Whole,
)
from isometry.sampling.fill import fill_, fill_keyed_
from isometry.sampling.marks import incomplete
from isometry.sampling.materialise import materialize_
from isometry.sampling.matrices import haar
from isometry.sampling.write import write_

__all__ = [
    "Constant",
    "Distribution",
    "Elementwise",
    "Normal",
    "TruncatedNormal",
    "Uniform",
    "Whole",
    "fill_",
    "fill_keyed_",
    "haar",
    "incomplete",
    "materialize_",
    "write_",
]
