"""Single entries along an axis of a latent, as views of that which lies there alone.

So is the gradient of a tensor that a loop takes step by step: a sum of what comes from each step, in its
place.
"""

from __future__ import annotations

import numpy as np

from isometry.moments import axes as ax
from isometry.moments.axes import Array
from isometry.moments.origins import Beside, Sum
from isometry.moments.places import View, composed, view

_WHOLE = 1e-4  # a weight that differs by less from 1 is 1


def resolved(x: View) -> View | None:
    """Return a view of one entry along an axis as one of that which lies there alone; None where zeros do."""
    if not any(isinstance(p, int) for p in x.places):
        return x
    key = ("resolved", x.places)
    if key not in x.latent.views:
        chain, last = [x], _step(x)
        while last is not None and last is not chain[-1]:
            chain.append(last)
            last = _step(last)
        for met in chain:
            met.latent.views["resolved", met.places] = last
    found: View | None = x.latent.views[key]
    return found


def _step(x: View) -> View | None:
    origin, places = x.latent.origin, x.places
    if ("resolved", places) in x.latent.views:
        found: View | None = x.latent.views["resolved", places]
        return found
    if isinstance(origin, Beside) and isinstance(places[origin.position], int):
        return _part_at(origin, x)
    if not isinstance(origin, Sum):
        return x
    there = [(w, v) for w, v in origin.parents if _at_pins(w, x).any()]
    inner = composed(there[0][1].places, places) if len(there) == 1 else None
    if inner is None or np.abs(_at_pins(there[0][0], x) - 1.0).max() > _WHOLE:
        return x
    return view(there[0][1].latent, inner)


def _at_pins(weight: Array, x: View) -> Array:
    """Return a block array at the entries that a view is of."""
    for j, place in enumerate(x.places):
        if isinstance(place, int) and weight.shape[j] > 1:
            block = int(np.searchsorted(np.cumsum(x.latent.axes[j]), place, side="right"))
            weight = weight.take([block], axis=j)
    return weight


def _part_at(origin: Beside, x: View) -> View | None:
    start, index = 0, x.places[origin.position]
    assert isinstance(index, int)
    for axes, part in origin.parts:
        stop = start + ax.size(axes[origin.position])
        if index < stop:
            if part is None:
                return None
            outside = (*x.places[: origin.position], index - start, *x.places[origin.position + 1 :])
            inner = composed(part.places, outside)
            return x if inner is None else view(part.latent, inner)
        start = stop
    return x
