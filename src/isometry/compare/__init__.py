"""The same model from several initialisations: same data, same batches, same budget."""

from isometry.compare.comparison import Comparison, Entry
from isometry.compare.running import DEFAULT_INITS, Progress, compare

__all__ = ["DEFAULT_INITS", "Comparison", "Entry", "Progress", "compare"]
