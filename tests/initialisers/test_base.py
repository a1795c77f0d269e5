"""What all initialisers of models share: selection, seeds, ties, errors that leave the model untouched."""

import copy
import math
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, IsometryWarning, ModelError, NotFoundError
from isometry.init.structured import Chrono, Sparse
from isometry.initialisers import Kaiming, LeCun, Mirrored, Orthogonal, StandardNormal
from isometry.initialisers.base import Initialiser
from isometry.sampling import Constant, Normal, Uniform


class Block(nn.Module):
    """A bit of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12, padding_idx=3)
        self.attention = nn.MultiheadAttention(12, 3, add_bias_kv=True)
        self.norm = nn.LayerNorm(12)
        self.lstm = nn.LSTM(12, 7, num_layers=2, bidirectional=True)
        self.conv = nn.Conv1d(14, 8, 3, groups=2)
        self.batch = nn.BatchNorm1d(8)
        self.gru = nn.GRUCell(8, 5)
        self.slope = nn.PReLU(5, init=0.1)
        self.head = nn.Linear(5, 4)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(3, 4)
    return model


def test_every_rule_but_the_weights() -> None:
    model = scrambled(Block())
    assert Kaiming()(model) is model
    values = state(model)
    for name in (
        "attention.in_proj_bias",
        "attention.bias_k",
        "norm.bias",
        "conv.bias",
        "batch.bias",
        "head.bias",
    ):
        assert not values[name].any(), name
    assert (values["norm.weight"] == 1).all()
    assert (values["batch.weight"] == 1).all()
    assert (values["slope.weight"] == 0.1).all()
    assert (values["batch.running_var"] == 1).all()
    assert not values["batch.running_mean"].any()
    assert not values["embedding.weight"][3].any()
    rest = values["embedding.weight"][values["embedding.weight"].any(1)]
    assert float(rest.square().mean()) == pytest.approx(1, rel=5 * math.sqrt(2 / rest.numel()))


@pytest.mark.parametrize("suffix", ["l0", "l0_reverse", "l1", "l1_reverse"])
def test_lstm_forget_gates_sum_to_one(suffix: str) -> None:
    values = state(Kaiming()(scrambled(Block())))
    total = (values[f"lstm.bias_ih_{suffix}"] + values[f"lstm.bias_hh_{suffix}"]).reshape(4, 7)
    assert total.tolist() == [[0] * 7, [1] * 7, [0] * 7, [0] * 7]


def test_other_recurrent_biases_are_zero_and_the_forget_bias_can_be_chosen() -> None:
    cell = Kaiming(forget_bias=2.5)(nn.LSTMCell(3, 2))
    assert (cell.bias_ih + cell.bias_hh).tolist() == [0, 0, 2.5, 2.5, 0, 0, 0, 0]
    for other in (nn.GRUCell(3, 2), nn.RNNCell(3, 2)):
        Kaiming()(other)
        assert not other.bias_ih.any()
        assert not other.bias_hh.any()
    assert Kaiming()(nn.LSTMCell(3, 2, bias=False)).bias_ih is None


@pytest.mark.parametrize("initialiser", [Kaiming, LeCun, Orthogonal, StandardNormal])
def test_apply_equals_the_direct_call_and_both_are_idempotent(initialiser: type[Initialiser]) -> None:
    direct = state(initialiser(seed=5)(scrambled(Block())))
    init = initialiser(seed=5)
    model = scrambled(Block())
    assert model.apply(init) is model
    assert same(state(model), direct)
    model.apply(init)
    assert same(state(model), direct)
    assert not same(state(initialiser(seed=6)(model)), direct)


def test_apply_through_a_function_of_ones_own_ends_the_same() -> None:
    init = Kaiming()
    model = scrambled(Block())
    model.apply(lambda module: init(module))
    assert same(state(model), state(Kaiming()(Block())))


def test_apply_respects_names_from_the_root() -> None:
    model = scrambled(Block())
    before = state(model)
    model.apply(Kaiming(skip="head.weight"))
    after = state(model)
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert not after["head.bias"].any()


def test_values_depend_on_the_name_and_the_seed_alone() -> None:
    """An unused layer more changes nothing, and torch's random state is neither read nor moved."""
    small = nn.ModuleDict({"a": nn.Linear(6, 4)})
    large = nn.ModuleDict({"unused": nn.Linear(3, 2), "a": nn.Linear(6, 4)})
    before = torch.get_rng_state()
    Kaiming()(small)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    Kaiming()(large)
    assert torch.equal(small["a"].weight, large["a"].weight)
    assert torch.equal(Kaiming()(nn.DataParallel(small)).module["a"].weight, large["a"].weight)


def test_generator_moves_on() -> None:
    def draw(init: Initialiser) -> Tensor:
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
        return model.apply(init)[0].weight.detach()

    init = Kaiming(generator=torch.Generator().manual_seed(1))
    first, second = draw(init), draw(init)
    assert not torch.equal(first, second)
    assert torch.equal(first, draw(Kaiming(generator=torch.Generator().manual_seed(1))))


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"only": "head"}, {"head.weight", "head.bias"}),
        ({"only": nn.Conv1d}, {"conv.weight", "conv.bias"}),
        (
            {"only": ["*.bias"], "skip": [nn.BatchNorm1d, "norm.*"]},
            {"conv.bias", "head.bias", "attention.out_proj.bias"},
        ),
        (
            {"only": nn.MultiheadAttention, "skip": "*bias*"},
            {"attention.in_proj_weight", "attention.out_proj.weight"},
        ),
    ],
)
def test_only_and_skip(options: dict[str, object], changed: set[str]) -> None:
    model = scrambled(Block())
    before = state(model)
    Kaiming(**options)(model)
    after = state(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == changed


def test_skipped_batch_norm_keeps_its_running_statistics() -> None:
    model = scrambled(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)))
    Kaiming(skip=["1"])(model)
    assert (model[1].running_mean != 0).all()
    assert (model[2].running_mean == 0).all()
    scrambled(model)
    Kaiming(skip=nn.BatchNorm1d)(model)
    assert (model[2].running_mean != 0).all()


def test_tied_weights_are_drawn_once_by_the_fan_of_the_linear_map() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(300, 64, padding_idx=0), "head": nn.Linear(64, 300, bias=False)}
    )
    model["head"].weight = model["embedding"].weight
    LeCun()(model)
    weight = model["head"].weight.detach()
    assert model["head"].weight is model["embedding"].weight
    assert float(weight[1:].square().mean()) == pytest.approx(1 / 64, rel=5 * math.sqrt(2 / weight.numel()))
    assert not weight[0].any()


def test_frozen_parameters_are_kept_and_listed() -> None:
    model = scrambled(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    model[0].requires_grad_(False)
    before = state(model)
    kaiming = Kaiming()
    kaiming(model)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[1].weight, before["1.weight"])
    assert kaiming.assignment.kept == {"0.weight": "requires_grad=False", "0.bias": "requires_grad=False"}
    Kaiming(include_frozen=True)(model)
    assert not torch.equal(model[0].weight, before["0.weight"])
    assert not model[0].weight.requires_grad


def test_a_model_that_is_all_frozen_is_no_silent_success() -> None:
    with pytest.warns(IsometryWarning, match="include_frozen"):
        Kaiming()(nn.Linear(3, 4).requires_grad_(False))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((8, 64, 32), 7.0))
        self.scale = nn.Parameter(torch.full((32,), 7.0))


def test_unrecognised_parameters_are_reported_and_kept() -> None:
    model = nn.ModuleDict({"experts": Experts(), "head": nn.Linear(32, 4)})
    kaiming = Kaiming()
    with pytest.warns(IsometryWarning) as caught:
        model.apply(kaiming)
    (message,) = [str(warning.message) for warning in caught]
    assert "'experts.w' of Experts, shape (8, 64, 32)" in message
    assert "experts.scale" in message
    assert list(kaiming.assignment.unrecognised) == ["experts.w", "experts.scale"]
    assert (model["experts"].w == 7).all()


@pytest.mark.parametrize("call", [lambda model: Kaiming()(model), lambda model: model.apply(Kaiming())])
def test_the_warning_points_at_the_users_line(call: Callable[[nn.Module], object]) -> None:
    model = nn.Module()
    model.odd = nn.Parameter(torch.ones(3))
    with pytest.warns(IsometryWarning) as caught:
        call(model)
    assert caught[0].filename == __file__


def test_declared_axes_and_distributions() -> None:
    model = nn.ModuleDict({"experts": nn.ModuleList([Experts(), Experts()]), "head": nn.Linear(32, 4)})
    kaiming = Kaiming(
        nonlinearity="relu",
        axes={"experts.*.w": {"in_axis": 1, "out_axis": 2, "batch_axis": 0}},
        distributions={"experts.*.scale": Constant(1.0), "head.weight": Uniform(-3.0, -2.0)},
    )
    kaiming(model)
    w = model["experts"][1].w.detach()
    assert float(w.square().mean()) == pytest.approx(2 / 64, rel=5 * math.sqrt(2 / w.numel()))
    assert (model["experts"][0].scale == 1).all()
    assert (model["head"].weight <= -2).all()
    assert not kaiming.assignment.unrecognised


def test_distributions_take_any_law() -> None:
    lstm = Kaiming(distributions={"bias_ih_l0": Chrono(50)})(nn.LSTM(3, 4))
    assert (lstm.bias_ih_l0[4:8] >= 0).all()
    assert torch.equal(lstm.bias_ih_l0[:4], -lstm.bias_ih_l0[4:8])


def test_plan_touches_nothing() -> None:
    model = scrambled(Block())
    before = state(model)
    generator = torch.Generator().manual_seed(0)
    moved = generator.get_state()
    plan = Kaiming(nonlinearity="linear", generator=generator).plan(model)
    assert same(state(model), before)
    assert torch.equal(generator.get_state(), moved)
    assert plan.distributions["embedding.weight"] == Normal(1.0)
    assert set(plan.distributions) == set(dict(model.named_parameters()))


def test_dtypes_of_a_model_are_kept() -> None:
    model = Block().to(torch.bfloat16)
    Kaiming()(model)
    assert torch.equal(model.head.weight, Kaiming()(Block()).head.weight.to(torch.bfloat16))
    assert not Orthogonal()(nn.Linear(4, 6, dtype=torch.float16)).weight.isnan().any()


def test_double_precision_is_orthogonal_to_double_precision() -> None:
    weight = Orthogonal()(nn.Linear(40, 30, dtype=torch.float64)).weight.detach()
    assert torch.allclose(weight @ weight.T, torch.eye(30, dtype=torch.float64), atol=1e-12)


def test_complex_weights_have_the_variance_or_are_refused() -> None:
    model = LeCun()(nn.Linear(200, 100, dtype=torch.complex64))
    power = model.weight.detach().abs().square()
    assert float(power.mean()) == pytest.approx(1 / 200, rel=5 / math.sqrt(power.numel()))
    assert float(model.weight.detach().imag.square().mean()) == pytest.approx(
        1 / 400, rel=5 * math.sqrt(2 / power.numel())
    )
    layers = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4, dtype=torch.complex64))
    before = state(layers)
    with pytest.raises(InvalidTypeError, match=r"1\.weight.*complex"):
        Orthogonal()(layers)
    assert same(state(layers), before)


def bad_models() -> dict[str, tuple[nn.Module, Initialiser, type[Exception], str]]:
    integer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    integer[1].weight = nn.Parameter(torch.zeros(2, 4, dtype=torch.int8), requires_grad=False)
    expanded = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    expanded[1].weight = nn.Parameter(torch.zeros(1, 1).expand(2, 4))
    overlapping = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 2))
    overlapping[1].weight = nn.Parameter(overlapping[0].weight.data[1:3])
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about the empty weight
        empty = nn.Sequential(nn.Linear(3, 4), nn.Linear(0, 2))
    return {
        "empty": (empty, Kaiming(), InvalidValueError, r"'1\.weight' of Linear.*empty"),
        "integer": (integer, Kaiming(include_frozen=True), InvalidTypeError, r"1\.weight.*int8"),
        "expanded": (expanded, Kaiming(), InvalidValueError, r"1\.weight.*expanded"),
        "overlapping": (overlapping, Kaiming(), ModelError, "share memory"),
        "lazy": (nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2)), Kaiming(), ModelError, r"1\.weight.*lazy"),
        "pattern": (plain, Kaiming(skip="1.weights"), NotFoundError, r"did you mean '1\.weight'"),
        "distributions name a module": (
            plain,
            Kaiming(distributions={"1": Constant(0.0)}),
            NotFoundError,
            "matches no parameter",
        ),
        "axes pattern": (plain, Kaiming(axes={"2.w": {}}), NotFoundError, "axes="),
        "axes": (plain, Kaiming(axes={"1.weight": {"in_axis": 5}}), InvalidValueError, "in_axis=5"),
        "law that fails": (
            plain,
            Kaiming(distributions={"1.bias": Sparse(0.5)}),
            InvalidValueError,
            r"'1\.bias'.*matrix",
        ),
        "no chain": (
            nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 2)),
            Mirrored(),
            InvalidValueError,
            r"'1\.weight_ih_l0' of LSTM cannot be mirrored",
        ),
    }


@pytest.mark.parametrize("key", bad_models())
def test_any_error_leaves_the_model_untouched(key: str) -> None:
    model, init, error, message = bad_models()[key]
    first = model[0].weight.detach().clone()
    values = None if key == "lazy" else state(model)
    with pytest.raises(error, match=message):
        model.apply(init)
    assert torch.equal(model[0].weight, first)
    if values is not None:
        assert same(state(model), values)


def test_meta_models_ask_for_memory() -> None:
    with pytest.raises(ModelError, match="to_empty"):
        Kaiming()(nn.Linear(3, 4, device="meta"))


@pytest.mark.parametrize("thing", [nn.Linear, torch.zeros(2, 3), None, lambda: nn.Linear(2, 3)])
def test_what_is_no_module(thing: object) -> None:
    with pytest.raises(InvalidTypeError, match="not what builds it"):
        Kaiming()(thing)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nonlinearity": "geluu"}, NotFoundError, "gelu"),
        ({"mode": "fan_ins"}, InvalidValueError, "did you mean 'fan_in'"),
        ({"distribution": "orthogonal_"}, InvalidValueError, "did you mean 'orthogonal'"),
        ({"gain": math.nan}, InvalidValueError, "gain"),
        ({"gain": -1.0}, InvalidValueError, "gain"),
        ({"input_gain": math.inf}, InvalidValueError, "input_gain"),
        ({"a": math.nan}, InvalidValueError, "a must be finite"),
        ({"forget_bias": math.nan}, InvalidValueError, "forget_bias"),
        ({"skip": 3}, InvalidTypeError, "skip="),
        ({"axes": {"w": {"in": 0}}}, InvalidTypeError, "in_axis"),
        ({"distributions": {"w": 1.0}}, InvalidTypeError, "Distribution"),
        ({"distributions": 1.0}, InvalidTypeError, "distributions="),
        ({"axes": "w"}, InvalidTypeError, "axes="),
        ({"generator": 0}, InvalidTypeError, "generator"),
        ({"gain": "relu"}, InvalidTypeError, "gain must be a number"),
    ],
)
def test_bad_options_fail_before_any_model_is_seen(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Kaiming(**options)


def test_an_initialiser_shows_the_options_that_matter() -> None:
    assert repr(Kaiming()) == "Kaiming()"
    assert repr(Kaiming(nonlinearity="gelu", seed=3)) == "Kaiming(seed=3, nonlinearity='gelu')"
    assert repr(Orthogonal(gain=2.0)) == "Orthogonal(gain=2.0)"


def test_modules_without_parameters_are_fine() -> None:
    Kaiming()(nn.Sequential(nn.ReLU()))


def test_initialisers_can_be_copied_and_pickled() -> None:
    kaiming = Kaiming(nonlinearity="gelu", seed=4)
    expected = kaiming(nn.Linear(6, 4)).weight.detach()
    for twin in (copy.deepcopy(kaiming), pickle.loads(pickle.dumps(kaiming))):
        assert torch.equal(twin(nn.Linear(6, 4)).weight, expected)


def test_sharded_parameters_get_the_values_of_whole_ones() -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    def build() -> nn.Sequential:
        layers = [nn.Embedding(10, 6, padding_idx=2), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)]
        return nn.Sequential(*layers)

    whole, sharded = Orthogonal()(build()), build()
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for module in sharded:
            for name, parameter in module._parameters.items():
                module._parameters[name] = nn.Parameter(
                    distribute_tensor(parameter.detach(), mesh, [Shard(0)])
                )
        Orthogonal()(sharded)
        for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
            assert torch.equal(one, other.full_tensor())
    finally:
        distributed.destroy_process_group()
