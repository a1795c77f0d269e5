"""Expectations under a standard normal: quadrature nodes, Hermite coefficients, dual maps.

Everything here is about one variable z ~ N(0, 1), or two of them with a correlation, and about
plain functions of tensors; it knows nothing of activations or networks.

The rule is composite Gauss–Legendre: panels with edges on multiples of 1/4 between −12 and 12, ten
nodes each, in float64. Most activations have their kinks on such edges (relu, hardswish, hardtanh),
where the rule is as accurate as for a smooth function; a global Gauss–Hermite rule is not. Kinks and
jumps anywhere else are found by `refine`, which splits a panel wherever the polynomial through its
nodes fails to predict the function between them, and makes every break an edge of its own.

Shapes: `z` is (n,), a function returns (n,) or (rows, n), one row per integrand.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from isometry.errors import InvalidValueError

Rows = Callable[[Tensor], Tensor]

RANGE = 12.0  # the density there is 2e-32: nothing of polynomial growth is left outside
WIDTH = 0.25
ORDER = 10
SPLIT = 8  # a panel that fails is cut into so many
DEPTH = 14  # WIDTH / SPLIT**DEPTH = 6e-14, a few spacings of float64 at the end of the range
MAX_PANELS = 8192  # more than this failing at once is noise, which no refinement removes
TOLERANCE = 1e-11  # error of one panel, as a share of E|f|

_TINY = torch.finfo(torch.float64).tiny
_NARROW = WIDTH / SPLIT**4  # panels this narrow stand in the tower above a break
_APART = 1e-2  # breaks closer than this share one edge; the second is refined in the ordinary way
_DUAL_RANGE = 9.0
_DUAL_ORDER = 6
_MEETING = 12
# The ends are probed this close to the edge, relative to half a panel: a break hidden between an edge
# and its probe weighs 1e-10 at most. Not on the edge itself, where a jump may take either value.
_MARGIN = 1e-9


@dataclass(frozen=True)
class Nodes:
    """Nodes and weights with E[f(z)] = Σ weight · f(z), and the panel edges they came from."""

    z: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    edges: Tensor = field(repr=False)

    def expect(self, values: Tensor) -> Tensor:
        """Expectation of values at the nodes, over the last axis: (…, n) → (…)."""
        return (values * self.weight).sum(-1)


@dataclass(frozen=True)
class Refined:
    """Nodes fitted to a function, and what is left of the error.

    Attributes:
        nodes: Nodes whose edges include every kink and jump that was found.
        residual: Bound on the error that remains, per row, as a share of E|f|; 0 when all panels passed.
        tail: Size of f·density at ±12 as a share of E|f|, per row; large when E[f] is infinite.
    """

    nodes: Nodes
    residual: Tensor
    tail: Tensor


def density(z: Tensor) -> Tensor:
    """Standard normal density, exp(−z²/2)/√(2π)."""
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


@cache
def _legendre(order: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(order)
    return torch.from_numpy(x), torch.from_numpy(w)


@cache
def _base_edges() -> Tensor:
    count = round(2 * RANGE / WIDTH)
    return torch.linspace(-RANGE, RANGE, count + 1, dtype=torch.float64, device="cpu")


@cache
def _probes() -> tuple[Tensor, Tensor]:
    """Points of [−1, 1] at which a panel is tested, and the matrix that predicts them from its nodes."""
    x = np.polynomial.legendre.leggauss(ORDER)[0]
    probes = np.concatenate([[-1 + _MARGIN], (x[:-1] + x[1:]) / 2, [1 - _MARGIN]])
    to_coefficients = np.linalg.inv(np.polynomial.legendre.legvander(x, ORDER - 1))
    predict = np.polynomial.legendre.legvander(probes, ORDER - 1) @ to_coefficients
    return torch.from_numpy(probes), torch.from_numpy(predict)


def nodes(edges: Tensor | None = None, *, order: int = ORDER) -> Nodes:
    """Nodes and weights of the composite rule.

    E[f(z)] ≈ Σ_i weight_i · f(z_i), exact up to rounding for f that is smooth inside every panel.

    Args:
        edges: Ascending panel edges, float64; the multiples of 1/4 in [−12, 12] by default.
        order: Gauss–Legendre nodes per panel.

    Returns:
        Nodes of shape (panels · order,), float64, on the CPU.

    Example:
        >>> rule = nodes()
        >>> round(float(rule.expect(rule.z.relu() ** 2)), 12)
        0.5

    Reference: Davis and Rabinowitz, Methods of Numerical Integration, 1984, section 2.7.
    """
    edges = _base_edges() if edges is None else edges
    x, w = _legendre(order)
    half, middle = (edges[1:] - edges[:-1]) / 2, (edges[1:] + edges[:-1]) / 2
    z = (middle[:, None] + half[:, None] * x).flatten()
    weight = (half[:, None] * w).flatten() * density(z)
    return Nodes(z=z, weight=weight, edges=edges)


def _evaluate(f: Rows, z: Tensor) -> Tensor:
    return f(z.flatten()).reshape(-1, *z.shape)


def _judge(f: Rows, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Error of the prediction and largest |f|, each (rows, panels), and the panels' probability."""
    x, w = _legendre(ORDER)
    probes, predict = _probes()
    half, middle = (right - left) / 2, (right + left) / 2
    z = middle[:, None] + half[:, None] * torch.cat([x, probes])
    values = _evaluate(f, z)
    inside, probed = values[..., :ORDER], values[..., ORDER:]
    weight = half[:, None] * w * density(z[:, :ORDER])
    error = (inside @ predict.T - probed).abs().amax(-1)
    return error, values.abs().amax(-1), weight.sum(-1)


@dataclass(frozen=True)
class _Panels:
    edges: Tensor
    residual: Tensor


def _subdivide(f: Rows, edges: Tensor, *, weighted: bool) -> _Panels:
    """Cut panels until the polynomial through the nodes of each predicts f on all of it.

    Weighted by the panel's probability, the test bounds the error of E[f]. Unweighted it is sharper
    and follows a break down to where it no longer matters, which is how breaks are located.
    """
    left, right = edges[:-1], edges[1:]
    kept = [edges[:1]]
    scale = torch.zeros(0)
    for depth in range(DEPTH + 1):
        error, largest, mass = _judge(f, left, right)
        if depth == 0:
            scale = (largest * mass).sum(-1, keepdim=True)
        excess = error * mass - TOLERANCE * scale if weighted else error - TOLERANCE * largest.maximum(scale)
        bad = (excess > 0).any(0)
        kept.append(right[~bad])
        count = int(bad.sum())
        if count == 0 or depth == DEPTH or count * SPLIT > MAX_PANELS:
            break
        cuts = torch.linspace(0, 1, SPLIT + 1, dtype=torch.float64, device="cpu")
        grid = left[bad, None] + (right - left)[bad, None] * cuts
        grid[:, -1] = right[bad]
        left, right = grid[:, :-1].flatten(), grid[:, 1:].flatten()
    kept.append(right[bad])
    rest = (error * mass)[:, bad].sum(-1) / scale[:, 0].clamp_min(_TINY)
    if not weighted and depth < DEPTH:  # given up among too many panels, which the weighted test will judge
        rest = torch.zeros_like(rest)
    return _Panels(edges=torch.cat(kept).sort().values, residual=rest)


def _with_breaks(edges: Tensor) -> Tensor:
    """The base edges, with one edge in place of every tower of ever narrower panels.

    Base edges that would leave a sliver beside a break give way to it.
    """
    width = edges[1:] - edges[:-1]
    middle = (edges[1:] + edges[:-1]) / 2
    narrow = width < _NARROW
    towers: list[list[tuple[float, float]]] = []
    for centre, size in zip(middle[narrow].tolist(), width[narrow].tolist(), strict=True):
        if not towers or centre - towers[-1][-1][0] > _APART:
            towers.append([])
        towers[-1].append((centre, size))
    base = _base_edges()
    if not towers:
        return base
    found = []
    for tower in towers:
        least = 1.5 * min(size for _, size in tower)
        tips = [centre for centre, size in tower if size < least]
        found.append(sum(tips) / len(tips))
    breaks = torch.tensor(found, dtype=torch.float64, device="cpu")
    inner = (base[:, None] - breaks).abs().amin(-1) > _APART
    inner[0] = inner[-1] = True
    return torch.cat([base[inner], breaks]).sort().values


def refine(f: Rows) -> Refined:
    """Fit the panels to a function with kinks or jumps anywhere.

    A panel passes when the polynomial through its ten nodes predicts f halfway between them and at
    both ends. A panel that fails is cut in eight. Where that ends in a tower of ever narrower panels, f
    has a break: the rule is built anew with that point as an edge, so that few nodes suffice, and the
    panels that still fail, weighted by their probability, are cut as before.

    *Assumes* f is pointwise, and piecewise smooth apart from finitely many points.

    Args:
        f: Function of z, (n,) → (n,) or (rows, n); all rows share the nodes.

    Returns:
        The nodes, the error bound that remains, and the weight of the tails, per row.

    Example:
        >>> fit = refine(lambda z: (z - 0.3).relu())  # a kink off the grid
        >>> round(float(fit.nodes.expect((fit.nodes.z - 0.3).relu())), 10)
        0.2667612421

    Reference: Piessens et al., QUADPACK, 1983 (adaptive panels); the test by prediction is our own.
    """
    panels = _subdivide(f, _base_edges(), weighted=False)
    # Beside a pole the first pass never converges, while the second may leave the pole between two edges.
    residual = panels.residual
    if len(panels.edges) > len(_base_edges()):
        panels = _subdivide(f, _with_breaks(panels.edges), weighted=True)
        residual = residual.maximum(panels.residual)
    ends = panels.edges[[0, -1]]
    fitted = nodes(panels.edges)
    scale = fitted.expect(_evaluate(f, fitted.z).abs()).clamp_min(_TINY)
    tail = (_evaluate(f, ends).abs() * density(ends)).sum(-1) / scale
    return Refined(nodes=fitted, residual=residual, tail=tail)


def expectation(f: Callable[[Tensor], Tensor]) -> float:
    """E[f(z)] for z ~ N(0, 1), kinks and jumps included.

    Numerically exact: within 1e-9 of E|f| for piecewise smooth f.

    Args:
        f: Pointwise function of a float64 tensor of shape (n,).

    Returns:
        The expectation.

    Raises:
        InvalidValueError: The integral does not converge.

    Example:
        >>> round(expectation(torch.cos), 12) == round(math.exp(-0.5), 12)
        True
    """
    fit = refine(f)
    if not bool((fit.residual < 1e-5).all() and (fit.tail < 1e-9).all()):
        raise InvalidValueError(
            "E[f(z)] does not converge for z ~ N(0, 1): f grows too fast, has a pole or varies without end"
        )
    return float(fit.nodes.expect(f(fit.nodes.z)))


def hermite_basis(z: Tensor, count: int) -> Tensor:
    """Normalised probabilists' Hermite polynomials h_0 … h_{count−1} at z: (n,) → (count, n).

    h_k = He_k/√k!, so that E[h_j h_k] = δ_jk, by the recurrence √(k+1)·h_{k+1} = z·h_k − √k·h_{k−1}.

    Example:
        >>> rule = nodes()
        >>> basis = hermite_basis(rule.z, 4)
        >>> bool(torch.allclose(rule.expect(basis[:, None] * basis), torch.eye(4, dtype=torch.float64)))
        True

    Reference: O'Donnell, Analysis of Boolean Functions, 2014, section 11.2.
    """
    rows = [torch.ones_like(z), z]
    for k in range(1, count - 1):
        rows.append((z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return torch.stack(rows[:count])


def breakpoints(f: Rows, fitted: Nodes) -> Tensor:
    """Edges of fitted nodes that matter to f: its kinks and jumps, and the edges of narrow panels.

    An edge is a break when a panel that straddles it fails the test of `refine`. What is neither a
    break nor off the base grid can be moved at will, so that shifted copies of f need only these.
    """
    edges = fitted.edges
    width = edges[1:] - edges[:-1]
    reach = torch.minimum(width[1:], width[:-1]) / 2
    inner = edges[1:-1]
    # Off-centre, or the odd and even parts of a kink would cancel at a probe in the middle.
    error, largest, _ = _judge(f, inner - 0.83 * reach, inner + reach)
    scale = fitted.expect(_evaluate(f, fitted.z).abs())[:, None]
    off_grid = (inner / WIDTH - (inner / WIDTH).round()).abs() > 1e-12
    return inner[(error > TOLERANCE * largest.maximum(scale)).any(0) | off_grid]


def _panel_points(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of batches of edges: (…, e) → (…, (e−1)·order), twice."""
    x, w = _legendre(_DUAL_ORDER)
    half, middle = (edges[..., 1:] - edges[..., :-1]) / 2, (edges[..., 1:] + edges[..., :-1]) / 2
    z = (middle[..., None] + half[..., None] * x).flatten(-2)
    return z, (half[..., None] * w).flatten(-2) * density(z)


def dual(f: Rows, correlation: float, *, breaks: Iterable[float] = ()) -> Tensor:
    """E[f(z₁)·f(z₂)] for standard normals z₁, z₂ with a given correlation.

    With u, v independent, z₁ = α·u + β·v and z₂ = α·u − β·v, where α² = (1+c)/2 and β² = (1−c)/2. For
    every v the integral over u has f's breaks as edges, so that the result is as accurate at c → 1,
    where series in c converge slowly, as at 0. A negative c is that of f(z₁)·f(−z₂) at −c.

    *Assumes* f is pointwise and smooth between `breaks` at the scale of 1/4.

    Args:
        f: Function of z, (n,) → (n,) or (rows, n).
        correlation: c in [−1, 1].
        breaks: Kinks, jumps and other places where panels must end, from `breakpoints`.

    Returns:
        One value per row.

    Raises:
        InvalidValueError: The correlation is outside [−1, 1].

    Example:
        >>> round(float(dual(torch.sign, 0.5, breaks=[0.0])) * 3, 9)  # (2/π)·arcsin(c)
        1.0

    Reference: Daniely, Frostig and Singer, 2016, section 4 (dual activations).
    """
    if not -1.0 <= correlation <= 1.0:
        raise InvalidValueError(f"correlation must lie in [-1, 1], got {correlation}")
    sign = -1.0 if correlation < 0 else 1.0
    alpha, beta = math.sqrt((1 + abs(correlation)) / 2), math.sqrt((1 - abs(correlation)) / 2)
    first = torch.tensor(sorted(breaks), dtype=torch.float64, device="cpu")
    second = sign * first
    count = round(2 * _DUAL_RANGE / WIDTH)
    base = torch.linspace(-_DUAL_RANGE, _DUAL_RANGE, count + 1, dtype=torch.float64, device="cpu")

    # Where a break of one factor meets a break of the other, the inner integral has a weak one as well.
    # Many breaks are the finer panels of a steep but smooth function, and need none of this.
    some = len(first) if len(first) <= _MEETING else 0
    meetings = (first[:some, None] - second[:some]).flatten() / max(2 * beta, 1e-9)
    outer = torch.cat([base, meetings.clamp(-_DUAL_RANGE, _DUAL_RANGE)]).sort().values
    v, v_weight = _panel_points(outer)
    shift = beta * v[:, None]
    moved = torch.cat([(first - shift) / alpha, (second + shift) / alpha], dim=-1)
    inner = torch.cat([base.expand(len(v), -1), moved.clamp(-_DUAL_RANGE, _DUAL_RANGE)], dim=-1)
    u, u_weight = _panel_points(inner.sort(-1).values)
    product = _evaluate(f, alpha * u + shift) * _evaluate(f, sign * (alpha * u - shift))
    return ((product * u_weight).sum(-1) * v_weight).sum(-1)
