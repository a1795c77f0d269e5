"""How latents are related that were made apart from one another: by shared weights, step by step.

A loop over time uses its weights again at every step. So what it makes of two steps is alike, though neither
is made from the other: with y = Σ_k w_k a_k at one step and y′ = Σ_k w_k a′_k at another,

    E[y y′] = Σ_k E[w_k²]·E[a_k a′_k],

which needs the relation of a and a′, and so on down to what both steps share: the past, biases, inputs. The
correlation of two latents follows from those of what they were made from (see `origins`), the younger taken
apart first. Correlations are those of latents' forms (see `Factor`). Sums, and what is left of one latent
less its mean, are followed to first order in each of them (exact for linear functions), products and
contractions factor by factor. Only what depends on weights that were used again is asked for: see
`origins.alive`. Of the steps of a loop few are: see `columns`.

Reference: Chen, Pennington, Schoenholz 2018 (mean field theory of recurrent networks with gates).
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from isometry.moments import axes as ax
from isometry.moments import columns, latents
from isometry.moments.axes import Array, Axis
from isometry.moments.columns import FORGOTTEN, Told
from isometry.moments.entries import resolved
from isometry.moments.latents import Latent
from isometry.moments.origins import Beside, Centred, Contraction, Product, Sum, alive, any_again
from isometry.moments.places import (
    Axes,
    View,
    all_of,
    blocks_seen,
    common,
    composed,
    finer,
    in_place,
    less_mean,
    recut,
    seen,
    view,
    view_of,
)
from isometry.moments.record import Factor, Moments, dual, first, mirror, outer, second
from isometry.moments.stretches import pairs

NEGLIGIBLE = 0.003  # correlations below are taken as independence

Request = tuple[View, View, Axes]
Asking = Generator[Request, Array | None, Array | None]


def correlation(f: Factor, g: Factor, axes: Axes) -> Array | None:
    """Return the correlation of two latents' forms by pair class; None where they are not kin."""
    if not any_again():
        return None
    x, y = view_of(f.latent, f.labels), view_of(g.latent, g.labels)
    if x is None or y is None or not (alive(x.latent) and alive(y.latent)):
        return None
    found = _answered((x, y, axes))
    if found is None or float(np.abs(found).max()) < NEGLIGIBLE:
        return None
    return np.clip(found, -1.0, 1.0)


def apart(f: Factor, g: Factor, axes: Axes, position: int) -> Array | None:
    """Return the correlation of two factors' latents where they lie side by side along an axis.

    By pair class of the other axes. None where they are not kin, or vary along that axis.
    """
    if f.labels[position] is not None or g.labels[position] is not None:
        return None
    rest = (*axes[:position], *axes[position + 1 :])
    f, g = (_without_axis(x, position) for x in (f, g))
    rho = correlation(f, g, rest)
    return None if rho is None else of_latents(rho, f, g, rest)


def _without_axis(f: Factor, position: int) -> Factor:
    """Return a factor's labels and form without an axis along which nothing varies."""
    labels = (*f.labels[:position], *f.labels[position + 1 :])
    form = None if f.form is None else np.asarray(f.form.take(0, axis=position))
    return replace(f, labels=labels, values=np.asarray(f.values.take(0, axis=position)), form=form)


def of_latents(rho: Array, f: Factor, g: Factor, axes: Axes) -> Array:
    """Return the correlation of two latents whose forms have the correlation given.

    It solves Σ a_k b_k ρ^k = cov(form, form′) for the Hermite coefficients of both forms.
    """
    if f.form is None and g.form is None:
        return rho
    ours, theirs = (_coefficients_of_form(x) for x in (f, g))
    products = first(ours, axes) * second(theirs, axes)
    products[..., 0] = 0.0
    found = rho
    for _ in range(2):
        found = np.clip(found + rho - latents.mehler(products, found), -1.0, 1.0)
    return found


def _coefficients_of_form(f: Factor) -> Array:
    """Return the Hermite coefficients of a form of variance 1."""
    if f.form is None:
        line = np.zeros((*[1] * (f.values.ndim - 1), latents.ORDER))
        line[..., 1] = 1.0
        return line
    known = f.coefficients if f.form is f.values else latents.coefficients(f.form)
    size = f.size_of_form[..., None]
    return np.asarray(np.divide(known, size, out=np.zeros_like(known), where=size > 0))


def _answered(request: Request) -> Array | None:
    """Answer a request, and first those that it depends on.

    A chain of steps may be longer than Python's own stack.
    """
    stack: list[tuple[Request, Asking]] = []
    answer = _remembered(request)
    if isinstance(answer, str):
        stack.append((request, _answer(*request)))
    value: Array | None = None if isinstance(answer, str) else answer
    while stack:
        asked, work = stack[-1]
        try:
            wanted = work.send(value)
        except StopIteration as done:
            value = done.value
            _remember(asked, value)
            stack.pop()
            continue
        answer = _remembered(wanted)
        if isinstance(answer, str):
            stack.append((wanted, _answer(*wanted)))
            value = None
        else:
            value = answer
    return value


def _remembered(request: Request) -> Told:
    """Return what is known of a request without computing it, by itself or from other steps of a loop."""
    x, y, axes = request
    younger, older = (x, y) if x.latent.birth >= y.latent.birth else (y, x)
    known = younger.latent.known
    found: Told = known.get((younger, older, axes), "unknown")
    if isinstance(found, str):
        found = columns.told(older, younger, axes)
        if not isinstance(found, str):
            known[younger, older, axes] = found
    return found if younger is x or found is None or isinstance(found, str) else mirror(found, axes)


def _remember(request: Request, value: Array | None) -> None:
    x, y, axes = request
    if value is not None and float(np.abs(value).max()) < FORGOTTEN:
        value = None
    if x.latent.birth < y.latent.birth:
        x, y, value = y, x, None if value is None else mirror(value, axes)
    x.latent.known[x, y, axes] = value
    columns.note(y, x, axes, value)


def _answer(x: View, y: View, axes: Axes) -> Asking:
    """Return the correlation of two views along the same axes; None where they are independent.

    Where a loop made the younger, those of its steps before are asked first, as far as they are needed.
    """
    younger, older = (x, y) if x.latent.birth >= y.latent.birth else (y, x)
    asked = False
    for before in columns.nearer(older, younger, axes):
        yield before, older, axes
        asked = True
    found = _remembered((x, y, axes)) if asked else "unknown"
    return (yield from _between(x, y, axes)) if isinstance(found, str) else found


def _between(x: View, y: View, axes: Axes) -> Asking:
    """Return the correlation of two views along the same axes; None where they are independent."""
    p, q = resolved(x), resolved(y)
    if p is None or q is None:
        return None
    if p is not x or q is not y:
        return (yield p, q, axes)
    if x.latent is y.latent:
        return seen(x.latent.rho, x.latent.axes, x.places, y.places, axes)
    own = common(x.latent.axes, y.latent.axes)
    whole = own == axes and x is all_of(x.latent) and y is all_of(y.latent)
    if own is not None and not whole:
        table = yield all_of(x.latent), all_of(y.latent), own
        return None if table is None else seen(table, own, x.places, y.places, axes)
    child = _taken_apart(x, y)
    if child is None:
        return (yield from _of_leaves(x.latent, y.latent, axes)) if whole else None
    if child is y:
        found = yield from _of_sum(y, x, axes)
        return None if found is None else mirror(found, axes)
    return (yield from _of_sum(x, y, axes))


def _taken_apart(x: View, y: View) -> View | None:
    """Return which of two views to take apart into summands: the younger, which may be made from the other.

    A younger one that is a sum of no other sums is not, and is left whole.
    """
    ours, theirs = x.latent.origin, y.latent.origin
    if not isinstance(ours, Sum | Centred):
        return y if isinstance(theirs, Sum | Centred) else None
    if not isinstance(theirs, Sum | Centred):
        return x
    younger, older = (x, y) if x.latent.birth >= y.latent.birth else (y, x)
    return older if younger.latent.origin.shallow and not older.latent.origin.shallow else younger


def _of_sum(child: View, other: View, axes: Axes) -> Asking:
    origin = child.latent.origin
    if isinstance(origin, Centred):
        return (yield from _of_centred(child, origin, other, axes))
    assert isinstance(origin, Sum)
    whole = child is all_of(child.latent) and axes == child.latent.axes
    total: Array | None = None
    for weight, parent in origin.parents:
        if not whole:
            places = composed(parent.places, child.places)
            if places is None:
                continue
            parent = view(parent.latent, places)
        found = None
        if not (_independent(parent.latent, other.latent) or _past(parent.latent, other.latent)):
            found = yield parent, other, axes
            _note_faint(parent.latent, other.latent, found)
        if found is None:
            continue
        by = weight if whole else blocks_seen(weight, child.latent.axes, child.places, axes)
        if by is not None:
            part = first(by, axes) * found
            total = part if total is None else total + part
    return total


def _of_centred(child: View, origin: Centred, other: View, axes: Axes) -> Asking:
    if child is not all_of(child.latent) or common(child.latent.axes, axes) != axes:
        return None
    found = yield origin.parent, other, axes
    if found is None:
        return None
    weight = recut(origin.weight, child.latent.axes, axes, pairs=False)
    return first(weight, axes) * less_mean(found, axes, origin.positions)


def _independent(x: Latent, y: Latent) -> bool:
    """Return whether two latents are surely independent, at a glance."""
    ours, theirs = x.origin, y.origin
    if x is y or isinstance(ours, Sum | Centred) or isinstance(theirs, Sum | Centred):
        return False
    if isinstance(ours, Contraction) and isinstance(theirs, Contraction):
        return ours.how != theirs.how
    return ours is None or type(ours) is not type(theirs)


def _past(sum_: Latent, later: Latent) -> bool:
    """Return whether a sum lies so far back that an earlier one of such contractions had forgotten it.

    What a loop adds up, as gradients of its weights, has in common with a step what all steps from some lag
    on have. With the next step it is what steps have from a larger lag on, which is less. So a sum is asked
    by as many steps as remember it, not by all.
    """
    kind = later.origin.how if isinstance(later.origin, Contraction) else None
    return kind in sum_.faint and sum_.faint[kind] < later.birth


def _note_faint(sum_: Latent, later: Latent, found: Array | None) -> None:
    """Note the first contraction of a kind which has next to nothing in common with a sum made before it."""
    own, kind = sum_.origin, later.origin
    if not (isinstance(own, Sum) and isinstance(kind, Contraction)) or kind.again:
        return
    steps = [v.latent.origin for _, v in own.parents if isinstance(v.latent.origin, Contraction)]
    if not any(step.how == kind.how for step in steps) or later.birth < sum_.birth or kind.how in sum_.faint:
        return
    if found is None or float(np.abs(found).max()) < FORGOTTEN:
        sum_.faint[kind.how] = later.birth


def _of_leaves(x: Latent, y: Latent, axes: Axes) -> Asking:
    """Return the correlation of two products, or two contractions, of the same kind."""
    ours, theirs = x.origin, y.origin
    if isinstance(ours, Product) and isinstance(theirs, Product):
        found = yield from _expected(ours.factors, theirs.factors, axes)
        if found is None:
            return None
        return found * _inverse(outer(ours.size, theirs.size, axes))
    if isinstance(ours, Contraction) and isinstance(theirs, Contraction):
        return (yield from _of_contractions(x, y, axes))
    if isinstance(ours, Beside) and isinstance(theirs, Beside):
        return (yield from _of_neighbours(ours, theirs, axes))
    return None


def _of_neighbours(x: Beside, y: Beside, axes: Axes) -> Asking:
    """Return the correlation of tensors side by side: of parts in the same place, and of single entries."""
    if x.position != y.position:
        return None
    at, total = x.position, None
    if x.of_steps and y.of_steps:
        return (yield from _of_steps(x, y, axes[at]))
    for i, ours, p in _placed(x):
        for j, theirs, q in _placed(y):
            if ours != theirs or (i != j and ours[at] != (1,)):
                continue
            found = yield p, q, ours
            part = None if found is None else in_place(found, at, axes[at], (i, j), ours[at])
            if part is not None:
                total = part if total is None else total + part
    return total


def _of_steps(x: Beside, y: Beside, axis: Axis) -> Asking:
    """Return the correlation of single entries side by side, block by block of the axis: see `stretches`."""
    blocks = list(itertools.pairwise([0, *itertools.accumulate(axis)]))
    same = [[((start + stop) // 2, (start + stop) // 2, 1.0)] for start, stop in blocks]
    pieces: list[Array] = []
    for wanted in (*same, *[pairs(a, b) for a in blocks for b in blocks]):
        piece: Array = np.zeros(1)
        for i, j, weight in wanted:
            (ours, p), (theirs, q) = x.parts[i], y.parts[j]
            found = None if p is None or q is None or ours != theirs else (yield p, q, ours)
            piece = piece if found is None else piece + weight * found.take(0, axis=x.position)
        pieces.append(piece)
    if not any(piece.any() for piece in pieces):
        return None
    shape = np.broadcast_shapes(*[piece.shape for piece in pieces])
    return np.stack([np.broadcast_to(piece, shape) for piece in pieces], axis=x.position)


def _placed(x: Beside) -> list[tuple[int, Axes, View]]:
    """Return where each part begins, its axes, and itself."""
    sizes = [ax.size(own[x.position]) for own, _ in x.parts]
    starts = [0, *itertools.accumulate(sizes)]
    return [
        (start, own, part) for start, (own, part) in zip(starts, x.parts, strict=False) if part is not None
    ]


def _of_contractions(x: Latent, y: Latent, axes: Axes) -> Asking:
    ours, theirs = x.origin, y.origin
    if ours.how != theirs.how:
        return None
    on = [common(p.axes, q.axes) for p, q in zip(ours.summands, theirs.summands, strict=True)]
    made = next((z for z in (x, y) if [t.axes for t in z.origin.summands] == on), None)
    if made is None:
        return None
    tables: list[Array] = []
    for p, q, fine in reversed([*zip(ours.summands, theirs.summands, on, strict=True)]):
        found = None if fine is None else (yield from _joint(finer(p, fine), finer(q, fine)))
        if found is None:
            return None
        tables.insert(0, found)
    table = recut(made.origin.summed(*tables, *[np.ones(1)] * (2 - len(tables))), made.axes, axes)
    mean, size = (
        outer(recut(p, x.axes, axes, pairs=False), recut(q, y.axes, axes, pairs=False), axes)
        for p, q in ((ours.mean, theirs.mean), (ours.std, theirs.std))
    )
    return (table - mean) * _inverse(size)


def _inverse(sizes: Array) -> Array:
    return np.asarray(np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0))


def _joint(a: Moments, b: Moments) -> Asking:
    """Return E[a b′] by pair class, None where it vanishes."""
    if a is b:
        return a.table
    views = (view_of(f.latent, f.labels) for t in a.terms for f in t.factors)
    known = next((v.latent.known for v in views if v is not None), {})
    if (a, b) not in known:
        known[a, b] = yield from _joint_of_terms(a, b)
    found: Array | None = known[a, b]
    return found


def _joint_of_terms(a: Moments, b: Moments) -> Asking:
    total: Array | None = None
    for s in a.terms:
        for t in b.terms:
            found = yield from _expected(s.factors, t.factors, a.axes)
            if found is not None:
                part = outer(s.coef, t.coef, a.axes) * found
                total = part if total is None else total + part
    return total


def _expected(ours: Sequence[Factor], theirs: Sequence[Factor], axes: Axes) -> Asking:
    """Return E[Π f · Π g′] by pair class, None where it vanishes; each factor has at most one partner."""
    result: Array = np.ones([1] * len(axes))
    left = list(theirs)
    for f in ours:
        x, partner, table = view_of(f.latent, f.labels), None, None
        for g in left:
            y = view_of(g.latent, g.labels)
            if f.key == g.key:
                partner, table = g, dual(f.values, g.values, f.rho, axes)
                break
            if x is None or y is None:
                continue
            rho = yield x, y, axes
            if rho is not None and float(np.abs(rho).max()) >= NEGLIGIBLE:
                rho = of_latents(np.clip(rho, -1.0, 1.0), f, g, axes)
                both = first(f.coefficients, axes) * second(g.coefficients, axes)
                partner, table = g, latents.mehler(both, rho)
                break
        if partner is not None and table is not None:
            left.remove(partner)
            result = result * table
        elif f.centred:
            return None
        else:
            result = result * first(f.mean, axes)
    for g in left:
        if g.centred:
            return None
        result = result * mirror(first(g.mean, axes), axes)
    return result
