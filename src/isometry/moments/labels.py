"""Labels under views: which entries of which variable a tensor holds once a part of it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isometry.moments.record import Factor, Fused, Gram, Joined, Label, Loose, Run


def renamed(labels: Sequence[Label], latent: object, position: int, index: int) -> object:
    """Return the identity of a latent of which one entry along an axis is selected."""
    label = labels[position]
    if label is None or isinstance(latent, Loose):
        return latent
    if isinstance(latent, Gram):
        return latent._replace(origin=(latent.origin, label, index))
    return latent, label, index


def unjoined(factor: Factor, size: int, position: int) -> Factor:
    """Return a stretch (of `size` along an axis) of tensors side by side as the part's own variable.

    As it is where the stretch reaches beyond one part.
    """
    joined, label = factor.latent, factor.labels[position]
    if not isinstance(joined, Joined) or not isinstance(label, Run) or label.base != joined.axis:
        return factor
    last = label.offset + label.stride * (size - 1)
    for start, stop, latent, labels in joined.pieces:
        if start <= label.offset and last < stop:
            own = replace_at(factor.labels, position, label._replace(offset=label.offset - start))
            found = [_through(x, labels) for x in own]
            known = tuple(x for x in found if not isinstance(x, str))
            if len(known) == len(found):
                return replace(factor, latent=latent, labels=known)
    return factor


def replace_at(labels: tuple[Label, ...], position: int, label: Label) -> tuple[Label, ...]:
    """Return the labels with one exchanged."""
    return (*labels[:position], label, *labels[position + 1 :])


def _through(label: Label, labels: tuple[Label, ...]) -> Label | str:
    """Return along which axis of a part a label of the joined latent runs; "none" where along none."""
    if label is None:
        return None
    if isinstance(label, Fused):
        high, low = _through(label.high, labels), _through(label.low, labels)
        return "none" if isinstance(high, str) or isinstance(low, str) else Fused(high, low, label.inner)
    if not isinstance(label.base, int):
        return "none"
    own = labels[label.base]
    if own is None or label[1:] == (1, 0):
        return own
    if isinstance(own, Fused):
        return "none"
    return Run(own.base, own.stride * label.stride, own.offset + own.stride * label.offset)
