"""Initial weights that keep the signal alive."""

from isometry.criticality import critical_line, critical_point, fixed_point
from isometry.gain import gain
from isometry.measure import measure
from isometry.profile import Profile, Signal, Stats

__all__ = ["Profile", "Signal", "Stats", "critical_line", "critical_point", "fixed_point", "gain", "measure"]
