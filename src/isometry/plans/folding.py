"""Fold the layers of a deep model that are alike into one, so that its table fits a screen."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from isometry.tables import compact

T = TypeVar("T")

_LONGEST_PERIOD = 8  # such as convolution, norm, activation, … in one nn.Sequential
# A number as it stands in a sentence, or an integer within a name: "0.5", but the 1 and the 0 of "c1.0.gain".
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\.?\w)|\d+")


@dataclass(frozen=True)
class Fold(Generic[T]):
    """Items that are shown as one.

    Attributes:
        label: Their common name, such as "layers.0…11.weight".
        items: The items, in order.
    """

    label: str
    items: tuple[T, ...]


@dataclass(frozen=True)
class _Entry(Generic[T]):
    parts: tuple[str, ...]
    items: tuple[T, ...]


def folded(items: Sequence[T], name: Callable[[T], str], alike: Callable[[T], Hashable]) -> list[Fold[T]]:
    """Fold neighbouring numbered layers whose items are alike, one by one.

    Args:
        items: What to fold, in the order of the model.
        name: The dotted name of an item.
        alike: A key that items must share to be folded.

    Returns:
        The folds, in order; most hold one item.

    Example:
        >>> names = [f"layers.{i}.{leaf}" for i in range(12) for leaf in ("weight", "bias")]
        >>> [fold.label for fold in folded(names, str, lambda name: name[-3:])]
        ['layers.0…11.weight', 'layers.0…11.bias']
    """
    entries = [_Entry(tuple(name(item).split(".")), (item,)) for item in items]
    return [Fold(".".join(entry.parts), entry.items) for entry in _fold(entries, 0, alike)]


def _fold(entries: list[_Entry[T]], depth: int, alike: Callable[[T], Hashable]) -> list[_Entry[T]]:
    """Fold from the inside out: first below each name at this depth, then neighbours with numbers."""
    blocks = []
    for part, block in groupby(entries, lambda entry: entry.parts[depth : depth + 1]):
        below = list(block)
        blocks.append((part, _fold(below, depth + 1, alike) if part else below))
    signs = [
        tuple((e.parts[depth + 1 :], len(e.items), alike(e.items[0])) for e in below)
        if _numbered(part)
        else None
        for part, below in blocks
    ]
    found: list[_Entry[T]] = []
    start = 0
    while start < len(blocks):
        period, times = _repeats(signs, start)
        for offset in range(period):
            layers = [blocks[start + offset + period * k] for k in range(times)]
            found += _joined(layers, depth)
        start += period * times
    return found


def _joined(layers: list[tuple[tuple[str, ...], list[_Entry[T]]]], depth: int) -> list[_Entry[T]]:
    """Layers that are alike as one."""
    (first, entries), (last, _) = layers[0], layers[-1]
    if len(layers) == 1:
        return entries
    part = f"{first[0]}…{last[0]}"
    return [
        _Entry(
            (*entry.parts[:depth], part, *entry.parts[depth + 1 :]),
            tuple(item for _, below in layers for item in below[index].items),
        )
        for index, entry in enumerate(entries)
    ]


def _numbered(part: tuple[str, ...]) -> bool:
    return bool(part) and part[0].isdecimal()


def _repeats(signs: Sequence[Hashable], start: int) -> tuple[int, int]:
    """The period and the number of repetitions that cover most from here; (1, 1) where nothing repeats."""
    best = (1, 1)
    for period in range(1, _LONGEST_PERIOD + 1):
        pattern = signs[start : start + period]
        if len(pattern) < period or None in pattern:
            break
        times = 1
        while signs[start + period * times : start + period * (times + 1)] == pattern:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def masked(text: str) -> str:
    """A text without its numbers, to tell whether two texts say the same of different numbers.

    Example:
        >>> masked("ends branch 3 of 24")
        'ends branch # of #'
    """
    return _NUMBER.sub("#", text)


def spanning(texts: Sequence[str]) -> str:
    """Texts that differ in numbers alone as one, with the first and the last of each number.

    Example:
        >>> spanning(["ends branch 1 of 3", "ends branch 2 of 3", "ends branch 3 of 3"])
        'ends branch 1…3 of 3'
        >>> spanning(["behind c1.0.gain, 0.25", "behind c1.1.gain, 0.5"])
        'behind c1.0…1.gain, 0.25…0.5'
    """
    numbers = [_NUMBER.findall(text) for text in texts]
    spans = iter(
        (column[0] if len(set(column)) == 1 else f"{column[0]}…{column[-1]}")
        for column in zip(*numbers, strict=True)
    )
    return _NUMBER.sub(lambda _: next(spans), texts[0])


def span(numbers: Sequence[float]) -> str:
    """The smallest and the largest of some numbers.

    Example:
        >>> span([0.5, 0.25]), span([1.0, 1.0])
        ('0.25…0.5', '1')
    """
    low, high = compact(min(numbers)), compact(max(numbers))
    return low if low == high else f"{low}…{high}"
