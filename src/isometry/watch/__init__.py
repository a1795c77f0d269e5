"""Following the signal through the first training steps."""

from isometry.watch.history import Finding, History, Snapshot
from isometry.watch.watching import watch

__all__ = ["Finding", "History", "Snapshot", "watch"]
