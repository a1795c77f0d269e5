"""What goes with newly written parameters: rows of padding are zero, running statistics begin anew."""

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from isometry.initialisers.assignment import Use, modules_of
from isometry.sampling.shards import shard_of


@torch.no_grad()
def finish(model: nn.Module, written: Iterable[Use], plain: Callable[[Use], bool]) -> None:
    """Zero the padding rows of embeddings and the running statistics of normalisations.

    Args:
        model: The model whose parameters were just written.
        written: The uses of those parameters.
        plain: Whether a normalisation without parameters of its own begins anew, too.
    """
    uses = list(written)
    for use, row in padding_rows(uses):
        _zero_row(use.owner._parameters[use.leaf], row)
    scaled = {id(use.owner) for use in uses if use.role == "scale"}
    for place in modules_of(model):
        norm = place.owner
        if isinstance(norm, nn.modules.batchnorm._NormBase) and (
            id(norm) in scaled or (not norm.affine and plain(place))
        ):
            norm.reset_running_stats()


def padding_rows(uses: Iterable[Use]) -> Iterator[tuple[Use, int]]:
    """Yield the uses of embeddings' tables that have a row of padding, with its number."""
    for use in uses:
        padding, table = getattr(use.owner, "padding_idx", None), use.owner._parameters.get(use.leaf)
        if use.role == "embedding" and padding is not None and table is not None:
            yield use, int(cast("int", padding))


def _zero_row(table: Tensor | None, row: int) -> None:
    """Zero one row of a table, in the shard that holds it."""
    assert table is not None
    shard = shard_of(table)
    for run in shard.runs[0]:
        if run.start <= row < run.start + run.length:
            shard.local[run.local + row - run.start] = 0.0
