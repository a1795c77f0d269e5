"""How a rule is written: one decorated function per family of ATen operations.

    @rule("mm", accuracy="exact")
    def mm(ctx: Context, a: Moments, b: Moments) -> Moments:
        '''Matrix product. Assumes independent inputs; exact second moments, normal in the wide limit.'''
        return contract("mk,kn->mn", a, b)

A rule gets the operation's own arguments, tensors replaced by `Moments` (real values by their exact moments;
optional
tensors may be None), and returns a `Moments`, a `Concrete`, or a tuple of them where the operation has
several outputs (None for
an output that nobody reads). Arguments listed in `raw` come as they are: `Concrete`, `Shifted` or `Moments`.
A case that a
rule cannot treat raises `NoRule` with the reason; the result is then unknown, by name. A rule is for the
operation,
never for a model; its docstring says what it assumes, and `accuracy` whether it is exact, asymptotic or
approximate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isometry.moments.concrete import Concrete
from isometry.moments.record import Moments
from isometry.moments.symbolic import Known, Lazy

Accuracy = Literal["exact", "asymptotic", "approximate"]


class NoRule(Exception):  # noqa: N818  (a case, not a fault)
    """The rule cannot treat this case; the message says why."""


@dataclass(frozen=True)
class Unknown:
    """A value nobody can tell: which operation had no rule, in which module, and why."""

    op: str
    module: str
    reason: str


@dataclass(frozen=True, eq=False)
class Shifted:
    """A random tensor plus a known one that must not be read as variance.

    Attention scores and their mask or bias.
    """

    random: Moments
    shift: Known


Value = Moments | Concrete | Lazy | Shifted | Unknown


@dataclass
class Context:
    """What a rule may know about its call: the outputs' shapes, and where to note an approximation."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """The first output's shape."""
        return self.shapes[0]

    def masked(self, results: tuple[Any, ...], mask: Any) -> tuple[Any, ...]:
        """Return the gradients that a backward operation was asked for, as it leaves the others out."""
        if len(self.shapes) == len(results):
            return results
        return tuple(x for x, wanted in zip(results, mask, strict=True) if wanted)

    def note(self, text: str) -> None:
        """Name an approximation or assumption that this call used."""
        self.notes.append(text)


@dataclass(frozen=True)
class Rule:
    """A registered rule."""

    ops: tuple[str, ...]
    fn: Callable[..., Any]
    accuracy: Accuracy
    raw: tuple[int, ...]


RULES: dict[str, Rule] = {}


def rule(
    *ops: str, accuracy: Accuracy, raw: tuple[int, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the rule of the named operations (overload packets), and of in-place twins.

    Args:
        *ops: Names as in `torch.ops.aten`, without the overload; other namespaces as "namespace::name".
        accuracy: What the docstring says in words.
        raw: Positions of arguments that the rule wants as they are, not as moments.

    Returns:
        The decorator; it returns the function unchanged.

    Raises:
        ValueError: An operation has a rule already.
    """

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        made = Rule(ops, fn, accuracy, raw)
        for op in ops:
            if op in RULES:
                raise ValueError(f"{op} has two rules: {RULES[op].fn.__name__} and {fn.__name__}")
            RULES[op] = made
        return fn

    return register


def rule_of(name: str) -> Rule | None:
    """Return the rule of an operation, that of its twin for one in place; None where it has none."""
    return RULES.get(name) or (RULES.get(name[:-1]) if name.endswith("_") else None)


def check_numbers(result: Any) -> None:
    """Refuse records that are no numbers, as where infinities were taken from one another.

    Args:
        result: What a rule returned.

    Raises:
        NoRule: A record holds nan.
    """
    for made in result if isinstance(result, tuple | list) else [result]:
        if not isinstance(made, Moments) or math.isfinite(made.table.sum() + made.mean.sum()):
            continue
        if np.isnan(made.table).any() or np.isnan(made.mean).any():
            raise NoRule("its rule gave no number (nan)")
