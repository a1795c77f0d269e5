"""Writing a plan into models: all or nothing, whatever they are wrapped in."""

import pytest
import torch
from plan_cases import Model, Unregistered, plan_of, same, state
from torch import nn
from torch.nn.utils import parametrizations

import isometry
from isometry import Mirrored
from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.plans import Plan, Row
from isometry.sampling import Constant, Normal, Uniform, fill_keyed_, incomplete, write_


def test_every_parameter_gets_its_law_from_its_own_stream():
    model, plan = Model(), plan_of(Model())
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert plan.apply_(model, seed=5) is model
    assert torch.equal(torch.random.get_rng_state(), before)
    for row in plan:
        drawn = fill_keyed_(torch.empty(row.shape), row.law, seed=5, name=row.name)
        if row.name == "embed.weight":
            drawn[2] = 0
        assert torch.equal(model.get_parameter(row.name), drawn), row.name
    assert model.head.weight is model.embed.weight
    assert not model.down.bias.requires_grad


def test_seeds_decide():
    plan = plan_of(Model())
    first, again, other = (plan.apply_(Model(), seed=seed) for seed in (1, 1, 2))
    assert same(state(first), state(again))
    assert not torch.equal(first.up.weight, other.up.weight)


def test_statistics_of_norms_begin_anew_unless_their_scale_is_kept():
    def used():
        model = Model()
        model(torch.arange(9))
        return model

    model = plan_of(Model()).apply_(used())
    assert not model.norm.running_mean.any()
    assert (model.norm.running_var == 1).all()
    assert not model.plain.running_mean.any()
    kept = plan_of(Model(), laws={"norm.weight": None}).apply_(used())
    assert kept.norm.running_mean.any()


def test_kept_rows_stay():
    model = Model()
    kept = model.up.weight.clone()
    plan_of(Model(), laws={"up.weight": None}).apply_(model)
    assert torch.equal(model.up.weight, kept)
    table = Model()
    with torch.no_grad():
        table.embed.weight[2] = 3.0
    plan_of(Model(), laws={"embed.weight": None}).apply_(table)
    assert (table.embed.weight[2] == 3).all(), "the padding of a table that is kept stays, too"


def test_a_model_on_meta_becomes_the_same():
    expected = plan_of(Model()).apply_(Model(), seed=4)
    with torch.device("meta"):
        model = Model()
    plan_of(Model()).apply_(model, seed=4, device="cpu", build=Model)
    assert same(state(model), state(expected))
    assert model.head.weight is model.embed.weight


def test_a_parameter_on_meta_cannot_be_kept():
    with torch.device("meta"):
        model = Model()
    kept = r"on the meta device and without values: 'up.weight'\. .*assign=True.*`overrides`"
    with pytest.raises(ModelError, match=kept):
        plan_of(model, laws={"up.weight": None}).apply_(model, build=Model)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_frozen_weight_on_meta_is_loaded_before_or_given_a_law():
    """What the message asks for works: values before the plan, which is then made for them, or a law."""

    def build():
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
        model[0].weight.requires_grad_(False)
        return model

    def on_meta():
        with torch.device("meta"):
            return build()

    x, values = torch.ones(4, 8), {"0.weight": torch.full((16, 8), 0.5)}
    with pytest.raises(ModelError, match=r"without values: '0.weight'"):
        isometry.init_(on_meta(), x)
    loaded, expected = on_meta(), build()
    loaded.load_state_dict(values, strict=False, assign=True)
    expected.load_state_dict(values, strict=False)
    for model in (loaded, expected):
        isometry.init_(model, x)
    assert same(state(loaded), state(expected))
    assert not loaded[0].weight.requires_grad
    drawn = on_meta()
    isometry.init_(drawn, x, overrides={"0.weight": 0.1})
    assert drawn[0].weight.std().item() == pytest.approx(0.1, rel=0.3)  # 128 entries


def test_a_device_is_for_meta():
    model = Model()
    before = state(model)
    with pytest.raises(InvalidValueError, match=r"device='cpu' is for models on the meta device"):
        plan_of(model).apply_(model, device="cpu")
    assert same(state(model), before)


def row(name, shape, law=Normal(0.5)):  # noqa: B008
    return Row(name, shape, "weight", law, "")


PLAIN = [row("0.weight", (4, 5)), row("0.bias", (4,)), row("1.weight", (3, 4)), row("1.bias", (3,))]


def test_parametrised_weights_go_by_their_own_name():
    first, second = nn.Linear(5, 4), nn.Linear(4, 3)
    model = nn.Sequential(parametrizations.weight_norm(first), parametrizations.spectral_norm(second))
    Plan(tuple(PLAIN), "tested", "forward").apply_(model, seed=1)
    drawn = [fill_keyed_(torch.empty(r.shape), r.law, seed=1, name=r.name) for r in PLAIN]
    torch.testing.assert_close(model[0].weight, drawn[0])
    for _ in range(20):  # its own estimate of the norm follows in training
        model(torch.zeros(2, 5))
    parallel = torch.nn.functional.cosine_similarity(model[1].weight.flatten(), drawn[2].flatten(), dim=0)
    assert float(parallel.detach()) == pytest.approx(1.0, abs=1e-6)
    mixed = Plan((*PLAIN, row("0.parametrizations.weight.original0", (4, 1))), "tested", "forward")
    with pytest.raises(InvalidValueError, match="are one parameter of this model"):
        mixed.apply_(model)


def test_a_parametrised_module_under_two_names_is_written_once():
    layer = parametrizations.weight_norm(nn.Linear(5, 4))
    model = nn.ModuleDict({"first": layer, "all": nn.Sequential(layer, nn.ReLU())})
    rows = (row("first.weight", (4, 5)), row("first.bias", (4,)))
    Plan(rows, "tested", "forward").apply_(model, seed=1)
    drawn = fill_keyed_(torch.empty(4, 5), rows[0].law, seed=1, name="first.weight")
    torch.testing.assert_close(layer.weight, drawn)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.UninitializedParameter()


REFUSES = Unregistered(error=ModelError)


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (PLAIN[:3], NotFoundError, "no row for '1.bias'"),
        ([*PLAIN, row("2.bias", (3,))], NotFoundError, r"'2.bias': did you mean .*the plan has a row for it"),
        (
            [row("0.weight", (5, 4)), *PLAIN[1:]],
            InvalidValueError,
            r"'0.weight' is planned with shape \(5, 4\)",
        ),
        (
            [*PLAIN[:3], row("1.bias", (3,), Unregistered(error=ModelError))],
            InvalidValueError,
            "'1.bias' cannot be",
        ),
    ],
)
def test_nothing_is_written_where_the_plan_is_not_of_this_model(rows, error, words):
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    before = state(model)
    with pytest.raises(error, match=words):
        Plan(tuple(rows), "tested", "forward").apply_(model)
    assert same(state(model), before)
    assert not incomplete(model)


def test_a_plan_of_other_ties_is_refused():
    untied = Model()
    untied.head.weight = nn.Parameter(torch.zeros(9, 6))
    with pytest.raises(NotFoundError, match=r"no row for 'head.weight'"):
        plan_of(Model()).apply_(untied)
    with pytest.raises(InvalidValueError, match=r"'embed.weight' and 'head.weight' are one parameter"):
        plan_of(untied).apply_(Model())


def test_what_is_no_model_is_refused():
    plan = plan_of(Model())
    with pytest.raises(InvalidTypeError, match=r"torch.nn.Module"):
        plan.apply_(Model)
    with pytest.raises(InvalidTypeError, match="seed must be an integer"):
        plan.apply_(Model(), seed=0.5)
    with pytest.raises(ModelError, match="'weight' is lazy"):
        Plan((row("weight", (3,)),), "tested", "forward").apply_(Lazy())
    integer = nn.Module()
    integer.weight = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    with pytest.raises(InvalidTypeError, match="'weight' must be a floating-point"):
        Plan((row("weight", (3,)),), "tested", "forward").apply_(integer)


@pytest.mark.parametrize("meta", [False, True])
def test_an_interrupted_model_says_so_until_it_is_written_again(meta):
    class Interrupt(Unregistered):
        calls = 0

        def draw(self, shape, generator):
            type(self).calls += 1
            if type(self).calls == 2:  # the first is the trial before anything is written
                raise KeyboardInterrupt
            return torch.ones(shape)

    with torch.device("meta" if meta else "cpu"):
        model = Model()
    plan = plan_of(model, laws={"down.weight": Interrupt()})
    options = {"build": Model} if meta else {}
    with pytest.raises(KeyboardInterrupt):
        plan.apply_(model, **options)
    assert incomplete(model)
    with pytest.raises(ModelError, match="this Model is incomplete"):
        model(torch.arange(9))
    plan.apply_(model)
    assert not incomplete(model)
    assert (model.down.weight == 1).all()


def test_an_interrupt_at_the_padding_marks_the_model(monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    model, plan = Model(), plan_of(Model())
    monkeypatch.setattr(nn.BatchNorm1d, "reset_running_stats", interrupt)
    with pytest.raises(KeyboardInterrupt):
        plan.apply_(model)
    assert incomplete(model)
    monkeypatch.undo()
    assert not incomplete(plan.apply_(model))


def mirrored_plan(model):
    laws = Mirrored(nonlinearity="relu").plan(model).distributions
    rows = (row(name, tuple(p.shape), laws[name]) for name, p in model.named_parameters())
    return Plan(tuple(rows), "isometric", "forward")


def test_mirrored_neighbours_stay_matched_under_every_seed():
    def build():
        return nn.Sequential(nn.Linear(6, 33), nn.ReLU(), nn.Linear(33, 20), nn.ReLU(), nn.Linear(20, 6))

    plan = mirrored_plan(build())
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    weights = []
    for seed in (0, 1, 1):
        model = plan.apply_(build(), seed=seed)
        torch.testing.assert_close(model(x).norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=1e-4)
        weights.append(model[2].weight)
    assert torch.equal(weights[1], weights[2])
    assert (weights[0] - weights[1]).abs().max() > 0.05
    assert Plan.from_json(plan.to_json()) == plan


def test_wrapped_models_take_the_same_values():
    expected = plan_of(Model()).apply_(Model(), seed=2)
    wrapped = nn.DataParallel(torch.compile(Model(), backend="eager"))
    plan_of(Model()).apply_(wrapped, seed=2)
    assert same(state(wrapped.module._orig_mod), state(expected))
    assert [row.name for row in plan_of(wrapped)] == [row.name for row in plan_of(Model())]


def test_laws_alone_write_the_same():
    plan = plan_of(Model())
    first, second = plan.apply_(Model(), seed=3), Model()
    write_(second, plan.laws, seed=3)
    assert torch.equal(first.down.weight, second.down.weight)


def test_groups_carry_the_rates():
    model = Model()
    plan = plan_of(model, rates={"up.weight": 0.25, "down.weight": 0.25, "embed.weight": 4.0})
    groups = plan.parameter_groups(model, 0.1, weight_decay=0.01, betas=(0.8, 0.9))
    found = {group["lr"]: {id(p) for p in group["params"]} for group in groups}
    assert found.keys() == {0.1, 0.025, 0.4}
    assert found[0.025] == {id(model.up.weight), id(model.down.weight)}
    assert found[0.4] == {id(model.embed.weight)}
    assert sum(map(len, found.values())) == 6, "the frozen bias is not trained"
    optimizer = torch.optim.AdamW(groups)
    assert all(
        group["weight_decay"] == 0.01 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups
    )
    with pytest.raises(InvalidValueError, match="lr must be finite"):
        plan.parameter_groups(model, float("nan"))
    with pytest.raises(InvalidValueError, match="params is what the groups hold"):
        plan.parameter_groups(model, 0.1, params=[])
    with pytest.raises(NotFoundError):
        plan.parameter_groups(nn.Linear(3, 2), 0.1)


def test_groups_hold_the_parts_of_parametrised_weights():
    model = parametrizations.weight_norm(nn.Linear(5, 4))
    plan = Plan((row("weight", (4, 5)), row("bias", (4,), Uniform(0, 1))), "tested", "forward")
    (group,) = plan.parameter_groups(model, 0.1)
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    assert plan["bias"].law != Constant(0.0)
