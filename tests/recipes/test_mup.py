"""mup and depth-mup against their tables, and in training: widths and depths that learn alike."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.sampling import Constant

X = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (16,), generator=torch.Generator().manual_seed(1))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )


# Table 3 of Tensor Programs V at four times the base width 8: variance, Adam's rate, SGD's rate.
TABLE = {
    "0.weight": (1 / 10, 1.0, 4.0),
    "0.bias": (0.0, 1.0, 4.0),
    "2.weight": (1 / 32, 1 / 4, 1.0),
    "2.bias": (0.0, 1.0, 4.0),
    "4.weight": (8 / 32**2, 1 / 4, 1 / 4),
    "4.bias": (0.0, 1.0, 1.0),
}


@pytest.mark.parametrize("option", [{"base": mlp(8)}, {"base": lambda: mlp(8)}, {"base_width": 8}])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_table_3(option: dict[str, object], optimizer: str) -> None:
    plan = isometry.plan(mlp(32), X, recipe="mup", optimizer=optimizer, **option)
    for name, (variance, adam, sgd) in TABLE.items():
        assert plan[name].std == pytest.approx(math.sqrt(variance)), name
        assert plan[name].rate == pytest.approx(adam if optimizer == "adam" else sgd), name


def test_at_the_base_width_it_is_the_standard_parametrisation() -> None:
    plan = isometry.plan(mlp(32), X, recipe="mup", base=mlp(32))
    lecun = isometry.plan(mlp(32), X, recipe="lecun")
    assert {row.rate for row in plan} == {1.0}
    assert plan.laws == lecun.laws


def _change(width: int, recipe: str, lr: float = 0.01) -> float:
    """RMS of what three steps of Adam change the outputs by."""
    changes = []
    for seed in range(2):
        model = mlp(width)
        options = {"base_width": 64} if recipe == "mup" else {}
        plan = isometry.init_(model, X, recipe=recipe, seed=seed, **options)
        adam = torch.optim.Adam(plan.parameter_groups(model, lr))
        before = model(X).detach()
        for _ in range(3):
            adam.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            adam.step()
        changes.append(float((model(X).detach() - before).square().mean().sqrt()))
    return sum(changes) / len(changes)


def test_what_three_steps_of_adam_change_does_not_grow_with_the_width() -> None:
    assert _change(256, "mup") == pytest.approx(_change(64, "mup"), rel=0.25)
    assert _change(256, "kaiming") > 2.5 * _change(64, "kaiming")


class Convolutions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.wide = nn.Conv2d(width, 2 * width, 1)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.deep(F.relu(self.stem(x)))))
        return self.head(F.relu(self.wide(h)).mean((2, 3)))


def test_what_grows_is_told_by_the_base() -> None:
    x = torch.randn(4, 3, 6, 6)
    adam = isometry.plan(Convolutions(24), x, recipe="mup", base=Convolutions(8))
    sgd = isometry.plan(Convolutions(24), x, recipe="mup", base=Convolutions(8), optimizer="sgd")
    # A depthwise kernel is a vector in the paper's sense: its channels grow, its fan of 9 does not.
    assert adam["deep.weight"].std == pytest.approx(1 / 3)
    assert [adam[f"{n}.weight"].rate for n in ("stem", "deep", "norm", "wide", "head")] == pytest.approx(
        [1, 1, 1, 1 / 3, 1 / 3]
    )
    assert [sgd[f"{n}.weight"].rate for n in ("stem", "deep", "norm", "wide", "head")] == pytest.approx(
        [3, 3, 3, 1, 1 / 3]
    )
    assert adam["head.weight"].std ** 2 == pytest.approx(16 / 48**2)


def test_notes_tell_what_is_the_models_code() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.table(x)) @ self.table.weight.T

    plan = isometry.plan(Language(), torch.randint(11, (2, 5)), recipe="mup")
    assert any("not √d" in note for note in plan.notes)
    assert any("table and head in one" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"base": mlp(8), "base_width": 8}, InvalidValueError, "one of them"),
        ({"base": 8}, InvalidTypeError, "base must be a model"),
        ({"base": nn.Linear(10, 4)}, InvalidValueError, "differ in their parameters"),
        ({"base": nn.Linear(7, 4)}, ModelError, "base cannot be run"),
        ({"base_width": 0}, InvalidValueError, "base_width"),
        ({"optimizer": "lion"}, InvalidValueError, "optimizer must be one of"),
    ],
)
def test_options_that_make_no_sense(options, error, words) -> None:
    with pytest.raises(error, match=words):
        isometry.plan(mlp(16), X, recipe="mup", **options)


# --- depth ---


class Branches(nn.Module):
    """h + c·W₂φ(W₁·norm(h)), L times."""

    def __init__(self, depth: int, multiplier: float = 1.0) -> None:
        super().__init__()
        self.c = multiplier
        self.first, self.head = nn.Linear(10, 12), nn.Linear(12, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(12, 20) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(20, 12) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            h = h + self.c * down(torch.tanh(up(norm(h))))
        return self.head(h)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_factor_in_the_weight_learns_what_one_in_the_code_learns(optimizer: str) -> None:
    depth, steps = 4, 3
    folded, coded = Branches(depth).double(), Branches(depth, depth**-0.5).double()
    outputs = []
    for model, multiplier in ((folded, "weight"), (coded, "code")):
        options = {"optimizer": optimizer, "base_width": 6, "multiplier": multiplier}
        plan = isometry.init_(model, X.double(), recipe="depth-mup", **options)
        if optimizer == "adam":
            run = torch.optim.Adam(plan.parameter_groups(model, 0.01, eps=1e-30))
        else:
            run = torch.optim.SGD(plan.parameter_groups(model, 0.1))
        for _ in range(steps):
            run.zero_grad()
            F.cross_entropy(model(X.double()), Y).backward()
            run.step()
        outputs.append(model(X.double()).detach())
        rates = {row.name: row.rate for row in plan}
        inner = depth**-0.5 if optimizer == "adam" else 1.0
        assert rates["up.1.bias"] == pytest.approx(inner * (1.0 if optimizer == "adam" else 20 / 6))
        assert rates["norms.2.weight"] == pytest.approx(inner * (1.0 if optimizer == "adam" else 2.0))
        assert rates["first.bias"] == (1.0 if optimizer == "adam" else 2.0)
    # float32 draws times a factor rounded in float32: 1e-7 of the weights
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_branches_end_in_one_over_the_root_of_their_number() -> None:
    plan = isometry.plan(Branches(9), X, recipe="depth-mup")
    assert plan["down.3.weight"].std == pytest.approx(20**-0.5 / 3)
    assert plan["up.3.weight"].std == pytest.approx(12**-0.5)
    assert plan["up.3.weight"].rate == pytest.approx(256 / 12 / 3)
    assert plan["down.3.weight"].rate == pytest.approx(256 / 20 / 9)
    assert plan["down.3.bias"].rate == pytest.approx(1 / 9)
    assert plan["head.weight"].rate == pytest.approx(256 / 12)
    assert plan["norms.0.weight"].law == Constant(1.0)
    assert any("no residual branch" in n for n in isometry.plan(mlp(8), X, recipe="depth-mup").notes)
