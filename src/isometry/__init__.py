"""Initial weights that keep the signal alive."""

from isometry.gain import gain
from isometry.measure import measure
from isometry.profile import Profile, Signal, Stats

__all__ = ["Profile", "Signal", "Stats", "gain", "measure"]
