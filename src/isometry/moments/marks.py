"""Marks: what a record knows that its table cannot hold, such as how the sizes of its channels scatter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

import numpy as np

from isometry.moments.record import (
    Across,
    Along,
    Apart,
    Fan,
    Moments,
    Normed,
    Part,
    Run,
    Shortened,
    Steep,
    Term,
    Tilted,
    Uneven,
)

T = TypeVar("T", Fan, Normed, Steep, Across, Shortened, Along)


def marked(
    m: Moments,
    mark: Fan | Normed | Steep | Across | Apart | Uneven | Tilted | Shortened | Along | None,
    along: Collection[int] = (),
) -> Moments:
    """Return a record of one term whose last factor carries a mark, in place of another of its kind.

    It has labels along the axes given.
    """
    (term,) = m.terms
    if mark is None or not term.factors:
        return m
    *before, last = term.factors
    others = [p for p in last.parts if not isinstance(p.latent, type(mark))]
    labels = tuple(Run(k, 1, 0) if k in along else None for k in range(len(m.axes)))
    part = Part(mark, labels, (), np.zeros([1] * (len(m.axes) + 1)))
    return replace(m, terms=(Term(term.coef, (*before, replace(last, parts=(*others, part)))),))


def mark_of(m: Moments, kind: type[T]) -> T | None:
    """Return a record's mark of a kind; None where it has none, or is a sum."""
    if len(m.terms) != 1:
        return None
    parts = (p for f in m.terms[0].factors for p in f.parts)
    return next((p.latent for p in parts if isinstance(p.latent, kind)), None)
