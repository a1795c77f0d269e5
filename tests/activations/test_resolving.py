"""Every way to name an activation, and every way in which something is none."""

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import activation as torch_activations

from isometry import gain
from isometry.activations import Activation, resolve
from isometry.activations.catalogue import ROWS, names, row_named
from isometry.errors import InvalidTypeError, InvalidValueError, NotFoundError

X = torch.linspace(-3.3, 3.7, 61, dtype=torch.float64)

NOT_POINTWISE = {"MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax"}
NEED_ARGUMENTS = {"Threshold": (0.2, -0.1)}


@pytest.mark.parametrize("name", sorted(set(torch_activations.__all__) - NOT_POINTWISE))
def test_every_activation_of_torch_by_name_class_and_instance(name):
    cls = getattr(nn, name)
    module = cls(*NEED_ARGUMENTS.get(name, ()))
    resolved = resolve(module.eval())
    if name == "GLU":
        assert resolved.gated
        assert torch.equal(resolved.fn(X), torch.sigmoid(X))
        return
    assert not resolved.gated
    torch.testing.assert_close(
        resolved.fn(X), copy.deepcopy(module).double()(X).detach(), rtol=1e-12, atol=1e-14
    )
    if name not in NEED_ARGUMENTS:
        by_name = resolve(name)
        if name != "RReLU":
            torch.testing.assert_close(by_name.fn(X), resolved.fn(X))
            torch.testing.assert_close(resolve(cls).fn(X), resolved.fn(X))


MODULES = {
    nn.LeakyReLU: {"negative_slope": 0.3},
    nn.ELU: {"alpha": 1.7},
    nn.CELU: {"alpha": 0.6},
    nn.GELU: {"approximate": "tanh"},
    nn.Softplus: {"beta": 2.0, "threshold": 5.0},
    nn.Softshrink: {"lambd": 0.3},
    nn.Hardshrink: {"lambd": 0.7},
    nn.Hardtanh: {"min_val": -0.7, "max_val": 1.3},
    nn.Threshold: {"threshold": 0.1, "value": -2.0},
}


@pytest.mark.parametrize("cls", MODULES, ids=lambda c: c.__name__)
def test_parameters_reach_the_map_from_instance_class_name_and_function(cls):
    params = MODULES[cls]
    expected = cls(**params)(X)
    name = row_named(cls.__name__).name
    for form in (resolve(cls(**params)), resolve(cls, **params), resolve(name, **params)):
        torch.testing.assert_close(form.fn(X), expected)
    function = getattr(F, name)
    torch.testing.assert_close(resolve(function, **params).fn(X), expected)
    torch.testing.assert_close(resolve(functools.partial(function, **params)).fn(X), expected)
    torch.testing.assert_close(resolve(type("Mine", (cls,), {})(**params)).fn(X), expected)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("LeakyReLU", "leaky_relu"), ("leaky-relu", "leaky_relu"), ("nn.GELU", "gelu"), ("swish", "silu"),
        ("torch.nn.functional.silu", "silu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu²", "relu2"), ("squared-relu", "relu2"), ("relu_squared", "relu2"), ("gelu_10", "clipped_gelu"),
        ("relu^2", "relu2"), ("exponential", "exp"),
        ("identity", "linear"), ("conv2d", "linear"), ("Tanh", "tanh"), ("hard_swish", "hardswish"),
        ("sine", "sin"), ("SiLU", "silu"), ("gated-silu", "swiglu"),
    ],
)  # fmt: skip
def test_aliases(name, same):
    assert resolve(name) == resolve(same)


def test_names_may_carry_their_parameters():
    assert (
        resolve("leaky_relu(0.2)") == resolve("leaky_relu", 0.2) == resolve("leaky_relu", negative_slope=0.2)
    )
    assert resolve("hardtanh(min_val=-0.7, max_val=1.3)") == resolve("hardtanh", min_val=-0.7, max_val=1.3)
    assert resolve("leaky_relu(0.2)").name == "leaky_relu(negative_slope=0.2)"
    for broken in ("leaky_relu(0.2", "leaky_relu(x)", "leaky_relu(0.2)[0]"):
        with pytest.raises(InvalidValueError, match="cannot read the activation"):
            resolve(broken)


def test_closed_forms_of_the_less_common_rows():
    z = torch.tensor([-1.5, 0.4, 2.0], dtype=torch.float64)
    sig = torch.sigmoid
    expected = {
        "quick_gelu": z * sig(1.702 * z),
        "relu2": torch.tensor([0.0, 0.16, 4.0], dtype=torch.float64),
        "softcap": 30 * torch.tanh(z / 30),
        "snake": z + torch.sin(z) ** 2,
        "squareplus": (z + (z * z + 4).sqrt()) / 2,
        "laplace": 0.5 * torch.erfc(-(z - 0.707107) / (0.282095 * math.sqrt(2))),
        "smelu": torch.tensor([0.0, 1.4**2 / 4, 2.0], dtype=torch.float64),
        "xielu": torch.tensor(
            [0.8 * (math.expm1(-1.5) + 1.5) - 0.75, 0.8 * 0.16 + 0.2, 0.8 * 4 + 1.0], dtype=torch.float64
        ),
        "hard_mish": torch.tensor([0.5 * -1.5 * 0.5, 0.4, 2.0], dtype=torch.float64),
        "serf": z * torch.erf(torch.log1p(z.exp())),
    }
    for name, values in expected.items():
        torch.testing.assert_close(resolve(name).fn(z), values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_the_catalogue_is_consistent(row):
    assert row.positional is None or row.positional in row.params
    assert row_named(row.name) is row
    if row.name != "threshold":
        assert isinstance(resolve(row.name), Activation)
        assert resolve(row.name) == resolve(resolve(row.name))


def test_names_are_unique():
    assert len(set(names())) == len(names())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: resolve("rleu"), NotFoundError, "did you mean 'relu'"),
        (lambda: resolve("wxyz"), NotFoundError, r"catalogue.names\(\)"),
        (lambda: resolve("relu", 0.1), InvalidValueError, "relu has no parameter"),
        (lambda: resolve("relu", alpha=0.1), InvalidValueError, "relu has no parameter alpha"),
        (lambda: resolve("elu", beta=0.1), InvalidValueError, "its parameters are alpha"),
        (lambda: resolve("leaky_relu", 0.1, negative_slope=0.2), InvalidValueError, "both param and"),
        (lambda: resolve("leaky_relu", "0.1"), InvalidTypeError, "must be a number"),
        (lambda: resolve("leaky_relu", True), InvalidTypeError, "must be a number"),
        (lambda: resolve("leaky_relu", math.nan), InvalidValueError, "must be finite"),
        (lambda: resolve("gelu", approximate=1), InvalidTypeError, "must be a string"),
        (lambda: resolve("threshold"), InvalidValueError, "needs threshold and value"),
        (lambda: resolve("softmax"), InvalidValueError, "normalises over a dimension"),
        (lambda: resolve(3.0), InvalidTypeError, "got float"),
        (lambda: resolve(None), InvalidTypeError, "got NoneType"),
        (lambda: resolve(int), InvalidTypeError, "no nn.Module"),
        (lambda: resolve(nn.Linear), InvalidValueError, "pass an instance"),
        (lambda: resolve(nn.Tanh(), alpha=1.0), InvalidValueError, "carries its own parameters"),
        (lambda: resolve(lambda x: x, 0.1), InvalidValueError, "param=0.1 needs an activation"),
    ],
)
def test_misuse_is_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (nn.Softmax(dim=-1), "no pointwise map"),
        (nn.LogSoftmax(dim=0), "no pointwise map"),
        (lambda x: torch.softmax(x, -1), "no pointwise map"),
        (lambda x: F.layer_norm(x, x.shape[-1:]), "no pointwise map"),
        (lambda x: x - x.mean(), "no pointwise map"),
        (lambda x: x * torch.linspace(0.9, 1.1, x.shape[-1], dtype=x.dtype), "no pointwise map"),
        (lambda x: x.cumsum(-1), "no pointwise map"),
        (lambda x: x.sort().values, "no pointwise map"),
        (lambda x: x.flip(-1), "no pointwise map"),
        (nn.LayerNorm(7), "raised RuntimeError"),
        (nn.Linear(5, 3), "raised RuntimeError"),
        (nn.MultiheadAttention(4, 2), "raised TypeError"),
        (lambda x: x[..., : x.shape[-1] // 2], "gated=True"),
        (lambda x: x.sum(), "no pointwise map"),
        (lambda x: x > 0, "torch.bool"),
        (lambda x: x + 1j, "torch.complex128"),
        (lambda x: x.long(), "torch.int64"),
        (lambda x: (x, x), "got tuple"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda x: x + torch.randn_like(x), "different results for the same input"),
        (lambda x: F.dropout(x, 0.5, training=True), "different results for the same input"),
    ],
)
def test_what_is_no_pointwise_map_is_refused_with_a_reason(fn, message):
    with pytest.raises(InvalidValueError, match=message):
        resolve(fn)


class Counting(nn.Module):
    """Float32 parameters, a buffer that counts calls, an in-place activation, a random submodule."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.calls += 1
        return self.drop(F.relu_(x) * self.scale)


def test_the_users_module_and_random_state_are_untouched():
    module = Counting()
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    module.scale.grad = torch.tensor(7.0)
    state = torch.random.get_rng_state()
    assert gain(module, direction="backward") == pytest.approx(
        1 / 1.5, rel=1e-12
    )  # ½·2·1.5²… per unit of slope
    assert torch.equal(torch.random.get_rng_state(), state)
    assert seen == []
    assert module.training
    assert int(module.calls) == 0
    assert module.scale.dtype == torch.float32
    assert module.scale.requires_grad
    assert float(module.scale.grad) == 7.0
    with pytest.raises(InvalidValueError):
        gain(nn.BatchNorm1d(3))


def test_random_state_is_kept_even_by_random_functions():
    state = torch.random.get_rng_state()
    with pytest.raises(InvalidValueError):
        resolve(lambda x: x + torch.randn_like(x))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_prelu_takes_its_own_slopes_channel_by_channel():
    module = nn.PReLU(num_parameters=50)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-0.2, 0.9, 50))
    slopes = module.weight.detach().double()
    expected = math.sqrt(2 / (1 + float((slopes**2).mean())))
    assert gain(module) == pytest.approx(expected, rel=1e-12)
    assert gain(nn.Sequential(module), direction="backward") == pytest.approx(expected, rel=1e-12)
    # The three points that stand for 50 slopes have the same first five moments.
    mixture = resolve(module).mixture
    assert len(mixture) == 3
    points = torch.stack([fn(-torch.ones(1, dtype=torch.float64)) for _, fn in mixture]).flatten() * -1
    weights = torch.tensor([w for w, _ in mixture], dtype=torch.float64)
    for power in range(6):
        assert float(weights @ points**power) == pytest.approx(float((slopes**power).mean()), rel=1e-10)
    assert gain(nn.PReLU()) == pytest.approx(math.sqrt(2 / (1 + 0.25**2)), rel=1e-7)


def test_meta_modules_and_too_many_random_parts_are_refused():
    with pytest.raises(InvalidValueError, match="meta device"):
        gain(nn.PReLU(device="meta"))
    with pytest.raises(InvalidValueError, match="7 random submodules"):
        gain(nn.Sequential(*(nn.Dropout(0.1) for _ in range(7))))
    with pytest.raises(InvalidValueError, match="0 <= p < 1"):
        gain(nn.Dropout(1.0))


def test_a_shared_random_module_is_drawn_anew_at_every_use():
    drop = nn.Dropout(0.5)
    assert gain(nn.Sequential(drop, nn.ReLU(), drop)) == pytest.approx(math.sqrt(2 * 0.25), rel=1e-12)
