"""Initial weights that keep the signal alive."""
