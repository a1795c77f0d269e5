"""Recipes: what each parameter is drawn from, decided from its role. Each file is a family of one idea."""

from isometry.recipes import (
    auto,
    defaults,
    isometric,
    lsuv,
    mimetic,
    mup,
    residual,
    special,
    spectral,
    standard,
    transformer,
)

__all__ = [
    "auto",
    "defaults",
    "isometric",
    "lsuv",
    "mimetic",
    "mup",
    "residual",
    "special",
    "spectral",
    "standard",
    "transformer",
]
