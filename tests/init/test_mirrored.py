"""The looks-linear blocks of one layer."""

import math

import pytest
import torch

from isometry.errors import InvalidValueError
from isometry.init.mirrored import Mirrored, Rotation, Width
from isometry.layout import grouped


def draw(law: Mirrored, *shape: int) -> torch.Tensor:
    return law.draw(shape, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 6), (6, 8), (7, 5), (5, 7), (3, 2)])
def test_hidden_blocks(outputs: int, inputs: int) -> None:
    weight = draw(Mirrored(0.5), outputs, inputs)
    m, n = outputs // 2, inputs // 2
    W = weight[:m, :n]
    assert torch.equal(weight[:m, n : 2 * n], -W)
    assert torch.equal(weight[m : 2 * m, : 2 * n], -weight[:m, : 2 * n])
    assert not weight[:, 2 * n :].any(), "nothing reads a spare unit"
    gram = W @ W.T if m <= n else W.T @ W
    assert torch.allclose(gram, 0.25 * torch.eye(len(gram), dtype=W.dtype), atol=1e-6)


def test_spare_unit_reads_like_the_others() -> None:
    """An odd width's last unit has a row of the same length, so that it can learn."""
    for outputs, inputs in ((7, 12), (15, 4)):
        weight = draw(Mirrored(1.0, "first"), outputs, inputs)
        lengths = weight[: outputs // 2].norm(dim=1).square().mean().sqrt()
        assert float(weight[-1].norm()) == pytest.approx(float(lengths), rel=1e-6)


def test_first_last_and_only() -> None:
    first, last, only = (draw(Mirrored(1.0, part), 6, 4) for part in ("first", "last", "only"))
    assert torch.equal(first[:3], -first[3:])
    assert torch.equal(last[:, :2], -last[:, 2:])
    assert torch.allclose(only.T @ only, torch.eye(4, dtype=only.dtype), atol=1e-6)


def test_kernels_hold_the_blocks_on_one_tap() -> None:
    kernel = draw(Mirrored(1.0), 6, 4, 3, 4)
    assert torch.equal(kernel[:3, :, 1, 1], -kernel[3:, :, 1, 1])
    assert kernel.count_nonzero() == kernel[..., 1, 1].count_nonzero() == 24


def test_rotations_are_keyed() -> None:
    a = Rotation(1, 6, 4).draw()
    assert torch.equal(a, Rotation(1, 6, 4).draw())
    assert not torch.equal(a, Rotation(2, 6, 4).draw())
    assert torch.allclose(a.T @ a, torch.eye(4, dtype=a.dtype), atol=1e-6)


def test_two_layers_that_share_a_rotation_lose_nothing() -> None:
    """Narrow to wide to narrow: Haar matrices of their own would keep part of the signal only."""
    wide = [Rotation(1, 4, 4), Rotation(2, 20, 4), Rotation(3, 4, 4)]
    up = draw(Mirrored(1.0, "only", source=wide[0], target=wide[1]), 20, 4)
    down = draw(Mirrored(1.0, "only", source=wide[1], target=wide[2]), 4, 20)
    assert torch.allclose(torch.linalg.svdvals(down @ up), torch.ones(4, dtype=up.dtype), atol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(InvalidValueError, match="one block"):
        draw(Mirrored(1.0, layout=grouped((6, 4), 2)), 6, 4)
    with pytest.raises(InvalidValueError, match="two units"):
        draw(Mirrored(1.0), 1, 4)
    with pytest.raises(InvalidValueError, match="add up"):
        draw(Mirrored(1.0, reads=Width(1, 1)), 6, 4)
    with pytest.raises(InvalidValueError, match="scale"):
        Mirrored(math.nan)
