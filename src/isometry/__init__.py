"""Initial weights that keep the signal alive."""

from isometry.gain import gain

__all__ = ["gain"]
