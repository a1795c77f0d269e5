"""What latents know of one another: a sum remembers its parts, a mean what it is the mean of.

A new latent that is made from others (a sum, a mean, a product of dependent factors) keeps, for each variable
z that it came from, the conditional expectation φ(z) = E[form | z] − E[form] as a `Part`; `form` is the
function of the latent that was made, the latent itself where that is normal. What is left, form − φ(z), is
taken as normal and independent of z. So a function f of the latent has the conditional expectation

    E[f | z] = ∫ f(form = E[form] + φ(z) + s·ε) N(ε) dε,      s² = var(form) − var(φ),

and the joint moments with any function of z follow as those of two functions of one variable. Exact for f
linear in the form (so `x − x.mean()` and `(a + b) − a` come out right) and where the rest is normal; else
asymptotic in the number of parts. Where z was summed over axes (`gone`), the covariance is summed over the
pairs along them. Two latents with a common ancestor are related through the strongest one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import kin, latents
from isometry.moments.axes import Array, Axis
from isometry.moments.record import (
    Factor,
    Gram,
    Mark,
    Part,
    Term,
    average,
    diagonal,
    dual,
    mirror,
    outer,
)
from isometry.moments.surfaces import form_of, identity, surface

Places = tuple[int, ...]  # which axes of a record
MAX_PARTS = 6  # a latent forgets its weakest ancestors
NEGLIGIBLE = 0.01  # correlations below are taken as independence
ROUNDING = 1e-20  # squares below are what rounding left of nothing
WEAK = 0.2  # and below this those of a variable that is not normal with a sum over many


def parts_of(terms: Sequence[Term], std: Array | None = None) -> tuple[Part, ...]:
    """Return E[x | z] for each variable z that a sum of terms depends on.

    Args:
        terms: The sum x, whose terms' factors are independent within each term.
        std: Divide by it, to speak of a normal x in units of its latent; None where x itself is the form.
    """
    found: dict[object, Part] = {}
    for term in terms:
        for factor in term.factors:
            weight = term.coef
            for other in term.factors:
                weight = weight if other is factor else weight * other.mean
            if std is not None:
                weight = np.divide(
                    weight, std, out=np.zeros(np.broadcast_shapes(weight.shape, std.shape)), where=std > 0
                )
            if not weight.any():
                continue
            own = Part(factor.latent, factor.labels, (), factor.values - factor.mean[..., None])
            alpha = factor.slope
            plain = [p for p in factor.parts if not isinstance(p.latent, Mark)]
            for part, by in ((own, weight), *((p, weight * alpha) for p in plain)):
                values = by[..., None] * part.values
                if part.key in found:
                    values = values + found[part.key].values
                found[part.key] = replace(part, values=values)
    sizes = {key: float(latents.mean(p.values**2).max()) for key, p in found.items()}
    ranked = sorted(found, key=lambda key: -sizes[key])[:MAX_PARTS]
    kept = [found[key] for key in ranked if sizes[key] > ROUNDING * sizes[ranked[0]]]
    return (*kept, *grams_of(terms, std))


@lru_cache(maxsize=256)
def marks_of(terms: tuple[Term, ...]) -> tuple[Part, ...]:
    """Return `grams_of` the terms of one record, which a contraction asks for several times."""
    return grams_of(terms)


def grams_of(terms: Sequence[Term], std: Array | None = None) -> tuple[Part, ...]:
    """Return the inner products that a sum of terms shares with others.

    Sizes add as those of independents; the smallest are forgotten, lest those of distant layers crowd out the
    latest. Of a product with another variable, pairs of rows keep only what that has in common for them.
    """
    found: dict[object, Part] = {}
    for term in terms:
        for factor in (f for f in term.factors if f.marks):
            others = [f for f in term.factors if f is not factor]
            size = np.abs(term.coef * factor.slope)
            if std is not None:
                shape = np.broadcast_shapes(size.shape, std.shape)
                size = np.divide(size, std, out=np.zeros(shape), where=std > 0)
            kept: dict[Places, tuple[Array, Places]] = {}
            for mark in factor.marks:
                rows = tuple([k for k, label in enumerate(mark.labels) if label is not None])
                if rows not in kept:
                    kept[rows] = _kept_between(size, others, rows)
                weight, apart = kept[rows]
                gone = (*mark.gone, *[mark.labels[k] for k in apart])
                part = Part(mark.latent, mark.labels, gone, weight[..., None] * mark.values)
                if part.key in found:
                    part = replace(part, values=np.hypot(part.values, found[part.key].values))
                found[part.key] = part
    if not found:
        return ()
    sizes = {key: float(np.float32(part.values.max())) for key, part in found.items()}  # equals stay in order
    ranked = sorted(found, key=lambda key: -sizes[key])[:MAX_PARTS]
    return tuple([found[key] for key in ranked if sizes[key] > NEGLIGIBLE * sizes[ranked[0]]])


def together(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array | None:
    """Return what a product of two images of the same rows x_k gains between different rows.

    Given x_k·x_k′, the two are independent, and each has it as its covariance, so that the square of its
    fluctuation adds to the product of their tables: (1 + c²)·|x|⁴/d for d normal features of correlation c
    between rows. So outputs of gated units are alike by 1/d for unlike inputs. None where the two share no
    inner products.
    """
    if f.images.keys().isdisjoint(g.images):
        return None
    pairs = [(f.images[key], q) for key, q in g.images.items() if key in f.images]
    found: Array | None = None
    for k, (p, q) in enumerate(
        sorted(pairs, key=lambda pair: -float((pair[0].values * pair[1].values).max()))
    ):
        assert isinstance(p.latent, Gram)
        size = _of_image(f, p, whole=k == 0) * _of_image(g, q, whole=k == 0)
        alike = (1.0 + f.rho * g.rho) * _of_unlike_rows(tuple([x is not None for x in p.labels]), axes)
        extra = p.latent.fluctuation * outer(size, size, axes) * alike
        found = extra if found is None else found + extra
    return found


def _of_image(f: Factor, part: Part, *, whole: bool) -> Array:
    """Return the size of an image of rows, by block; where `whole`, with what neighbouring rows share."""
    square = part.values[..., 0] ** 2
    if whole:
        form = form_of(f)
        variance = latents.mean(form**2) - latents.mean(form) ** 2
        rows = max(k for k, label in enumerate(part.labels) if label is not None)
        shared = np.clip(_between(f.rho, rows), 0.0, None) if f.rho.shape[rows] > 1 else 0.0
        square = np.minimum(square + shared * variance, variance)
    return np.asarray(np.sqrt(square) * f.slope)


@lru_cache(maxsize=1024)
def _of_unlike_rows(labelled: tuple[bool, ...], axes: tuple[Axis, ...]) -> Array:
    """Return 1 for pairs that differ on some of the axes with a label, and on no others; else 0."""
    within, alike = (np.ones([1] * len(axes)) for _ in range(2))
    for k, axis in enumerate(axes):
        shape = [-1 if j == k else 1 for j in range(len(axes))]
        same = ax.same_classes(axis).reshape(shape)
        within = within if labelled[k] else within * same
        alike = alike * same
    return within - alike


def _kept_between(size: Array, others: Sequence[Factor], rows: Places) -> tuple[Array, Places]:
    """Return a size times E[f f′]^½ of other variables for two rows of a Gram, by block.

    Rows run along the last of the axes given. Along the others, where a variable has less than half in
    common, rows are no longer images under one matrix: these axes are returned too.
    """
    gone: list[int] = []
    for other in others:
        kept, apart = _common(other, rows)
        size = size * kept
        gone += apart
    return size, tuple(gone)


@lru_cache(maxsize=512)
def _common(factor: Factor, rows: Places) -> tuple[Array, Places]:
    """Return E[f f′]^½ along the last of the axes given, and along which others less than half is shared."""
    result, apart = factor.square, []
    for k in (k for k in rows if factor.table.shape[k] > 1):
        between = _between(factor.table, k)
        if k == rows[-1]:
            result = np.clip(between, 0.0, None)
        elif float(np.mean(between)) < 0.5 * float(np.mean(factor.square)):
            apart.append(k)
    return np.sqrt(result), tuple(apart)


def _between(table: Array, position: int) -> Array:
    """Return a pair array's entries for pairs that differ on one axis alone, within a block."""
    at = []
    for k, n in enumerate(table.shape):
        b = round(((4 * n + 1) ** 0.5 - 1) / 2) if n > 1 else 1
        at.append(slice(b, None, b + 1) if k == position else slice(b))
    return table[tuple(at)]


def summed(parts: Sequence[Part], positions: Sequence[int], axes: tuple[Axis, ...]) -> tuple[Part, ...]:
    """Return the parts of a sum over axes (by position), which disappear.

    Their labels are remembered as gone.
    """
    result = []
    for part in (p for p in parts if not isinstance(p.latent, Mark)):
        values, labels, gone = part.values, list(part.labels), part.gone
        for p in sorted(positions, reverse=True):
            label = labels.pop(p)
            if label is None:  # constant along the axis: each of its entries adds the same
                values = _total(values, p, np.asarray(axes[p], dtype=np.float64))
            else:
                gone = (*gone, label)
                values = _total(values, p, np.asarray(axes[p], dtype=np.float64) / ax.size(axes[p]))
        result.append(Part(part.latent, tuple(labels), gone, values))
    return tuple(result)


def _total(values: Array, position: int, weights: Array) -> Array:
    if values.shape[position] == 1:
        return np.asarray(values.take(0, axis=position) * weights.sum())
    return np.asarray(np.tensordot(weights, values, axes=(0, position)))


def centred(parts: Sequence[Part], positions: Sequence[int], axes: tuple[Axis, ...]) -> tuple[Part, ...]:
    """Return the parts of x − mean(x) over axes of one block each, from those of x."""
    result = list(parts)
    for part in (p for p in parts if not isinstance(p.latent, Mark)):
        gone, labels, scale = part.gone, list(part.labels), -1.0
        for p in positions:
            if labels[p] is not None:
                gone, scale = (*gone, labels[p]), scale / ax.size(axes[p])
                labels[p] = None
        result.append(Part(part.latent, tuple(labels), gone, scale * part.values))
    return tuple(result)


def averaged(
    parts: Sequence[Part], positions: Sequence[int], axes: tuple[Axis, ...], own: float, rest: float
) -> tuple[Part, ...]:
    """Return the parts of own·x + rest·mean(x) over axes, in one block each, from those of x."""
    result = []
    for part in (p for p in parts if not isinstance(p.latent, Mark)):
        values, gone, labels, scale = part.values, part.gone, list(part.labels), rest
        for p in positions:
            if values.shape[p] > 1:
                values = np.expand_dims(np.tensordot(ax.shares(axes[p]), values, axes=(0, p)), p)
            if labels[p] is not None:
                gone, scale = (*gone, labels[p]), scale / ax.size(axes[p])
                labels[p] = None
        result.append(Part(part.latent, part.labels, part.gone, own * values))
        result.append(Part(part.latent, tuple(labels), gone, scale * values))
    return tuple(result)


@lru_cache(maxsize=256)
def given(factor: Factor, part: Part) -> Array:
    """Return E[f | z] less its mean, at the nodes of z, where z has the part in the factor's form."""
    phi, form, alpha = part.values, form_of(factor), factor.slope
    centred_form = form - latents.mean(form)[..., None]
    rest = factor.values - factor.mean[..., None] - alpha[..., None] * centred_form
    if float(latents.mean(rest**2).max()) <= 1e-9 * float(factor.square.max()):
        return np.asarray(alpha[..., None] * phi)
    rows, at = latents.distinct(factor.values, form, phi)
    expected = (surface(*rows) @ latents.FEW_WEIGHTS)[at]
    return np.asarray(expected - latents.mean(expected)[..., None])


def covariance(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array | None:
    """Return cov(f(z), g(z′)) by pair class for two different variables; None where they are not related."""
    rho = kin.correlation(f, g, axes)
    if rho is None:
        return _through_parts(f, g, axes)
    for child, parent, turned in ((f, g, False), (g, f, True)):
        parts = [p for p in child.parts if _meets(p, parent)]
        if parts:
            bent = _from_parts(child, parts, _without_line(parent), axes)
            line = outer(f.slope * f.size_of_form, g.slope * g.size_of_form, axes) * rho
            return line + (mirror(bent, axes) if turned else bent)
    table = dual(f.values, g.values, kin.of_latents(rho, f, g, axes), axes)
    return table - outer(f.mean, g.mean, axes)


def _without_line(f: Factor) -> Factor:
    """Return what a function of a latent is beyond a linear one of its form."""
    return replace(f, values=f.values - f.slope[..., None] * form_of(f))


def _through_parts(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array | None:
    if not _related(f, g):
        return None
    for child, parent, turned in ((f, g, False), (g, f, True)):
        parts = [p for p in child.parts if _meets(p, parent)]
        if parts:
            found = _from_parts(child, parts, parent, axes)
            return mirror(found, axes) if turned else found
    return _siblings(f, g, axes)


def _related(f: Factor, g: Factor) -> bool:
    """Return whether one variable may be a part of the other, or both have a part in common."""
    if g.latent in f.ancestors or f.latent in g.ancestors:
        return True
    return not f.plain.keys().isdisjoint(g.plain)


def _meets(part: Part, factor: Factor) -> bool:
    """Return whether a part is a function of the factor's variable.

    It may be so entry by entry, or summed over its axes.
    """
    if part.latent != factor.latent:
        return False
    left = list(part.gone)
    for ours, theirs in zip(part.labels, factor.labels, strict=True):
        if ours == theirs:
            continue
        if ours is not None or theirs not in left:
            return False
        left.remove(theirs)
    return not left


def _from_parts(child: Factor, parts: Sequence[Part], parent: Factor, axes: tuple[Axis, ...]) -> Array:
    values = parent.values - parent.mean[..., None]
    result: Array = np.zeros([1] * len(axes))
    for part in parts:
        joint = dual(given(child, part), values, parent.rho, axes)
        result = result + _summed_first(joint, axes, _gone_at(part, parent))
    return result


def _gone_at(part: Part, parent: Factor) -> list[int]:
    return [k for k, (p, q) in enumerate(zip(part.labels, parent.labels, strict=True)) if p != q]


def _siblings(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array | None:
    """Return the covariance through the strongest common ancestor.

    The ancestor's correlations are taken as the mean of both.
    """
    common = [(p, g.plain[key]) for key, p in f.plain.items() if key in g.plain]
    if not common:
        return None
    p, q = max(common, key=lambda pair: float(latents.mean(pair[0].values ** 2).max()))
    rho = 0.5 * (f.rho + g.rho)
    return dual(given(f, p), given(g, q), rho, axes)


def link(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> tuple[Factor, Factor, Array] | None:
    """Return (child, ancestor, φ) of two related factors at one entry.

    None where their relation is negligible.

    Where the one is no plain part of the other, φ is linear with the variables' covariance. A variable that
    is not normal (of relu outputs, divided by their root mean square) and a sum over many that it depends on
    a little are taken as independent: a rest that is taken as normal would cost more.
    """
    if not _related(f, g):
        return None
    for child, parent in ((f, g), (g, f)):
        plain = [p for p in child.parts if _meets(p, parent)]
        if len(plain) == 1 and not plain[0].gone:
            form = form_of(child)
            variance = latents.mean(form * form) - latents.mean(form) ** 2
            strong = np.max(latents.mean(plain[0].values ** 2) / np.maximum(variance, 1e-300))
            if strong < WEAK**2 and any(p.gone for p in parent.parts) and not latents.affine(form):
                return None
            return (child, parent, plain[0].values) if strong > NEGLIGIBLE**2 else None
    for child, parent in ((f, g), (g, f)):
        if not child.parts:
            continue
        form = form_of(child)
        pure = replace(parent, values=identity(len(axes)), form=None)
        found = _through_parts(replace(child, values=form), pure, axes)
        if found is not None:
            tilt = diagonal(found, axes)
            variance = latents.mean(form * form) - latents.mean(form) ** 2
            if float(np.max(tilt**2 / np.maximum(variance, 1e-300))) < NEGLIGIBLE**2:
                return None
            return child, parent, tilt[..., None] * latents.NODES
    return None


def tie(f: Factor, g: Factor, axes: tuple[Axis, ...]) -> Array | None:
    """Return E[f²g²]/(E[f²]·E[g²]) of two factors, one a sum that has the other among its summands.

    As x and the root of a mean of its squares, which are uncorrelated and not independent: 1 − 2/n for n
    normal summands, so that x/√mean(x²) has the square 1. To first order in what g² has in common with the
    sum. None where neither is such a sum.
    """
    found = (_tie_to(x, y, axes) for x, y in ((f, g), (g, f)) if y.latent in x.ancestors)
    return next((t for t in found if t is not None), None)


@lru_cache(maxsize=256)
def _tie_to(child: Factor, parent: Factor, axes: tuple[Axis, ...]) -> Array | None:
    """Return `tie` of a sum and one of its summands; a product asks for it once for each of its factors."""
    meeting = [p for p in child.parts if _meets(p, parent)]
    parts = [p for p in meeting if p.gone]
    if not parts or len(parts) < len(meeting):  # one that has it as such is linked to it
        return None
    squares = [replace(x, values=x.values**2) for x in (child, parent)]
    theirs = squares[1].values - squares[1].mean[..., None]
    both: Array = np.zeros([1] * len(axes))
    for part in parts:
        joint = dual(part.values, theirs, parent.rho, axes)
        both = both + diagonal(_summed_first(joint, axes, _gone_at(part, parent)), axes)
    if len(parts) == 1:
        both = both * _beyond_parts(child, parts[0], parent, both, axes)
    both = both * squares[0].slope
    alone = squares[0].mean * squares[1].mean
    shape = np.broadcast_shapes(both.shape, alone.shape)
    ratio = 1.0 + np.divide(both, alone, out=np.zeros(shape), where=alone > 0)
    return np.clip(ratio, 0.2, 5.0)


def _beyond_parts(child: Factor, part: Part, parent: Factor, both: Array, axes: tuple[Axis, ...]) -> float:
    """Return by how much the variance of a sum of squares goes beyond that of its summands' tables.

    Its covariance with each summand is its variance divided by their number; `both` is what tables give.
    """
    square = parent.values**2 - parent.square[..., None]
    kept = latents.mean(part.values * square) / np.maximum(latents.mean(part.values**2), 1e-300)
    form = form_of(child)
    variance = latents.mean(form**2) - latents.mean(form) ** 2
    count = prod(ax.size(axes[k]) for k in _gone_at(part, parent))
    told = average(both, axes) * count
    return average(kept, axes) * average(variance, axes) / told if told > 0 else 1.0


def _summed_first(table: Array, axes: tuple[Axis, ...], positions: Sequence[int]) -> Array:
    """Sum a pair array over the first entry of the pairs along some axes.

    It stays spread by the second entry's block.
    """
    for p in positions:
        axis = axes[p]
        b = len(axis)
        full = np.broadcast_to(table, (*table.shape[:p], b * (b + 1), *table.shape[p + 1 :]))
        full = np.moveaxis(full, p, -1)
        differ = full[..., b:].reshape((*full.shape[:-1], b, b))
        counts = np.asarray(axis, dtype=np.float64)[:, None] - np.eye(b)
        by_second = full[..., :b] + (differ * counts).sum(-2)
        table = np.moveaxis(by_second[..., ax.sides(axis)[1]] if b > 1 else by_second, -1, p)
    return table
