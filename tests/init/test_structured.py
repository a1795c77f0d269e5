"""Joint distributions: orthogonality per block, Haar measure, exact mean squares."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from isometry.errors import InvalidValueError
from isometry.fans import fans
from isometry.init.structured import (
    ICNR,
    Chrono,
    DeltaOrthogonal,
    Gates,
    Identity,
    Orthogonal,
    Sparse,
    draw_any,
    of_kind,
)
from isometry.layout import layout_of_axes
from isometry.sampling import Constant, Normal, Whole


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MODULES = {
    "linear": (nn.Linear(6, 10), "weight"),
    "linear wide": (nn.Linear(10, 6), "weight"),
    "conv groups": (nn.Conv2d(6, 12, 3, groups=3), "weight"),
    "conv transposed": (nn.ConvTranspose2d(6, 8, 3, groups=2), "weight"),
    "lstm": (nn.LSTM(5, 7), "weight_ih_l0"),
    "gru": (nn.GRU(9, 4), "weight_hh_l0"),
    "attention": (nn.MultiheadAttention(8, 2), "in_proj_weight"),
    "attention split": (nn.MultiheadAttention(8, 2, kdim=6, vdim=10), "v_proj_weight"),
    "bilinear": (nn.Bilinear(3, 4, 5), "weight"),
}


@pytest.mark.parametrize("key", MODULES)
def test_every_block_is_a_scaled_orthogonal_matrix_of_its_own(key: str) -> None:
    module, name = MODULES[key]
    layout = fans(module, name).layout
    drawn = Orthogonal(0.5, layout, precise=True).draw(tuple(getattr(module, name).shape), generator())
    blocks = layout.kernels(drawn).flatten(2)
    gram = blocks @ blocks.mT if blocks.shape[1] <= blocks.shape[2] else blocks.mT @ blocks
    square = 0.25 * max(blocks.shape[1:])
    assert torch.allclose(
        gram, (square * torch.eye(gram.shape[1], dtype=gram.dtype)).expand_as(gram), atol=1e-9
    )
    for one, other in pairwise(blocks):
        assert not torch.allclose(one, other)


def test_orthogonal_is_haar() -> None:
    """Under the Haar measure E[tr Q] = 0 and E[(tr Q)²] = 1; QR without the sign of R gives neither."""
    layout = layout_of_axes((4000, 5, 5), in_axis=2, out_axis=1, batch_axis=0)
    drawn = Orthogonal(1 / math.sqrt(5), layout).draw((4000, 5, 5), generator())
    traces = drawn.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(float(traces.mean())) < 5 / math.sqrt(4000)
    squares = traces.square()
    assert abs(float(squares.mean()) - 1) < 5 * float(squares.std()) / math.sqrt(4000)


@pytest.mark.parametrize("key", ["conv groups", "conv transposed"])
def test_delta_orthogonal_is_one_tap_per_group(key: str) -> None:
    module, name = MODULES[key]
    layout = fans(module, name).layout
    law = DeltaOrthogonal(0.5, layout, tap=(0, 2), precise=True)
    kernels = layout.kernels(law.draw(tuple(module.weight.shape), generator()))
    matrices = kernels[..., 0, 2]
    assert kernels.count_nonzero() == matrices.count_nonzero() == matrices.numel()
    small = matrices.mT @ matrices if matrices.shape[1] >= matrices.shape[2] else matrices @ matrices.mT
    square = 0.25 * max(matrices.shape[1:])
    assert torch.allclose(
        small, (square * torch.eye(small.shape[1], dtype=small.dtype)).expand_as(small), atol=1e-9
    )


def test_identity_of_a_declared_layout() -> None:
    layout = layout_of_axes((2, 3, 4), in_axis=1, out_axis=2, batch_axis=0)
    drawn = Identity(2.0, layout).draw((2, 3, 4), generator())
    assert torch.equal(drawn, 2 * torch.eye(3, 4).expand(2, 3, 4))


def test_gates_and_chrono_need_equal_gates() -> None:
    assert Gates((1.0, 2.0)).draw((6,), generator()).tolist() == [1, 1, 1, 2, 2, 2]
    for law in (Gates((1.0, 2.0)), Chrono(10)):
        with pytest.raises(InvalidValueError, match="gates"):
            law.draw((7,), generator())
        with pytest.raises(InvalidValueError, match="gates"):
            law.draw((4, 4), generator())


def test_icnr_of_a_joint_law() -> None:
    drawn = ICNR(Orthogonal(1.0), copies=3).draw((6, 4, 3), generator())
    assert torch.equal(drawn[::3], drawn[2::3])
    small = drawn[::3].flatten(1)
    assert torch.allclose(small @ small.T, 12 * torch.eye(2), atol=1e-4)


def test_draw_any_draws_both_kinds() -> None:
    assert draw_any(Constant(3.0), (2,), generator()).tolist() == [3, 3]
    assert draw_any(Gates((3.0,)), (2,), generator()).tolist() == [3, 3]
    assert not torch.equal(
        draw_any(Normal(1.0), (9,), generator(0)), draw_any(Normal(1.0), (9,), generator(1))
    )


@pytest.mark.parametrize("kind", ["normal", "uniform", "truncated_normal", "orthogonal"])
def test_of_kind_has_the_mean_square_asked_for(kind: str) -> None:
    drawn = draw_any(of_kind(kind, 0.3), (200, 150), generator())
    assert float(drawn.square().mean().sqrt()) == pytest.approx(0.3, rel=5 * math.sqrt(2 / 30_000) / 2)


@pytest.mark.parametrize("law", [Orthogonal, DeltaOrthogonal])
@pytest.mark.parametrize("std", [math.nan, -1.0, math.inf])
def test_bad_std(law: type[Whole], std: float) -> None:
    with pytest.raises(InvalidValueError, match="std"):
        law(std)


def test_bad_parameters() -> None:
    with pytest.raises(InvalidValueError, match="gain"):
        Identity(math.nan)
    with pytest.raises(InvalidValueError, match="gate"):
        Gates((math.nan,))
    with pytest.raises(InvalidValueError, match="matrix"):
        Sparse(0.5).draw((2, 3, 4), generator())
