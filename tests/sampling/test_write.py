import copy
import gc
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.sampling import Constant, Normal, Uniform, Whole, engine, fill_keyed_, haar, incomplete, write_
from isometry.sampling.distributions import Elementwise


class Orthogonal(Whole):
    def draw(self, shape, generator):
        return haar(1, *shape, generator)[0]


def model():
    torch.manual_seed(9)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


LAWS = {"0.weight": Normal(0.5), "0.bias": Uniform(0, 1), "2.weight": Orthogonal(), "2.bias": Constant(0.0)}


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def keyed(shape, law, name, seed=0):
    return fill_keyed_(torch.empty(shape), law, seed=seed, name=name)


def test_each_parameter_gets_the_values_of_its_name():
    first = model()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    write_(first, LAWS, seed=4, keep=())
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, keyed(parameter.shape, LAWS[name], name, 4)), name


@pytest.mark.parametrize("setting", ["device", "dtype"])
def test_torchs_defaults_do_not_matter(setting):
    first, second = model(), model()
    write_(first, LAWS)
    if setting == "device":
        with torch.device("meta"):
            write_(second, LAWS)
    else:
        torch.set_default_dtype(torch.float64)
        try:
            write_(second, LAWS)
        finally:
            torch.set_default_dtype(torch.float32)
    assert same(first.state_dict(), second.state_dict())


def test_other_parameters_and_their_order_do_not_matter():
    first, second = model(), model()
    second.insert(0, nn.Linear(5, 5))  # names move on, so name it as before
    longer = nn.ModuleDict({"extra": nn.Linear(2, 2), "0": second[1], "2": second[3]})
    write_(first, LAWS)
    write_(longer, dict(reversed(LAWS.items())))
    assert same(
        {n: p.detach() for n, p in first.named_parameters()},
        {n: longer.get_parameter(n).detach() for n in LAWS},
    )


def test_what_is_not_named_stays():
    m = model()
    before = state(m)
    write_(m, {"0.bias": Constant(2.0)})
    assert {n for n, v in m.state_dict().items() if not torch.equal(v, before[n])} == {"0.bias"}
    with pytest.raises(InvalidValueError, match=r"no distribution is given for '0\.weight', '2\.bias'"):
        write_(m, {"0.bias": Constant(3.0), "2.weight": Normal(1.0)}, keep=())
    write_(m, {"0.bias": Constant(3.0), "2.weight": Normal(1.0)}, keep=["0.weight", "2.bias"])


def test_tied_parameters_are_written_once_under_their_first_name():
    m = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    m["head"].weight = m["embed"].weight
    expected = keyed((6, 4), Normal(1.0), "embed.weight")
    for laws in (
        {"embed.weight": Normal(1.0)},
        {"head.weight": Normal(1.0)},
        {"head.weight": Constant(9.0), "embed.weight": Normal(1.0)},
    ):
        m["embed"].weight.data.zero_()
        write_(m, laws, keep=())
        assert m["head"].weight is m["embed"].weight
        assert torch.equal(m["head"].weight, expected)


@pytest.mark.parametrize(
    ("laws", "options", "error", "words"),
    [
        ({"0.weights": Normal(1.0)}, {}, NotFoundError, "'0.weights': did you mean '0.weight'?"),
        ({"zzz": Normal(1.0)}, {}, NotFoundError, "no parameter named 'zzz'"),
        ({"0.weight": 0.02}, {}, InvalidTypeError, "'0.weight' needs a distribution"),
        ({"0.weight": Normal(1.0)}, {"seed": 0.5}, InvalidTypeError, "seed must be an integer"),
        (
            {"0.weight": Normal(1.0)},
            {"keep": ["0.weight"]},
            InvalidValueError,
            "both to be kept and to be written",
        ),
        (
            {"0.weight": Normal(1.0)},
            {"keep": "0.bias"},
            InvalidTypeError,
            "keep must be 'unnamed' or a collection",
        ),
        ({"0.weight": Normal(1.0)}, {"keep": ["nope"]}, NotFoundError, "no parameter named 'nope'"),
    ],
)
def test_nothing_is_written_where_the_request_is_wrong(laws, options, error, words):
    m = model()
    before = state(m)
    with pytest.raises(error) as caught:
        write_(m, {"2.bias": Constant(5.0)} | laws, **options)
    assert words in str(caught.value)
    assert same(state(m), before)
    assert not incomplete(m)


def test_nothing_is_written_where_a_parameter_cannot_take_values():
    m = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3, device="meta"), nn.LazyLinear(3))
    m.register_parameter("count", nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False))
    before = m[0].weight.clone()
    for name, error, words in (
        ("1.weight", ModelError, "isometry.materialize_"),
        ("2.weight", ModelError, "lazy"),
        ("count", InvalidTypeError, "'count' must be a floating-point"),
    ):
        with pytest.raises(error, match=words):
            write_(m, {"0.weight": Normal(1.0), name: Normal(1.0)})
    assert torch.equal(m[0].weight, before)
    with pytest.raises(InvalidTypeError, match=r"must be a torch\.nn\.Module, got dict"):
        write_({}, {})
    with pytest.raises(InvalidTypeError, match="distributions must be a dict"):
        write_(m, [("0.weight", Normal(1.0))])


class Interrupt(Elementwise):
    """Raises once, as Ctrl-C or a lack of memory would, then draws zeros."""

    def __init__(self, error):
        self.error = error

    def transform(self, bits, out):
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        out.fill(0)

    def component(self):
        return self


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_model_says_so_until_it_is_written_again(error):
    m, expected = model(), model()
    laws = LAWS | {"2.bias": Interrupt(error)}
    with pytest.raises(type(error)):
        write_(m, laws)
    assert incomplete(m)
    for use in (lambda: m(torch.zeros(1, 5)), m.state_dict):
        with pytest.raises(ModelError, match="this Sequential is incomplete"):
            use()
    write_(m, laws)
    write_(expected, LAWS)
    assert not incomplete(m)
    assert same(m.state_dict(), expected.state_dict())
    assert not m._forward_pre_hooks
    assert not m._state_dict_pre_hooks
    m(torch.zeros(1, 5))


def interrupted():
    m = model()
    with pytest.raises(KeyboardInterrupt):
        write_(m, LAWS | {"2.bias": Interrupt(KeyboardInterrupt())})
    return m


def test_the_mark_stays_until_all_that_was_interrupted_is_written():
    m = interrupted()
    write_(m, {"2.bias": Constant(0.0)})
    assert incomplete(m)
    with pytest.raises(KeyboardInterrupt):
        write_(m, {"0.weight": Normal(0.5), "0.bias": Interrupt(KeyboardInterrupt())})
    write_(m, {"0.weight": Normal(0.5), "0.bias": LAWS["0.bias"]})
    assert incomplete(m)
    write_(m, {"2.weight": LAWS["2.weight"]})
    assert not incomplete(m)
    m(torch.zeros(1, 5))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_an_incomplete_model_is_one_of_its_own(duplicate):
    m = interrupted()
    twin = duplicate(m)
    assert incomplete(twin)
    write_(twin, LAWS)
    assert not incomplete(twin)
    assert incomplete(m)
    twin(torch.zeros(1, 5))
    twin.state_dict()


def test_names_as_a_wrapper_gives_them_are_understood():
    m, expected = model(), model()
    wrapped = nn.DataParallel(m)
    write_(wrapped, {f"module.{name}": law for name, law in LAWS.items()}, keep=())
    write_(expected, LAWS)
    assert same(m.state_dict(), expected.state_dict())


def test_two_parameters_in_one_place_of_memory_are_an_error():
    m = nn.Module()
    memory = torch.zeros(3, 2)
    m.a, m.b = nn.Parameter(memory), nn.Parameter(memory)
    with pytest.raises(InvalidValueError, match=r"'a' and 'b' share memory .*make them one nn\.Parameter"):
        write_(m, {"a": Normal(1.0), "b": Normal(1.0)})
    assert not memory.any()
    write_(m, {"a": Constant(1.0)})


def test_flags_and_hooks_survive():
    m = model()
    m[0].weight.requires_grad_(False)
    calls = []
    m[2].weight.register_hook(lambda g: calls.append(g))
    m[0].register_forward_hook(lambda *_: calls.append("forward"))
    optimizer = torch.optim.SGD(m[2].parameters(), lr=1.0)
    write_(m, LAWS)
    assert not m[0].weight.requires_grad
    m(torch.ones(2, 5)).sum().backward()
    assert len(calls) == 2
    before = m[2].bias.clone()
    optimizer.step()
    assert not torch.equal(m[2].bias, before)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm_gets_the_effective_weight_drawn(wrap):
    layer = wrap(nn.Linear(6, 4))
    pointers = [p.data_ptr() for p in layer.parameters()]
    write_(layer, {"weight": Normal(0.5), "bias": Constant(0.0)}, keep=())
    out = layer(torch.eye(6)).T
    torch.testing.assert_close(out, keyed((4, 6), Normal(0.5), "weight"))
    assert [p.data_ptr() for p in layer.parameters()] == pointers


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_normed_module_may_have_two_names(wrap):
    for name in ("first", "all.0"):
        layer = wrap(nn.Linear(6, 4, bias=False))
        model = nn.ModuleDict({"first": layer, "all": nn.Sequential(layer, nn.ReLU())})
        write_(model, {f"{name}.weight": Normal(0.5)})
        torch.testing.assert_close(layer(torch.eye(6)).T, keyed((4, 6), Normal(0.5), "first.weight"))


def test_spectral_norm_and_orthogonal_are_honoured():
    drawn = keyed((4, 6), Normal(0.5), "weight").double()
    layer = parametrizations.spectral_norm(nn.Linear(6, 4), n_power_iterations=50)
    write_(layer, {"weight": Normal(0.5)})
    torch.testing.assert_close(
        layer.weight.double(), drawn / torch.linalg.matrix_norm(drawn, 2), atol=1e-3, rtol=0
    )
    layer = parametrizations.orthogonal(nn.Linear(6, 4))
    write_(layer, {"weight": Orthogonal()})
    torch.testing.assert_close(layer.weight, keyed((4, 6), Orthogonal(), "weight"))
    write_(layer, {"weight": Normal(0.5)})
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4))


def test_parts_of_a_parametrised_weight_may_be_named_instead():
    layer = parametrizations.weight_norm(nn.Linear(6, 4))
    part = "parametrizations.weight.original1"
    write_(layer, {part: Normal(1.0)})
    assert torch.equal(layer.parametrizations.weight.original1, keyed((4, 6), Normal(1.0), part))
    with pytest.raises(InvalidValueError, match="would be written twice"):
        write_(layer, {part: Normal(1.0), "weight": Normal(1.0)})


def test_an_inverse_that_refuses_leaves_the_model_alone():
    class Square(nn.Module):
        def forward(self, x):
            return x * x

    m = nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 4)), nn.Linear(4, 3))
    parametrize.register_parametrization(m[1], "weight", Square())
    before, effective = copy.deepcopy(state(m)), m[0].weight.clone()
    with pytest.raises(ModelError, match=r"'1\.weight' cannot be assigned to .*name '1\.parametrizations"):
        write_(m, {"0.weight": Normal(1.0), "1.weight": Normal(1.0), "1.bias": Constant(0.0)})
    assert same(state(m), before)
    assert torch.equal(m[0].weight, effective)
    assert not incomplete(m)


def test_two_parameters_of_one_canonical_name_are_an_error():
    m = nn.Module()
    m.module = nn.Linear(2, 3)
    m.weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ModelError, match="two different parameters have the canonical name 'weight'"):
        write_(m, {})


def test_ten_thousand_small_parameters_share_transforms(monkeypatch):
    calls = []
    original = engine.write_group
    monkeypatch.setattr(engine, "write_group", lambda group: (calls.append(len(group)), original(group)))
    m = nn.ParameterList(nn.Parameter(torch.zeros(8)) for _ in range(10_000))
    write_(m, {str(i): Normal(1.0) for i in range(10_000)}, keep=())
    assert sum(calls) == 10_000
    assert len(calls) < 10
    assert torch.equal(m[1234], keyed((8,), Normal(1.0), "1234"))


@dataclass(frozen=True)
class Shared(Whole):
    factor: float = 1.0
    stream: str | None = None

    def draw(self, shape, generator):
        return self.factor * torch.randn(shape, generator=generator)


def test_laws_that_name_one_stream_share_a_draw():
    m = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), parametrizations.weight_norm(nn.Linear(5, 5)))
    laws = {
        "0.weight": Shared(1.0, "pair"),
        "1.weight": Shared(-2.0, "pair"),
        "2.weight": Shared(3.0, "pair"),
    }
    write_(m, laws, seed=3)
    assert torch.equal(m[1].weight, -2 * m[0].weight)
    torch.testing.assert_close(m[2].weight, 3 * m[0].weight)
    drawn = m[0].weight.clone()
    write_(m, {"0.weight": Shared()}, seed=3)
    assert not torch.equal(m[0].weight, drawn)


def test_an_interrupt_of_what_finishes_marks_the_model():
    def interrupt():
        raise KeyboardInterrupt

    m = model()
    with pytest.raises(KeyboardInterrupt):
        write_(m, LAWS, finish=interrupt)
    assert incomplete(m)
    write_(m, LAWS, finish=lambda: None)
    assert not incomplete(m)


@pytest.mark.parametrize("enabled", [True, False])
def test_pythons_collector_is_left_as_it_was(enabled):
    layer = nn.Linear(2, 3)
    try:
        if not enabled:
            gc.disable()
        write_(layer, {"weight": Normal(1.0)})
        assert gc.isenabled() == enabled
        with pytest.raises(NotFoundError):
            write_(layer, {"weights": Normal(1.0)})
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
