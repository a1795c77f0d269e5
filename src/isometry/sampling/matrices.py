"""Haar-distributed orthogonal matrices, from random reflections instead of a QR factorisation."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.sampling import engine, workers
from isometry.sampling.distributions import Normal
from isometry.sampling.shards import shard_of
from isometry.sampling.streams import generator_key

# Reflections applied together, and columns per task: below 64 the products are too thin, above 256 the
# triangular solves grow.
_BLOCK = 128
# Small matrices share a task up to about this many elements.
_GROUP = 2**16


def haar(
    batch: int,
    rows: int,
    cols: int,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw Haar-distributed semi-orthogonal matrices.

    QQᵀ = I where rows <= cols, QᵀQ = I otherwise; UQV has the law of Q for all orthogonal U and V (exact in
    the law, and orthonormal up to the rounding of `dtype`).

    The QR factorisation of a normal matrix meets, in column i, a vector that is again normal and independent
    of all before it. So the factorisation need not be run: its reflections are drawn directly, column i from
    n - i normal numbers, and multiplied in blocks (compact WY form), which is half the work and all of it
    matrix products. Each product runs on one thread, so that no sum depends on the number of threads, as
    those of LAPACK's QR do; another kind of processor may differ in the last places.

    Args:
        batch: Number of independent matrices.
        rows: Rows of each.
        cols: Columns of each.
        generator: Source of randomness; torch's global generator when None. Eight numbers are taken from it.
        dtype: Floating-point dtype of the result. float64 is computed in float64, all others in float32.

    Returns:
        Contiguous CPU tensor of shape (batch, rows, cols).

    Raises:
        InvalidValueError: If a size is negative.
        InvalidTypeError: If `dtype` is no floating-point one.

    Example:
        >>> q = haar(2, 3, 5, torch.Generator().manual_seed(0))
        >>> torch.allclose(q @ q.mT, torch.eye(3), atol=1e-5)
        True

    Reference: Stewart (1980), The efficient generation of random orthogonal matrices, section 3; Joffrain,
    Low, Quintana-Ortí, van de Geijn, Van Zee (2006), Accumulating Householder transformations, revisited.
    """
    if min(batch, rows, cols) < 0:
        raise InvalidValueError(f"sizes must not be negative, got batch={batch}, rows={rows}, cols={cols}")
    if not dtype.is_floating_point:
        raise InvalidTypeError(f"dtype must be a floating-point one, got {dtype}")
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    normal = torch.empty(batch, max(rows, cols), min(rows, cols), dtype=torch.float32, device="cpu")
    key = generator_key(generator)
    workers.run(engine.tasks(engine.draws(shard_of(normal), Normal(1.0), key)))
    q = _product(normal.to(exact))
    return (q if rows >= cols else q.mT).to(dtype).contiguous()


def _product(vectors: Tensor) -> Tensor:
    """The first k columns of H₁H₂…H_k·diag(±1) from normal numbers (batch, n, k), which are used up.

    Cut into panels of columns, each of which passes through all reflections on one thread.
    """
    q = torch.zeros_like(vectors)
    batch, size, count = vectors.shape
    group = max(1, _GROUP // max(1, size * count))
    groups = [slice(i, i + group) for i in range(0, batch, group)]
    starts = list(range(0, count, _BLOCK))
    triangles: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def reflect(g: slice, start: int) -> None:
        columns = slice(start, start + _BLOCK)
        _reflections_(vectors[g, :, columns], q[g, :, columns], start)
        v = vectors[g, start:, columns]
        t = torch.triu(v.mT @ v)
        torch.diagonal(t, dim1=-2, dim2=-1).mul_(0.5)
        triangles[g.start, start] = t

    @torch.no_grad()
    def multiply(g: slice, panel: int) -> None:
        for start in range(panel, -1, -_BLOCK):
            v = vectors[g, start:, start : start + _BLOCK]
            part = q[g, start:, panel : panel + _BLOCK]
            # H…H = I - V T⁻¹ Vᵀ, T the upper triangle of VᵀV with half its diagonal: orthogonal however V is
            # rounded.
            t = triangles[g.start, start]
            part.sub_(v @ torch.linalg.solve_triangular(t, v.mT @ part, upper=True))

    with workers.single_threaded() as threads:
        for step, order in ((reflect, starts), (multiply, starts[::-1])):
            work = (functools.partial(step, g, start) for start in order for g in groups)
            workers.run(work, threads=threads)
    return q


def _reflections_(normal: Tensor, q: Tensor, start: int) -> None:
    """Turn columns `start`… of normal numbers into reflection vectors, their signs go on q's diagonal."""
    normal.tril_(-start)
    norm = torch.linalg.vector_norm(normal, dim=-2, dtype=torch.float64)
    diagonal = torch.diagonal(normal, offset=-start, dim1=-2, dim2=-1)
    head = diagonal.double()
    # A column of zeros alone has no direction; any will do, and its chance is nil.
    empty = norm == 0
    head, norm = head.masked_fill(empty, 1.0), norm.masked_fill(empty, 1.0)
    image = -torch.copysign(norm, head)
    normal.div_((head - image).unsqueeze(-2).to(normal.dtype))
    diagonal.fill_(1.0)
    torch.diagonal(q, offset=-start, dim1=-2, dim2=-1).copy_(image.sign())
