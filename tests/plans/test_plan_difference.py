"""Plans beside plans and beside weights."""

import pytest
import torch
from plan_cases import Model, Unregistered, plan_of, same, state
from torch import nn
from torch.nn.utils import parametrizations

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.init.mirrored import Mirrored
from isometry.init.structured import ICNR, Chrono, DeltaOrthogonal, Gates, Identity, Orthogonal, Sparse
from isometry.plans import Plan, PlanDiff, Row
from isometry.plans.comparing import misfits
from isometry.plans.sizes import Size
from isometry.sampling import Constant, Normal, TruncatedNormal, Uniform, write_

PLAN = plan_of(Model())


def fields(diff, name):
    return {row.field: (row.planned, row.found) for row in diff if row.name == name and row.differs}


def test_equal_plans_do_not_differ():
    diff = PLAN.diff(plan_of(Model()))
    assert not diff
    assert len(diff) == 0
    assert str(diff).startswith("Two plans: no difference")


def test_what_changed_is_named():
    rows = [row for row in PLAN if row.name != "up.bias"]
    other = Plan((*rows, Row("new", (2,), "bias", Constant(0.0), "")), "other", "forward")
    other = other.override({"up.weight": 0.5, "down.weight": Normal(0.3), "norm.weight": None})
    diff = PLAN.diff(other)
    assert diff
    assert fields(diff, "up.bias") == {"row": ("normal", None)}
    assert fields(diff, "new") == {"row": (None, "= 0")}
    assert fields(diff, "up.weight") == {"std": (0.2, 0.5)}
    assert fields(diff, "down.weight") == {"law": ("orthogonal", "normal")}
    assert fields(diff, "norm.weight") == {"law": ("= 1", "kept"), "std": (0.0, None)}
    assert {row.name for row in diff} == {"up.bias", "new", "up.weight", "down.weight", "norm.weight"}
    assert "up.weight" in str(diff)
    rated = plan_of(Model(), rates={"up.weight": 2.0})
    assert fields(PLAN.diff(rated), "up.weight") == {"rate": (1.0, 2.0)}


def test_laws_that_differ_in_a_detail_alone_are_shown_in_full():
    laws = Orthogonal(1.0), Orthogonal(1.0, None, True)
    first, second = (Plan((Row("w", (4, 4), "", law, ""),), "", "") for law in laws)
    assert fields(first.diff(second), "w") == {"law": (repr(laws[0]), repr(laws[1]))}


def test_json_comes_back(tmp_path):
    for diff in (PLAN.diff(PLAN.override({"up.*": None})), PLAN.diff(Model())):
        diff.save(tmp_path / "diff.json")
        assert PlanDiff.load(tmp_path / "diff.json") == diff
    with pytest.raises(InvalidValueError, match='against must be "plan" or "model"'):
        PlanDiff.from_json('{"schema": "isometry.plan-diff", "version": 1, "against": 3, "rows": []}')


def test_weights_drawn_by_the_plan_fit_it():
    for seed in range(20):
        model = PLAN.apply_(Model(), seed=seed)
        before = state(model)
        assert not PLAN.diff(model), seed
        assert same(state(model), before)


LAWS = {
    "normal": (Normal(0.3, 0.1), (30, 40)),
    "short": (Normal(0.3), (2,)),
    "single": (Normal(0.3), (1,)),
    "uniform": (Uniform(-0.1, 0.4), (30, 40)),
    "truncated": (TruncatedNormal(0.3), (30, 40)),
    "constant": (Constant(0.1), (7,)),
    "orthogonal": (Orthogonal(0.3), (30, 20)),
    "delta": (DeltaOrthogonal(0.3), (8, 6, 3)),
    "identity": (Identity(0.7), (5, 6)),
    "sparse": (Sparse(0.9, 0.3), (40, 30)),
    "gates": (Gates((0.0, 1.0)), (8,)),
    "chrono": (Chrono(100), (40,)),
    "icnr": (ICNR(Normal(0.3), 9), (18, 2, 3)),
    "mirrored": (Mirrored(0.3), (9, 7)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_law_fits_what_it_draws(dtype):
    model = nn.ParameterDict({name: torch.zeros(shape, dtype=dtype) for name, (_, shape) in LAWS.items()})
    plan = Plan(tuple(Row(name, shape, "", law, "") for name, (law, shape) in LAWS.items()), "", "")
    for seed in range(30):
        diff = plan.diff(plan.apply_(model, seed=seed))
        assert not diff, (seed, str(diff))


@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("short", "single")])
def test_weights_of_another_size_do_not_fit(name):
    law, shape = LAWS[name]
    model = nn.ParameterDict({name: torch.zeros(shape)})
    plan = Plan((Row(name, shape, "", law, ""),), "", "")
    plan.apply_(model)
    with torch.no_grad():
        model[name] *= 3
    assert plan.diff(model)


def test_the_test_is_sharp():
    """At 10,000 entries a deviation that is 5 % off is found, one that is 1 % off is not."""
    size = Size(0.0, 1.0)
    assert misfits(size, 0.0, 1.05, 10_000) == (False, True)
    assert misfits(size, 0.0, 1.01, 10_000) == (False, False)
    assert misfits(size, 0.06, 1.0, 10_000) == (True, False)
    assert misfits(size, float("nan"), float("nan"), 10_000) == (True, True)


def test_other_weights_are_shown_beside_what_is_planned():
    model = PLAN.apply_(Model())
    nn.init.normal_(model.up.weight, 0.0, 0.9)
    with torch.no_grad():
        model.norm.weight[0] = float("inf")
    diff = PLAN.diff(model)
    assert {row.name for row in diff if row.differs} == {"up.weight", "norm.weight"}
    planned, found = fields(diff, "up.weight")["std"]
    assert planned == 0.2
    assert found == pytest.approx(float(model.up.weight.detach().std(correction=0)), rel=1e-6)
    lines = str(diff).split("\n")
    assert lines[0] == "Plan and present weights: 2 parameters differ"
    assert next(line for line in lines if line.startswith("up.weight")).endswith("std off")


def test_the_row_of_padding_is_left_out():
    plan = plan_of(Model(), laws={"embed.weight": Constant(0.5)})
    model = plan.apply_(Model())
    assert not model.embed.weight[2].any()
    assert not plan.diff(model)


def test_rows_and_parameters_without_each_other_differ():
    model = nn.Sequential(nn.Linear(5, 4))
    rows = (Row("0.weight", (4, 6), "", Normal(0.5), ""), Row("1.bias", (3,), "", None, ""))
    text = str(diff := Plan(rows, "", "").diff(model))
    assert fields(diff, "0.weight") == {"shape": ("4×6", "4×5")}
    assert fields(diff, "1.bias") == {"row": ("kept", None)}
    assert fields(diff, "0.bias") == {"row": (None, "parameter")}
    for words in ("planned with shape 4×6, has 4×5", "not in the model", "not in the plan"):
        assert words in text


def test_laws_of_unknown_size_are_shown_and_not_judged():
    plan = plan_of(Model(), laws={"up.weight": Unregistered(3.0), "up.bias": None})
    diff = plan.diff(plan.apply_(Model()))
    assert not diff
    assert next(row for row in diff if row.name == "up.weight").planned is None
    assert not [row for row in diff if row.name == "up.bias"]


def test_parametrised_weights_are_those_in_effect():
    normed = parametrizations.weight_norm(nn.Linear(40, 30))
    spectral = parametrizations.spectral_norm(nn.Linear(40, 30))
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(40, 30))
    rows = (Row("weight", (30, 40), "", Normal(0.7), ""), Row("bias", (30,), "", Constant(0.0), ""))
    for layer in (normed, spectral, old):
        plan = Plan(rows, "", "")
        assert not plan.diff(plan.apply_(layer)), "spectral_norm decides its own size"
    write_(old, {"weight_g": Constant(9.0)})
    assert {row.name for row in plan.diff(old) if row.differs} == {"weight"}


def test_without_values_there_is_nothing_to_compare():
    with torch.device("meta"):
        model = Model()
    with pytest.raises(ModelError, match=r"'embed.weight' is on the meta device"):
        PLAN.diff(model)
    with pytest.raises(InvalidTypeError, match=r"a Plan or a torch.nn.Module"):
        PLAN.diff("plan.json")


def test_layers_that_are_alike_share_a_line():
    layers = [nn.Linear(16, 16) for _ in range(20)]
    model = nn.Sequential(*layers, nn.Linear(16, 4), nn.LayerNorm(4))
    plan = plan_of(model, laws={"21.weight": Constant(1.0)}).override({"*.bias": Constant(0.0)})
    plan.apply_(model)
    lines = str(plan.diff(model)).split("\n")
    assert [line.split()[0] for line in lines[4:-1]] == [
        *("0…19.weight", "0…19.bias", "20.weight", "20.bias", "21.weight", "21.bias"),
    ]
    nn.init.normal_(model[7].weight)
    text = str(plan.diff(model))
    assert "7.weight" in text
    assert "8…19.weight ×12" in text
    changed = str(plan.diff(plan.override({"*.weight": 0.5})))
    assert "0…19.weight ×20" in changed
