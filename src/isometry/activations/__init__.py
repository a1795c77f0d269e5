"""What an activation is: names, modules and functions resolved to pointwise maps."""

from isometry.activations.resolving import Activation, ActivationLike, resolve

__all__ = ["Activation", "ActivationLike", "resolve"]
