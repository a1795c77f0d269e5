"""What the initialisers of tensors take as arguments, and what they refuse."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isometry import init
from isometry.errors import (
    InvalidTypeError,
    InvalidValueError,
    IsometryError,
    IsometryWarning,
    NotFoundError,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: init.variance_scaling_(w, math.nan), "scale"),
        (lambda w: init.variance_scaling_(w, -1.0), "negative"),
        (lambda w: init.variance_scaling_(w, mode="fan_inn"), "did you mean 'fan_in'"),
        (lambda w: init.variance_scaling_(w, distribution="normal_"), "did you mean 'normal'"),
        (lambda w: init.variance_scaling_(w, groups=2, in_axis=0), "groups="),
        (lambda w: init.variance_scaling_(w, groups=5), "divide"),
        (lambda w: init.xavier_normal_(w, math.inf), "gain"),
        (lambda w: init.kaiming_normal_(w, math.nan), "a must be finite"),
        (lambda w: init.kaiming_normal_(w, mode="fan_out_"), "did you mean 'fan_out'"),
        (lambda w: init.orthogonal_(w, math.nan), "gain"),
        (lambda w: init.orthogonal_(w, mode="fan"), "unknown mode"),
        (lambda w: init.delta_orthogonal_(w), "use orthogonal_"),
        (lambda w: init.mirrored_(w, "tanh"), "tanh"),
        (lambda w: init.mirrored_(w, part="middle"), "unknown part"),
        (lambda w: init.mirrored_(w, gain=math.nan), "gain"),
        (lambda w: init.mirrored_(w[:, :1]), "two units"),
        (lambda w: init.dirac_(w), "use eye_"),
        (lambda w: init.identity_(w[0]), "use dirac_"),
        (lambda w: init.sparse_(w, 1.5), "sparsity"),
        (lambda w: init.sparse_(w, 0.5, math.nan), "std"),
        (lambda w: init.sparse_(w[0], 0.5), "matrix"),
        (lambda w: init.chrono_(w, 10), "gates"),
        (lambda w: init.chrono_(w[0], 2), "t_max"),
        (lambda w: init.icnr_(w), "convolution"),
        (lambda w: init.siren_uniform_(w, 0.0), "omega"),
        (lambda w: init.normal_(w, 0.0, math.nan), "std"),
        (lambda w: init.normal_(w, 0.0, -1.0), "std"),
        (lambda w: init.uniform_(w, 1.0, 0.0), "low"),
        (lambda w: init.constant_(w, math.nan), "val"),
        (lambda w: init.trunc_normal_(w, mean=3.0), "between the bounds"),
        (lambda w: init.trunc_normal_(w, std=1.2), "too narrow"),
        (lambda w: init.trunc_normal_(w, std=math.nan), "std"),
        (lambda w: init.lecun_normal_(w[0]), "input and an output axis"),
    ],
)
def test_bad_arguments_are_one_clear_error(call: Callable[[Tensor], Tensor], message: str) -> None:
    tensor = torch.zeros(6, 4)
    with pytest.raises(InvalidValueError, match=message):
        call(tensor)
    assert not tensor.any()


def test_unknown_activation_comes_with_the_nearest_name() -> None:
    with pytest.raises(NotFoundError, match="gelu") as caught:
        init.kaiming_normal_(torch.zeros(6, 4), nonlinearity="geluu")
    assert isinstance(caught.value, IsometryError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: init.kaiming_normal_(w, "x"), "a must be a number"),
        (lambda w: init.xavier_normal_(w, None), "gain must be a number"),
        (lambda w: init.constant_(w, "x"), "val must be a number"),
        (lambda w: init.trunc_normal_(w, 0.0, "1"), "std must be a number"),
        (lambda w: init.trunc_normal_(w, a=None), "a must be a number"),
        (lambda w: init.siren_uniform_(w, "x"), "omega must be a number"),
        (lambda w: init.sparse_(w, "x"), "sparsity must be a number"),
        (lambda w: init.chrono_(w[:, 0], "x"), "t_max must be a number"),
        (lambda w: init.mirrored_(w, "leaky_relu", a="x"), "a must be a number"),
        (lambda w: init.variance_scaling_(w, groups=2.0), "groups must be an int"),
    ],
)
def test_arguments_that_are_no_number_are_named(call: Callable[[Tensor], Tensor], message: str) -> None:
    tensor = torch.zeros(6, 4)
    with pytest.raises(InvalidTypeError, match=message):
        call(tensor)
    assert not tensor.any()


@pytest.mark.parametrize("factor", [0, 1.5, True])
def test_the_factor_of_icnr_is_a_whole_number(factor: float) -> None:
    with pytest.raises(InvalidValueError, match="upscale_factor"):
        init.icnr_(torch.zeros(8, 3, 3, 3), factor)


def test_a_is_ignored_where_torch_ignores_it_and_that_is_said() -> None:
    plain = init.kaiming_normal_(torch.empty(6, 4), nonlinearity="relu", generator=generator())
    with pytest.warns(IsometryWarning, match=r"a=0\.2 .* ignored for 'relu'"):
        weight = init.kaiming_normal_(torch.empty(6, 4), 0.2, nonlinearity="relu", generator=generator())
    assert torch.equal(weight, plain)


@pytest.mark.parametrize("name", ["LeakyReLU", "leaky-relu", "lrelu"])
def test_other_spellings_of_leaky_relu_take_the_slope_likewise(name: str) -> None:
    expected = init.kaiming_normal_(torch.empty(6, 4), nonlinearity="leaky_relu", generator=generator())
    assert torch.equal(
        init.kaiming_normal_(torch.empty(6, 4), nonlinearity=name, generator=generator()), expected
    )


def test_mirrored_weights_take_the_slope_that_the_layer_has_by_default() -> None:
    named = init.mirrored_(torch.empty(6, 4), "leaky_relu", generator=generator())
    layer = init.mirrored_(torch.empty(6, 4), nn.LeakyReLU(), generator=generator())
    assert torch.equal(named, layer)
