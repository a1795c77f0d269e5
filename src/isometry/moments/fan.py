"""Sums whose weights every channel has for itself, and their gradients behind a division by their size.

The channel y = Σ_k w_k x_k with independent weights has the mean square v = wᵀSw over a batch, where S holds
the mean products of x. With K weights of one law and d = (Σ S_kk)²/Σ S_kk′² directions,

    Var v/E[v]² = 2/d,       so that for normal weights       E[1/v]·E[v] ≈ d/(d − 2)

(exact where S is a multiple of the identity: d = K). Behind a batch norm the gradient at y therefore has a
larger square than 1/E[v] tells. The gradient at x is a sum of w/√v, and w is large where v is:

    E[|w|²/v]·E[v]/E[|w|²] ≈ d/(d − 2)·(1 − 2/K),

which is 1 for S a multiple of the identity: w/|w| has a fixed length. Weights of excess kurtosis κ add κ/2K
to 1/d, and have K/(1 + κ/2) in place of K: those of a uniform law scatter less. Their squares are taken as
beta variables of that kurtosis, w² ~ Beta(½, b) with κ = −6/(3 + 2b): b = 1 is the uniform law, b → ∞ the
normal one. With P(t) = E[exp(−t w²)]^K, E[1/|w|²] = ∫ P(t) dt, exactly. `Fan` marks such sums,
`Normed` their gradients. A weight that c_k of the outputs use counts by its share: K = (Σ c)²/Σ c².

S itself scatters where x is made of such sums: their inner products between samples follow those of what they
are sums of, so that 1/d of the one adds to that of the other. A function f of a sum hands on the share s² of
it, s = cov(f, sum)²/(var f · var sum), a window its mean over the window; in a sum of independent parts with
the shares s_i of the variance Σ s_i²/d_i adds.

Nor are the sums normal, for given weights. Their excess kurtosis is that of x times Σw⁴/(Σw²)², 3/(K + 2) on
average, and where |x|² varies from entry to entry, by a relative variance τ ("tail") that all channels share,
3τ. In turn the squares of K features of kurtosis κ + 3 vary by (κ + 2)/K. A function of a sum hands on τ by
its elasticity squared, which is 1 for relu.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from isometry.moments import latents, surfaces
from isometry.moments import record as rec
from isometry.moments.axes import Array
from isometry.moments.marks import mark_of
from isometry.moments.record import Factor, Fan, Moments, Normed, Term
from isometry.moments.taps import Window

_NONE = 1e-3  # a share that is as good as nothing
_LEAST = 2.5  # directions; with two or fewer 1/v has no mean
_MANY = 1e9  # directions; of more than these a size is fixed
_LEAST_KURTOSIS, _MOST_KURTOSIS = 0.02, 3.0  # less is taken as none; beyond, the expansion fails


def of_sum(terms: Sequence[Term]) -> Fan | None:
    """Return the fan of a sum of functions of marked sums; None where none is marked."""
    total, own, shared, tail, reach = 0.0, 0.0, 0.0, 0.0, 0.0
    for term in terms:
        means = term.coef**2
        for factor in term.factors:
            means = means * factor.mean**2
        total += float(np.mean(term.square - means))
        for factor in term.factors:
            mark = next((p.latent for p in factor.parts if isinstance(p.latent, Fan)), None)
            if mark is None:
                continue
            rest = replace(term, factors=tuple(f for f in term.factors if f is not factor)).square
            form = surfaces.form_of(factor)
            linear = factor.slope**2 * (latents.mean(form**2) - latents.mean(form) ** 2)
            known = float(np.mean(rest * linear)) ** 2
            own, shared = own + known / mark.directions, shared + known / mark.shared
            handed = float(np.mean(rest * _growth(factor))) ** 2 * mark.tail
            tail, reach = tail + handed, reach + handed * mark.reach
    if shared == 0.0:
        return None
    reach = reach / tail if tail > 0.0 else 1.0
    return Fan(math.inf, total**2 / own, total**2 / shared, tail / total**2, reach=reach)


def side_by_side(parts: Sequence[Moments], counts: Sequence[int]) -> Fan | None:
    """Return the fan of marked sums side by side; None where none is marked.

    A channel has the directions of its part. All channels together have more: with the shares q_i of the
    variance, Σ q_i²/d_i adds, as for a sum of independent parts.

    Args:
        parts: The parts, one factor each.
        counts: How many channels each has.
    """
    marks = [mark_of(part, Fan) for part in parts]
    powers = [n * float(np.mean(part.variance)) for part, n in zip(parts, counts, strict=True)]
    known = [(m, p, n) for m, p, n in zip(marks, powers, counts, strict=True) if m is not None]
    if not known or not sum(powers) > 0.0:
        return None
    shares = [(m, p / sum(powers), n / sum(counts)) for m, p, n in known]
    normed = min(m.normed for m, _, _ in known) if len(known) == len(parts) else 0
    own, shared = (
        sum(x) for x in zip(*[(n / m.directions, p**2 / m.shared) for m, p, n in shares], strict=True)
    )
    tail = sum(p**2 * m.tail for m, p, _ in shares)
    reach = sum(p**2 * m.tail * m.reach for m, p, _ in shares) / tail if tail > 0.0 else 1.0
    return Fan(math.inf, 1.0 / own, 1.0 / shared, tail, normed, reach)


def averaged(read: float, reach: float) -> float:
    """Return the variance that a mean over so many neighbours leaves of means over `reach` neighbours each.

    With a ≤ b of the two, the means of means have the variance (b − (a − 1/a)/3)/b² of an entry's.
    """
    a, b = sorted([max(read, 1.0), max(reach, 1.0)])
    return (b - (a - 1.0 / a) / 3.0) / b**2 * max(reach, 1.0)


def lasting(windows: Sequence[Window], reach: float) -> float:
    """Return the share that windows leave of the variance of means over `reach` neighbours."""
    return math.prod(averaged(w.terms, reach) for w in windows)


def scatter_of_power(m: Moments, offset: float) -> float:
    """Return how much the mean square of a function f of normed sums scatters between channels, relatively.

    The mean T of q(z) = (f(z) − offset·E f)² over the n entries z of a channel, which the norm made to have
    the mean 0 and the mean square 1: these three move together, so that

        n·Var T = Var(q − E[q′]·z − E[z q′]/2·z²),

    which is 0 for f = z. That the sizes of entries vary by the `tail` τ is taken as z·√(1 ± √τ).
    """
    factor = m.only
    mark = mark_of(m, Fan)
    if factor is None or mark is None or not mark.normed:
        return 0.0
    z = surfaces.form_of(factor) + 0.0 * factor.values
    middle = float(latents.mean(rec.pooled(z, m.axes)))
    z = (z - middle) / max(float(latents.mean(rec.pooled((z - middle) ** 2, m.axes))), 1e-300) ** 0.5
    q = (factor.values - offset * rec.average(factor.mean, m.axes)) ** 2
    sizes = [(1.0 + sign * min(mark.tail, 0.9) ** 0.5) ** 0.5 for sign in (-1.0, 1.0)]
    spread = [(size * z, _stretched(q, z, size)) for size in sizes]

    def mean(*at: Array) -> float:
        return float(np.mean([latents.mean(rec.pooled(values, m.axes)) for values in at]))

    slope = mean(*[latents.derivative(f, x) for x, f in spread])
    growth = mean(*[x * latents.derivative(f, x) for x, f in spread])
    left = [f - slope * x - 0.5 * growth * x * x for x, f in spread]
    power = max(mean(*[f for _, f in spread]), 1e-300)
    return max(mean(*[f * f for f in left]) - mean(*left) ** 2, 0.0) / (power**2 * mark.normed)


def _stretched(values: Array, z: Array, size: float) -> Array:
    """Return a function of z, given where z is at the nodes, at size·z."""
    rows = zip(values.reshape(-1, values.shape[-1]), z.reshape(-1, z.shape[-1]), strict=True)
    made = [np.interp(size * at, at, row) for row, at in rows]
    return np.asarray(np.reshape(made, values.shape))


def growth(m: Moments) -> float:
    """Return the derivative of a variance's logarithm by that of the square of its latent's scale."""
    factor = m.only
    if factor is None:
        return 1.0
    whole = float(np.mean(factor.square - factor.mean**2))
    return float(np.mean(_growth(factor))) / whole if whole > 0.0 else 1.0


def sizes(tail: float) -> Array:
    """Return a gamma variable of mean 1 and this variance at the few nodes, by Wilson and Hilferty's root."""
    root = 1.0 - tail / 9.0 + latents.FEW_NODES * tail**0.5 / 3.0
    made = np.maximum(root, 1e-3) ** 3
    return np.asarray(made / float(made @ latents.FEW_WEIGHTS))


def _growth(factor: Factor) -> Array:
    """Return half the derivative of a variance by the logarithm of its latent's scale, by block."""
    form = surfaces.form_of(factor)
    form, values = np.broadcast_arrays(form - latents.mean(form)[..., None], factor.values)
    slope = latents.derivative(values, form)
    return latents.mean((values - factor.mean[..., None]) * slope * form)


def kurtosis(m: Moments) -> float:
    """Return the excess kurtosis of a record's entries, mean over blocks; 0 for several variables.

    Blocks that do not vary, as what pads a tensor, have none.
    """
    factor = m.only
    if factor is None:
        return 0.0
    squares = (factor.values - factor.mean[..., None]) ** 2
    square = latents.mean(squares)
    varies = square > 1e-24 * square.max()
    if not square.max() > 0:
        return 0.0
    return float(np.mean(latents.mean(squares**2)[varies] / square[varies] ** 2)) - 3.0


def with_tails(m: Moments, excess: float) -> Moments:
    """Return a normal record with the excess kurtosis given.

    By Cornish and Fisher's quantile function z + c(z³ − 3z), c = κ/24 for small κ, with the c of that κ.
    """
    (term,) = m.terms
    if not (term.factors and excess > _LEAST_KURTOSIS):
        return m
    (factor,) = term.factors
    form = _with_tails(float(np.interp(min(excess, _MOST_KURTOSIS), *_coefficients())))
    spread = np.sqrt(np.maximum(factor.square - factor.mean**2, 0.0))
    values = factor.mean[..., None] + spread[..., None] * form
    made = replace(factor, values=values, form=values)
    return replace(m, terms=(Term(term.coef, (made,)),))


def _with_tails(c: float) -> Array:
    """Return z + c(z³ − 3z), of variance 1, at the nodes."""
    z = latents.NODES
    return np.asarray((z + c * (z**3 - 3.0 * z)) / np.sqrt(1.0 + 6.0 * c * c))


@lru_cache(maxsize=1)
def _coefficients() -> tuple[Array, Array]:
    """Return excess kurtoses of z + c(z³ − 3z) and their c."""
    tried = np.linspace(0.0, 0.2, 201)
    return np.array([latents.mean(_with_tails(c) ** 4) - 3.0 for c in tried]), tried


def excess(fan: Fan, share: float) -> float:
    """Return E[1/(v + ε)]·E[v + ε] over the channels, where v has this share of v + ε on average.

    v is taken as |w|² times a gamma variable of the variance that 2/d leaves.
    """
    left = 1.0 / fan.directions - 1.0 / fan.weights
    apart = _excess(1.0 / left, share) if left > 1.0 / _MANY else 1.0
    return apart * _excess(fan.weights, share, fan.light)


@lru_cache(maxsize=256)
def _excess(directions: float, share: float, light: float = 0.0) -> float:
    """Return ∫ e^{−(1 − s)t} P(s·t) dt with P(t) = (1 + 2t/d)^{−d/2}, which is d/(d − 2) for s = 1.

    For lighter weights P is that of K = d·(2 + κ)/2 beta variables w² of mean 1; see the module.
    """
    directions = min(max(directions, _LEAST), _MANY)
    t = np.exp(np.linspace(-16.0, 14.0, 301))
    if light:
        count = directions * (2.0 - light) / 2.0
        own = count * np.log(_laplace(share * t / count, light))
    else:
        own = -0.5 * directions * np.log1p(2.0 * share * t / directions)
    return float(np.trapezoid(np.exp(own - (1.0 - share) * t) * t, np.log(t)))


def _laplace(t: Array, light: float) -> Array:
    """Return E[exp(−t w²)] of a symmetric w of variance 1 and kurtosis 3 − light, w² a beta variable."""
    squares, shares = _beta(light)
    return np.asarray(np.exp(-np.multiply.outer(t, squares)) @ shares)


@lru_cache(maxsize=16)
def _beta(light: float) -> tuple[Array, Array]:
    """Return nodes of w² and their weights: w² = (1 + 2b) sin² θ has the density cos^{2b−1} θ on (0, π/2)."""
    b = 3.0 / min(light, 2.0 - 1e-6) - 1.5
    x, weights = np.polynomial.legendre.leggauss(100)
    angle = np.pi / 4.0 * (x + 1.0)
    shares = np.cos(angle) ** (2.0 * b - 1.0) * weights
    return (1.0 + 2.0 * b) * np.sin(angle) ** 2, shares / shares.sum()


def kept(m: Moments) -> float:
    """Return the share of a gradient's square that weights pass on whose sums' sizes it was divided by.

    E[w²/(v + ε)]/(E[w²]·E[1/(v + ε)]) for v proportional to |w|², which is (1/X − 1 + s)/s for the share s of
    v in v + ε and X = E[1/(v + ε)]·E[v + ε]: 1 − 2/K without ε. What `of_slopes` took away for slopes that
    are steeper where v is large, large weights give back, and more.
    """
    mark = mark_of(m, Normed)
    if mark is None or mark.share < _NONE:
        return 1.0
    own = (1.0 / _excess(mark.weights, mark.share, mark.light) - 1.0 + mark.share) / mark.share
    return own * max(1.0 + mark.rise * (1.0 - mark.share) * 2.0 / max(mark.weights, _LEAST), 0.0)


def divided(m: Moments, dim: int) -> Normed | None:
    """Return the mark of a gradient divided by the sizes of its channels, where those are along a dim."""
    marks = (p for f in m.terms[0].factors for p in f.parts if isinstance(p.latent, Normed))
    found = (p.latent for p in marks if any(p.labels[k] is not None for k in m.positions(dim)))
    return next((mark for mark in found if isinstance(mark, Normed)), None)


def of_slopes(fan: Fan, share: float, rise: float) -> float:
    """Return E[s²/(v + ε)] over the channels, for slopes s, by that of independent ones.

    What is normed has the mean square v/(v + ε), and s² rises with that by `rise` (see `steep`): to first
    order in Var v/E[v]² = 2/d, 1 − rise·s(1 − s)·2/d for the share s of v in v + ε.
    """
    return max(1.0 - rise * share * (1.0 - share) * 2.0 / max(fan.directions, _LEAST), 0.0)
