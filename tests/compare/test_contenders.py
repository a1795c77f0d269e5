import math

import pytest
import torch
from torch import nn

from isometry.compare.contenders import STARTS, WITH_GAIN, activation_of, contender, no_mirror
from isometry.errors import InvalidTypeError, InvalidValueError, NotFoundError
from isometry.gain import gain
from isometry.planning import init_


def net(activation=nn.ReLU):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(300, 400),
            activation(),
            nn.LayerNorm(400),
            nn.Linear(400, 500),
            activation(),
            nn.Linear(500, 7),
        )


def started(name, activation="relu", model=None):
    model = model or net()
    contender(name, lambda: activation).initialise(model, 0)
    return model


def spread(module):
    return module.weight.detach().double().std().item()


def tolerance(module):
    """Five standard errors of a sample standard deviation, relative."""
    return 5 / math.sqrt(2 * module.weight.numel())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("standard_normal", lambda fan_in, fan_out: 1.0),
        ("torch", lambda fan_in, fan_out: 1 / math.sqrt(3 * fan_in)),
        ("kaiming", lambda fan_in, fan_out: gain("gelu") / math.sqrt(fan_in)),
        ("xavier", lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out))),
        ("wrong_gain", lambda fan_in, fan_out: math.sqrt(2 / fan_in)),
    ],
)
def test_the_weights_have_the_spread_the_name_promises(name, expected):
    for module in (started(name, "gelu")[0], started(name, "gelu")[3]):
        fan_out, fan_in = module.weight.shape
        assert spread(module) == pytest.approx(expected(fan_in, fan_out), rel=tolerance(module))


def test_orthogonal_has_the_gain_of_the_activation():
    wide = started("orthogonal", "tanh")[3].weight.detach().double()
    singular = torch.linalg.svdvals(wide)
    # 400 → 500: orthonormal columns, scaled by √(500/400) to keep the second moment.
    assert torch.allclose(singular, torch.full_like(singular, gain("tanh") * math.sqrt(500 / 400)), rtol=1e-5)


def test_mirrored_makes_the_whole_network_linear():
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 7))
    started("mirrored", "relu", model)
    x, y = torch.randn(2, 9, 30, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(x + y), model(x) + model(y), atol=1e-5)


def test_torch_is_the_model_as_it_was_built():
    built, untouched = started("torch"), net()
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), untouched.parameters(), strict=True))


@pytest.mark.parametrize(
    ("activation", "wrong"),
    [("relu", "tanh"), (nn.LeakyReLU(0.01), "tanh"), ("gelu", "relu"), ("tanh", "relu"), ("elu", "relu")],
)
def test_a_wrong_gain_is_wrong(activation, wrong):
    made = contender("wrong_gain", lambda: activation)
    assert f"{wrong}'s gain" in made.description
    assert abs(gain(wrong) / gain(activation) - 1) > 0.05


def test_the_same_seed_gives_the_same_weights_and_the_global_state_stays():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    for name in STARTS:
        first, second, other = net(), net(), net()
        for model, seed in ((first, 3), (second, 3), (other, 4)):
            contender(name, lambda: "relu", lambda _: "8x300").initialise(model, seed)
        assert torch.equal(first[0].weight, second[0].weight), name
        assert torch.equal(first[0].weight, other[0].weight) == (name == "torch"), name
    assert torch.equal(torch.get_rng_state(), before)


def test_which_starts_ask_for_the_activation():
    asked = set()
    for name in STARTS:
        contender(name, lambda name=name: asked.add(name) or "relu", lambda _: "8x300")
    assert asked == WITH_GAIN


def test_ones_own_start_by_function_and_by_pair():
    def zeros(model):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)

    for start, name in ((zeros, "zeros"), (("blank", zeros), "blank")):
        model = net()
        made = contender(start, lambda: "relu")
        made.initialise(model, 0)
        assert made.name == name
        assert not any(parameter.any() for parameter in model.parameters())


def test_a_start_that_is_none_is_refused():
    with pytest.raises(NotFoundError, match="did you mean 'kaiming'"):
        contender("kaimin", lambda: "relu")
    with pytest.raises(InvalidTypeError, match="got 3"):
        contender(3, lambda: "relu")
    with pytest.raises(InvalidTypeError, match="a start is a name"):
        contender(("x", 3), lambda: "relu")
    with pytest.raises(InvalidValueError, match="no mirrored slope"):
        contender("mirrored", lambda: "tanh")


@pytest.mark.parametrize(("name", "recipe"), [("auto", "auto"), ("recipe:lecun", "lecun")])
def test_a_recipe_is_planned_on_the_inputs(name, recipe):
    seen = []

    def inputs(seed):
        seen.append(seed)
        return torch.full((8, 300), 2.0)

    model, expected = net(), net()
    made = contender(name, lambda: "relu", inputs)
    assert (made.name, seen) == (name, [])
    made.initialise(model, 5)
    init_(expected, torch.full((8, 300), 2.0), recipe=recipe, seed=5)
    assert seen == [5]
    assert torch.equal(model[0].weight, expected[0].weight)
    # Inputs of RMS 2: a recipe that looks at them halves the first weight, one from the literature does not.
    halved = 2 if recipe == "auto" else 1
    assert spread(model[0]) == pytest.approx(1 / math.sqrt(300) / halved, rel=tolerance(model[0]))


def test_a_recipe_needs_a_known_name_and_inputs():
    with pytest.raises(InvalidValueError, match="unknown recipe 'deepnrm': did you mean 'deepnorm'"):
        contender("recipe:deepnrm", lambda: "relu", lambda _: "8x300")
    with pytest.raises(InvalidValueError, match="give inputs"):
        contender("auto", lambda: "relu")


def test_the_activation_is_asked_for_only_where_it_matters():
    def unknown():
        raise AssertionError("not needed")

    for name in ("standard_normal", "torch", "xavier"):
        contender(name, unknown)


def test_the_activation_of_a_model():
    assert isinstance(activation_of(net(nn.GELU)), nn.GELU)
    with_head = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 5), nn.Softmax(-1))
    assert isinstance(activation_of(with_head), nn.SiLU)
    in_place = nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True))
    assert isinstance(activation_of(in_place), nn.ReLU)
    with pytest.raises(InvalidValueError, match="no activation module"):
        activation_of(nn.Linear(3, 4))
    with pytest.raises(InvalidValueError, match=r"has several \(relu, tanh\)"):
        activation_of(nn.Sequential(nn.ReLU(), nn.Tanh()))
    with pytest.raises(InvalidValueError, match="several"):
        activation_of(nn.Sequential(nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)))


def test_no_mirror_tells_why():
    chain = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.3), nn.Linear(4, 2))
    before = chain[0].weight.clone()
    assert no_mirror(chain, nn.LeakyReLU(0.3)) is None
    assert torch.equal(chain[0].weight, before)
    assert "no mirrored slope" in no_mirror(chain, "sigmoid")
    assert no_mirror(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LSTM(4, 5)), "relu")
