"""How far one draw of a finite network lies from its prediction.

Let M be the mean of x² over the entries of a tensor in one draw. Two things make it vary.

*Locally*: the tensor has finitely many, correlated entries. With Q the second moments of x² by pair
class, Var M / (E M)² = Σ_s m(s)·(Q_s − M_s M_s′)/(N·E M)², m(s) the number of pairs in class s. For normal
entries of correlation ρ that is the mean of 2ρ² over all pairs (2/n for one sample of n features, more for
samples that resemble each other); for relu of normals it is 5/n, the constant of Hanin & Nica 2018.

*By scale*: everything behind a tensor grows and shrinks with it. Each local deviation ε_k is a source; a
tensor carries how its logarithm answers, Σ_k c_k ε_k. Products and contractions add the answers of their
inputs; a sum weighs them by the inputs' shares (so a residual stream is followed through its branches); a
pointwise function multiplies them by its elasticity E[φ φ′ x]/E[φ²]; a norm forgets them, and its inverse
scale carries them into the backward pass with a minus.

The standard deviation of ln RMS is ½·√(Σ c_k² + local). Asymptotic in the widths (first order in 1/n);
sources are taken as independent and normal. Scatter is overestimated where entries are mixed without new
randomness.

Reference: Hanin & Nica 2018 (products of random matrices in finite networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod, sqrt
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import latents
from isometry.moments import record as rec
from isometry.moments.axes import Array, Axis
from isometry.moments.record import Factor, Moments, Term

KEPT = 96  # sources followed per tensor; the smallest are merged into one
_ids = count(1)

_MIXES = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "linear",
    "convolution",
    "conv",
    "mv",
    "dot",
    "sum",
    "mean",
    "embedding",
)
_NORMS = ("native_layer_norm", "native_batch_norm", "native_group_norm", "instance_norm", "_fused_rms_norm")
_REORDERS = (
    "t",
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
    "expand",
    "clone",
    "detach",
    "alias",
    "view",
)
_RESETS = ("_softmax", "_safe_softmax", "_log_softmax", "bernoulli", "bernoulli_", "normal_", "uniform_")


@dataclass
class Scale:
    """How a tensor's ln M answers to the sources, and whether a norm has pinned its own M."""

    answers: dict[int, float] = field(default_factory=dict)
    pinned: bool = False
    source: int = field(default_factory=lambda: next(_ids))


class Spread:
    """The scales of all records of one run. Records without one (parameters, known values) do not vary."""

    def __init__(self) -> None:
        self._scales: WeakKeyDictionary[Moments, Scale] = WeakKeyDictionary()
        self._locals: WeakKeyDictionary[Moments, float] = WeakKeyDictionary()
        self._sources: WeakKeyDictionary[Moments, Moments] = WeakKeyDictionary()

    def begin(self, m: Moments) -> None:
        """Let a record vary: an input that is drawn, a gradient that is seeded."""
        self._scales[m] = Scale()

    def scatter(self, m: Moments) -> float | None:
        """Return the standard deviation of ln RMS over draws; None where nothing is known to vary."""
        scale = self._scales.get(m)
        if scale is None:
            return None
        own = 0.0 if scale.pinned else self.local(m)
        return 0.5 * sqrt(sum(c * c for c in scale.answers.values()) + own)

    def local(self, m: Moments) -> float:
        """Return the relative variance of the mean square of a record's entries at a given scale."""
        if m not in self._locals:
            whole = self._sources.get(m)
            self._locals[m] = local_variance(m) if whole is None else self.local(whole)
        return self._locals[m]

    def follow(self, op: str, arguments: Any, results: Sequence[Any]) -> None:
        """Give an operation's outputs their scales."""
        inputs = _records(arguments)
        varying = [m for m in inputs if m in self._scales]
        mixes = op.startswith(_MIXES)
        for position, out in enumerate(results):
            if not isinstance(out, Moments) or out in self._scales or not (varying or mixes):
                continue
            if op.endswith(("_backward", "_backward_data")):
                made = self._backward(op, inputs, position)
            elif op.startswith(_NORMS):
                made = self._normed(varying, position)
            elif mixes:
                made = _summed([self._as_source(m) for m in varying])
            elif op in _RESETS:
                made = Scale()
            elif op in ("add", "sub", "rsub", "cat", "stack", "where"):
                made = self._shared(inputs, out)
            elif len(inputs) == 1:
                made = self._through(op, varying[0], out)
            else:
                made = _summed([self._scales[m] for m in varying])
                made.pinned = len(varying) == 1 and self._scales[varying[0]].pinned
            self._scales[out] = _pruned(made)

    def _as_source(self, m: Moments) -> Scale:
        """A tensor's whole deviation, its local one as a source of its own."""
        scale = self._scales[m]
        own = 0.0 if scale.pinned else self.local(m)
        return Scale({**scale.answers, scale.source: scale.answers.get(scale.source, 0.0) + sqrt(own)})

    def _backward(self, op: str, inputs: list[Moments], position: int) -> Scale:
        """A gradient answers as the one it comes from, behind a norm also to the inverse input's scale.

        Slopes of activations are taken as independent of scale: exact for relu and its like.
        """
        gradient, *others = [self._as_source(m) if m in self._scales else Scale() for m in inputs[:2]]
        if others and op.startswith(_NORMS) and position == 0:
            return _summed([gradient, Scale({k: -c for k, c in others[0].answers.items()})])
        if others and op.startswith("convolution") and position == 1:
            return _summed([gradient, *others])
        if op.startswith("convolution") or not inputs or inputs[0] not in self._scales:
            return gradient
        return Scale(dict(self._scales[inputs[0]].answers))

    def _normed(self, varying: list[Moments], position: int) -> Scale:
        if position == 0 or not varying:
            return Scale(pinned=True)
        whole = self._as_source(varying[0]).answers
        return Scale({k: -c for k, c in whole.items()}, pinned=True)

    def _shared(self, inputs: list[Moments], out: Moments) -> Scale:
        """A sum: E[out²] answers to each part by its share, (E[a²] + E[ab])/E[out²] for two parts."""
        squares = [_total(m) * _size(out) / max(_size(m), 1) for m in inputs]
        whole = _total(out) if len(inputs) == 2 else sum(squares)
        if whole <= 0:
            return Scale()
        cross = (whole - sum(squares)) / 2.0 if len(inputs) == 2 else 0.0
        answers: dict[int, float] = {}
        for m, square in zip(inputs, squares, strict=True):
            if m in self._scales:
                for k, c in self._scales[m].answers.items():
                    answers[k] = answers.get(k, 0.0) + c * (square + cross) / whole
        return Scale(answers)

    def _through(self, op: str, m: Moments, out: Moments) -> Scale:
        """A function of one tensor: a view, a copy, or a pointwise function by its elasticity."""
        scale = self._scales[m]
        by = elasticity(m, out)
        if op in _REORDERS or out.table is m.table:
            self._sources[out] = m
        if by == 1.0:
            return Scale(scale.answers, scale.pinned, scale.source)
        return Scale({k: by * c for k, c in scale.answers.items()})


def _summed(scales: list[Scale]) -> Scale:
    answers = dict(scales[0].answers) if scales else {}
    for scale in scales[1:]:
        for k, c in scale.answers.items():
            answers[k] = answers.get(k, 0.0) + c
    return Scale(answers)


def _pruned(scale: Scale) -> Scale:
    if len(scale.answers) > KEPT:
        ordered = sorted(scale.answers.items(), key=lambda item: -abs(item[1]))
        rest = sqrt(sum(c * c for _, c in ordered[KEPT // 2 :]))
        scale.answers = {**dict(ordered[: KEPT // 2]), next(_ids): rest}
    return scale


def _records(tree: Any) -> list[Moments]:
    if isinstance(tree, Moments):
        return [tree]
    if isinstance(tree, list | tuple):
        return [m for item in tree if not isinstance(item, int | float) for m in _records(item)]
    if isinstance(tree, dict):
        return _records(list(tree.values())) if tree else []
    return [tree.random] if hasattr(tree, "random") else []  # scores with a known mask beside them


def _size(m: Moments) -> float:
    return float(prod(m.shape))


def _total(m: Moments) -> float:
    return rec.average(m.square, m.axes) * _size(m)


# --- figures of one record ----------------------------------------------------------------------------------


def local_variance(m: Moments) -> float:
    """Return Var M/(E M)² for M the mean square over the entries of a record, by pairs; see the module."""
    size, square = _size(m), rec.average(m.square, m.axes)
    if not size or not 1e-280 < square < 1e280:  # nothing there, or nothing that could be squared
        return 0.0
    if not 1e-60 < square < 1e60:
        m, square = _of_size_one(m, square), 1.0
    if len(m.terms) == 1 and not _normal(m.terms[0]):
        total = _pair_total(_squares(m.terms[0], m) - _product(m), m)
    elif not m.mean.any():
        total = _pair_total(2.0 * m.table**2, m)
    else:  # normal entries, or taken as such
        square_of_mean = rec.outer(m.mean, m.mean, m.axes)
        centred = m.table - square_of_mean
        total = _pair_total(2.0 * centred**2 + 4.0 * square_of_mean * centred, m)
    return max(total / (size * square) ** 2, 0.0)


def _of_size_one(m: Moments, square: float) -> Moments:
    """Return a record divided by its RMS, its factors by theirs, so that their squares can be squared."""
    terms = []
    for term in m.terms:
        coef, factors = term.coef * square**-0.5, []
        for f in term.factors:
            size = float(f.square.max()) ** 0.5 or 1.0
            coef = coef * size
            factors.append(replace(f, values=f.values / size, table=f.table / size**2))
        terms.append(Term(coef, tuple(factors)))
    return Moments(m.dims, tuple(terms), m.table / square, m.mean * square**-0.5)


_PROBES = np.array([7, 100, 191, 250, 371])  # nodes at which a line is told from a curve


def _normal(term: Term) -> bool:
    """Whether a term is a linear function of one latent."""
    return len(term.factors) == 1 and _line(term.factors[0].values) is not None


def _line(values: Array) -> tuple[Array, Array] | None:
    """Return mean and slope, by block, of a linear function of a latent; None for a curve."""
    z, y = latents.NODES[_PROBES], values[..., _PROBES]
    slope = (y[..., -1:] - y[..., :1]) / (z[-1] - z[0])
    rest = y - y[..., :1] - slope * (z - z[0])
    if np.abs(rest).max() > 1e-9 * max(float(np.abs(slope).max()), 1e-300):
        return None
    return y[..., 0] - slope[..., 0] * z[0], slope[..., 0]


def _squares(term: Term, m: Moments) -> Array:
    """E[x² x′²] by pair class of a product of independent factors."""
    result = rec.outer(term.coef**2, term.coef**2, m.axes)
    for f in term.factors:
        result = result * _squares_of_factor(f, m.axes)
    return result


def _squares_of_factor(f: Factor, axes: tuple[Axis, ...]) -> Array:
    """E[f² f′²] by pair class: (μ² + σ²)(μ′² + σ′²) + 2σ²σ′²ρ² + 4μμ′σσ′ρ for a normal variable."""
    line = _line(f.values)
    if line is None:
        values = f.values**2
        return rec.dual(values, values, f.rho, axes)
    mean, std = line
    square, covariance = mean**2 + std**2, rec.outer(std, std, axes) * f.rho
    result = rec.outer(square, square, axes) + 2.0 * covariance**2
    return result + 4.0 * rec.outer(mean, mean, axes) * covariance if mean.any() else result


def _product(m: Moments) -> Array:
    """E[x²]·E[x′²] by pair class."""
    return rec.outer(m.square, m.square, m.axes)


def _pair_total(table: Array, m: Moments) -> float:
    """The sum of a pair array over all pairs of entries."""
    for axis in reversed(m.axes):
        counts = ax.pair_counts(axis)
        table = table[..., 0] * float(ax.size(axis)) ** 2 if table.shape[-1] == 1 else table @ counts
    return float(table)


def elasticity(m: Moments, out: Moments) -> float:
    """Return d ln E[out²]/d ln E[m²] when the input's scale changes: E[φ φ′ x]/E[φ²] on the node values.

    1 for views and for whatever is no function of one latent.
    """
    if (
        len(m.terms) != 1
        or len(out.terms) != 1
        or len(m.terms[0].factors) != 1
        or len(out.terms[0].factors) != 1
    ):
        return 1.0
    (f,), (g,) = m.terms[0].factors, out.terms[0].factors
    if f.key != g.key or f.values is g.values:  # a view changes the labels or keeps the values
        return 1.0
    x, y = _row(f.values), _row(g.values)
    if np.array_equal(x, y):
        return 1.0
    dx, dy = np.gradient(x, latents.NODES), np.gradient(y, latents.NODES)
    moves = np.abs(dx) > 1e-9 * np.abs(dx).max(initial=0.0)
    slope = np.divide(dy, dx, out=np.zeros_like(dy), where=moves)
    return float(latents.mean(y * slope * x) / max(float(latents.mean(y * y)), 1e-300))


def _row(values: Array) -> Array:
    """One block's node values, the first; blocks differ little in their elasticity."""
    return np.asarray(values.reshape(-1, values.shape[-1])[0])
