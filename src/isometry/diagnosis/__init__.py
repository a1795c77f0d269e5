"""What is wrong with an initialisation, why, and what mends it."""

from isometry.diagnosis.faults import Fault, diagnose, faults, sentences
from isometry.diagnosis.remedies import before_and_after

__all__ = ["Fault", "before_and_after", "diagnose", "faults", "sentences"]
