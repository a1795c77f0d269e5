"""What a product knows of the variables that its factors were made from.

A product x = f(y)·g(z) is a function of a new latent, and E[x | z] is known at the nodes of z. Where z itself
was made from an earlier w (the next sum along a stream), E[x | w] is the mean of E[x | z] given w, as
`lineage.given` has it: so the slopes of a stream, multiplied with one another, know the sums of all blocks
behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from isometry.moments import latents, lineage, surfaces
from isometry.moments.axes import Array
from isometry.moments.record import Factor, Part

_CLOSE = 0.1  # an ancestor's share of what a factor is made of; those of less are forgotten
_MOST = 2  # ancestors


def parts_of_product(values: Array, known: Sequence[tuple[Factor, Array]]) -> tuple[Part, ...]:
    """Return the parts of a product, given by its values at the nodes.

    Args:
        values: The product as a function of its latent.
        known: Its factors, each with the product's expectation given the factor's variable.
    """
    own = [Part(f.latent, f.labels, (), surfaces.scores(values, given)) for f, given in known]
    behind = [replace(part, values=surfaces.scores(values, given)) for part, given in _through(known)]
    return (*own, *behind)


def _through(known: Sequence[tuple[Factor, Array]]) -> list[tuple[Part, Array]]:
    """Return E[x | y] for the closest ancestors y of variables z, from E[x | z] at their nodes.

    Exact where all that x has in common with y comes through z.
    """
    shares: dict[object, float] = {}
    found: dict[object, tuple[Part, Factor]] = {}
    for factor, given in known:
        size = np.maximum(factor.size_of_form**2, 1e-300)
        for key, part in factor.plain.items():
            share = float(np.mean(latents.mean(part.values**2) / size))
            if key not in {(*f.key, ()) for f, _ in known} and share > shares.get(key, _CLOSE):
                shares[key], found[key] = share, (part, replace(factor, values=given))
    ranked = sorted(found, key=lambda key: -shares[key])[:_MOST]
    closest = [found[key] for key in ranked]
    return [(part, lineage.given(f, part) + f.mean[..., None]) for part, f in closest]
