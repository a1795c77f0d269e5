import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.sampling import (
    Constant,
    Normal,
    TruncatedNormal,
    Uniform,
    Whole,
    engine,
    fill_,
    fill_keyed_,
    workers,
    write_,
)
from isometry.sampling.shards import Shard, shard_of
from isometry.sampling.streams import stream_key
from isometry.sampling.tiles import Run, tile_shape

LAWS = [
    Normal(0.3, 0.1),
    Uniform(-0.2, 0.7),
    TruncatedNormal(0.5),
    TruncatedNormal(0.5, 1.0, 3.5),
    Constant(1.5),
]


def drawn(shape, law, dtype=torch.float32, name="w", seed=0):
    return fill_keyed_(torch.empty(shape, dtype=dtype), law, seed=seed, name=name)


@pytest.mark.parametrize("law", LAWS)
def test_values_do_not_depend_on_threads(law):
    mine = torch.get_num_threads()
    expected = drawn((700, 900), law)
    for threads in (1, 2, 5):
        again = torch.empty(700, 900)
        workers.run(engine.tasks(engine.draws(shard_of(again), law, stream_key(0, "w"))), threads=threads)
        assert torch.equal(again, expected)
    assert torch.get_num_threads() == mine


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_hold_the_float32_values_rounded(law, dtype):
    expected = drawn((40, 37), law).to(dtype)
    if law.bounds is not None and dtype.itemsize == 2:
        expected = expected.double().clamp(*law.bounds).to(torch.float32)
        # a clamped value is the last one of the dtype inside
        expected = torch.where(expected.to(dtype).double() == expected.double(), expected, torch.nan).to(
            dtype
        )
        stored = drawn((40, 37), law, dtype)
        inside = ~expected.isnan()
        assert inside.float().mean() > 0.9
        assert torch.equal(stored[inside], expected[inside])
    else:
        assert torch.equal(drawn((40, 37), law, dtype), expected)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 40), max_size=4), st.sampled_from(LAWS), st.randoms(use_true_random=False))
def test_strides_and_shape_do_not_matter(shape, law, random):
    order = list(range(len(shape)))
    random.shuffle(order)
    plain = drawn(shape, law)
    inverse = [order.index(d) for d in range(len(shape))]
    strided = torch.empty([2 * shape[d] for d in order])[tuple(slice(None, None, 2) for _ in order)].permute(
        inverse
    )
    assert strided.shape == plain.shape
    assert torch.equal(fill_keyed_(strided, law, seed=0, name="w"), plain)


@pytest.mark.parametrize(
    "law", [TruncatedNormal(0.5), TruncatedNormal(0.013, 1.0, 3.5), Uniform(-0.2, 0.7), Uniform(3, 3.3)]
)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]
)
def test_no_stored_value_leaves_the_bounds(law, dtype):
    x = drawn(300_000, law, dtype).double()
    low, high = law.bounds
    assert x.isfinite().all()
    assert low <= x.min()
    assert x.max() <= high


def test_groups_of_small_tensors_get_what_each_gets_alone():
    shapes = [(n,) for n in range(1, 60)] + [(7, 11), (3000,), (1, 5, 2)]
    tensors = [torch.empty(shape) for shape in shapes]
    for law in (Normal(1.0), TruncatedNormal(1.0, cut=3.0), Uniform(0, 1)):
        work = (
            d for i, t in enumerate(tensors) for d in engine.draws(shard_of(t), law, stream_key(0, str(i)))
        )
        workers.run(engine.tasks(work))
        for i, tensor in enumerate(tensors):
            assert torch.equal(tensor, drawn(shapes[i], law, name=str(i)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("shape", [(), (64,), (3, 5)])
def test_small_tensors_of_one_shape_get_what_each_gets_alone(shape, dtype):
    law = TruncatedNormal(1.0, 0.5)
    model = torch.nn.ParameterList(torch.nn.Parameter(torch.empty(shape, dtype=dtype)) for _ in range(40))
    write_(model, {str(i): law for i in range(40)}, seed=0, keep=())
    for i, tensor in enumerate(model):
        assert torch.equal(tensor, drawn(shape, law, dtype, name=str(i)))


def test_a_shard_as_large_as_a_tile_that_it_crosses():
    """Rows 412 to 514 of 615 are 103 rows, as many as the last tile, of which they hold three."""
    whole = drawn((615, 512), Normal(1.0))
    assert tile_shape((615, 512)) == (512, 512)
    shard = Shard(torch.empty(103, 512), (615, 512), ((Run(412, 0, 103),), (Run(0, 0, 512),)))
    workers.run(engine.tasks(engine.draws(shard, Normal(1.0), stream_key(0, "w"))))
    assert torch.equal(shard.local, whole[412:515])


def test_keyed_draws_leave_torchs_random_state_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = drawn((50, 30), Normal(1.0))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(drawn((50, 30), Normal(1.0)), first)


def test_a_generator_decides_the_values():
    draws = [
        fill_(torch.empty(50, 3), Normal(1.0), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(0)
    assert torch.equal(fill_(torch.empty(50, 3), Normal(1.0)), draws[0])


def test_complex_entries_have_the_variance_asked_for():
    n = 400_000
    for law in (Normal(0.7), TruncatedNormal(0.7), Uniform(-0.7 * 3**0.5, 0.7 * 3**0.5)):
        z = drawn(n, law, torch.complex64)
        power = z.abs().double().square()
        assert abs(power.mean() - 0.49) < 5 * power.std() / n**0.5
        correlation = torch.corrcoef(torch.stack([z.real, z.imag]))[0, 1]
        assert abs(correlation) < 5 / n**0.5
    assert drawn(3, Constant(2.0), torch.complex64).tolist() == [2 + 0j] * 3
    conjugated = torch.empty(50, dtype=torch.complex64).conj()
    assert torch.equal(
        fill_keyed_(conjugated, Normal(1.0), seed=0, name="w"), drawn(50, Normal(1.0), torch.complex64)
    )


def test_gradients_flags_and_versions():
    w = torch.nn.Parameter(torch.zeros(3, 4))
    saved = (w * w).sum()
    assert fill_keyed_(w, Normal(1.0), seed=0, name="w") is w
    assert w.requires_grad
    assert w.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_meta_tensors_stay():
    x = torch.empty(3, 4, device="meta")
    assert fill_(x, Normal(1.0)) is x
    assert fill_keyed_(x, Normal(1.0), seed=0, name="w") is x


@pytest.mark.parametrize(
    ("tensor", "error", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), InvalidTypeError, "floating-point or complex"),
        (torch.zeros(3, dtype=torch.bool), InvalidTypeError, "floating-point or complex"),
        (torch.zeros(3, 3).to_sparse(), InvalidTypeError, "dense"),
        (torch.zeros(1, 3).expand(4, 3), InvalidValueError, "clone"),
        (torch.zeros(9).as_strided((3, 3), (1, 1)), InvalidValueError, r"strides \(1, 1\).*share one place"),
        (torch.zeros(9).as_strided((3, 3), (2, 2)), InvalidValueError, "share one place"),
        (torch.zeros(20).as_strided((2, 4), (4, 2)), InvalidValueError, "share one place"),
    ],
)
def test_tensors_that_cannot_be_filled(tensor, error, words):
    with pytest.raises(error, match=words):
        fill_(tensor, Normal(1.0))


def test_interleaved_strides_are_no_overlap():
    memory = torch.zeros(9)
    x = memory.as_strided((2, 3), (3, 2))  # at 0, 2, 4, 3, 5, 7
    assert torch.equal(fill_keyed_(x, Normal(1.0), seed=0, name="w"), drawn((2, 3), Normal(1.0)))
    assert memory.count_nonzero() == 6


@pytest.mark.parametrize("generator", [0, "cpu", np.random.default_rng(0)])
def test_a_generator_of_another_type_is_refused(generator):
    x = torch.zeros(3)
    with pytest.raises(InvalidTypeError, match=r"generator must be a torch\.Generator .* or None, got"):
        fill_(x, Normal(1.0), generator=generator)
    assert not x.any()


class Unhashable(Normal):
    __hash__ = None


def test_laws_that_do_not_fit():
    class Bad(Whole):
        def draw(self, shape, generator):
            return torch.zeros(2, 2)

    with pytest.raises(ModelError, match=r"Bad\.draw must return .* of shape \(3, 4\)"):
        fill_(torch.zeros(3, 4), Bad())
    with pytest.raises(InvalidTypeError, match="is a law of real tensors"):
        fill_(torch.zeros(2, 2, dtype=torch.complex64), Bad())
    with pytest.raises(InvalidTypeError, match="Unhashable cannot be hashed"):
        fill_(torch.zeros(2, 2), Unhashable(1.0))
    with pytest.raises(InvalidTypeError, match="needs a distribution"):
        fill_(torch.zeros(2, 2), 0.02)


def test_numpys_error_settings_do_not_reach_the_draws():
    with np.errstate(all="raise"):
        drawn((300, 700), Normal(1e-38))
