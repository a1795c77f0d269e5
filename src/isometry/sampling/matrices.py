"""Haar-distributed orthogonal matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def haar(
    batch: int, rows: int, cols: int, generator: torch.Generator | None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw `batch` Haar-distributed matrices with orthonormal rows (rows <= cols) or columns."""
    tall = torch.randn(batch, max(rows, cols), min(rows, cols), generator=generator, dtype=torch.float32)
    q, r = torch.linalg.qr(tall)
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return (q if rows >= cols else q.transpose(-1, -2)).to(dtype)
