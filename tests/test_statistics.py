import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from torch import nn

from isometry import statistics
from isometry.profile import Stats
from isometry.statistics import Pool, reduce_cosine, reduce_entries, saturation


def measured(*tensors, mask=None):
    pool = Pool()
    for tensor in tensors:
        pool.add(reduce_entries(tensor, mask, shape=True).tolist(), saturation=mask is not None)
    return pool.stats()


def expected(values):
    x = np.asarray(values, dtype=np.longdouble).ravel()
    return {
        "mean": float(x.mean()),
        "std": float(x.std()),
        "rms": float(np.sqrt((x * x).mean())),
        "min": float(x.min()),
        "max": float(x.max()),
        "zeros": float((x == 0).mean()),
    }


def close(stats, values, rel=1e-11):
    for name, value in expected(values).items():
        assert getattr(stats, name) == pytest.approx(value, rel=rel, abs=1e-300), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_one_tensor_against_numpy_and_scipy(dtype, shift):
    x = (torch.randn(37, 11, generator=torch.Generator().manual_seed(0)) * 3 + shift).to(dtype)
    found = measured(x)
    close(found, x.double().numpy())
    assert found.kurtosis == pytest.approx(
        scipy_stats.kurtosis(x.double().numpy().ravel(), fisher=False), rel=1e-9
    )
    assert found.nonfinite == 0
    assert found.saturated is None


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    shift=st.floats(-1e4, 1e4),
    seed=st.integers(0, 99),
)
def test_pieces_pool_to_the_whole(sizes, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, generator=generator, dtype=torch.float64) ** 3 + shift for n in sizes]
    if not sum(sizes):
        assert measured(*parts) == Stats()
        return
    whole, pooled = measured(torch.cat(parts)), measured(*parts)
    for name in ("mean", "std", "rms", "min", "max"):
        assert getattr(pooled, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-9)
    if sum(sizes) > 1:
        assert pooled.kurtosis == pytest.approx(whole.kurtosis, rel=1e-6)


def test_large_tensors_are_reduced_in_pieces(monkeypatch):
    monkeypatch.setattr(statistics, "_IN_CACHE", 64)
    x = torch.randn(33, 17, generator=torch.Generator().manual_seed(0))
    assert len(reduce_entries(x)) == math.ceil(33 * 17 / 64)
    close(measured(x), x.double().numpy())
    sum_, pairs = reduce_cosine(x).tolist()
    unit = torch.nn.functional.normalize(x.double())
    assert sum_ == pytest.approx(float((unit @ unit.T).sum() - 33), rel=1e-9)
    assert pairs == 33 * 32


def test_a_large_mean_costs_no_digits():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = measured(x[:5000] + 1e8, x[5000:] + 1e8)
    # The entries themselves are rounded to 1e8·2⁻⁵³ ≈ 1e-8.
    assert found.std == pytest.approx(float(x.std(correction=0)), rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e30), (torch.float32, 1e-38), (torch.float64, 1e300), (torch.float64, 1e-300)],
)
def test_huge_and_tiny_values_neither_overflow_nor_vanish(dtype, size):
    x = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = measured((x * size).to(dtype))
    assert found.rms / size == pytest.approx(float(x.square().mean().sqrt()), rel=1e-4)
    assert found.kurtosis == pytest.approx(measured(x).kurtosis, rel=1e-3)


def test_pieces_of_very_different_size_pool():
    small, large = (
        torch.full((10,), 1e-200, dtype=torch.float64),
        torch.full((10,), 1e200, dtype=torch.float64),
    )
    for pieces in ((small, large), (large, small)):
        assert measured(*pieces).rms == pytest.approx(1e200 / math.sqrt(2), rel=1e-12)


def test_a_constant_has_no_spread_and_no_kurtosis():
    found = measured(torch.full((1000,), 0.1, dtype=torch.float64))
    assert found.std == 0
    assert found.kurtosis is None
    assert found.rms == pytest.approx(0.1, rel=1e-15)


def test_nan_and_infinity_show():
    base = [1.0, -2.0, 0.0]
    with_nan = measured(torch.tensor([*base, math.nan, math.inf]))
    assert all(math.isnan(getattr(with_nan, name)) for name in ("mean", "std", "rms"))
    assert with_nan.kurtosis is None
    assert (with_nan.min, with_nan.max, with_nan.nonfinite) == (-2.0, 1.0, pytest.approx(0.4))
    with_inf = measured(torch.tensor([*base, -math.inf]))
    assert (with_inf.mean, with_inf.rms) == (-math.inf, math.inf)
    assert math.isnan(measured(torch.tensor([math.inf, -math.inf])).mean)
    nothing_finite = measured(torch.tensor([math.nan]))
    assert nothing_finite.min is None
    assert nothing_finite.nonfinite == 1


def test_unusual_tensors():
    assert measured(torch.empty(0, 3)) == Stats()
    z = torch.tensor([3 + 4j, 0j])
    close(measured(z), [3.0, 4.0, 0.0, 0.0])
    sparse = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse()
    close(measured(sparse), [0.0, 2.0, 0.0, 0.0])
    close(measured(torch.arange(12.0).reshape(3, 4).T[1:3]), [1, 5, 9, 2, 6, 10])
    nested = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=torch.jagged)
    close(measured(nested), [1, 1, 0, 0, 0])


def test_the_divisor_divides_sizes_and_leaves_shares():
    pool = Pool()
    pool.add(reduce_entries(torch.tensor([0.0, 8.0]), shape=True).tolist())
    found = pool.stats(divisor=4.0)
    assert (found.mean, found.std, found.max, found.zeros, found.kurtosis) == (1.0, 1.0, 2.0, 0.5, 1.0)


def test_cosine_of_known_angles():
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0], [math.nan, 1.0]])
    total, pairs = reduce_cosine(x).tolist()
    assert pairs == 6  # three usable samples, ordered pairs
    assert total == pytest.approx(2 * (2 / math.sqrt(2) + 0), rel=1e-12)
    along = reduce_cosine(torch.randn(5, 3, 4), axis=1).tolist()
    assert along[1] == 6


def test_cosine_survives_extreme_sizes():
    x = torch.tensor([[1e30, 0.0], [1e-30, 1e-30]])
    total, pairs = reduce_cosine(x).tolist()
    assert total / pairs == pytest.approx(1 / math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize(
    ("module", "edge"),
    [
        (nn.Tanh(), math.atanh(math.sqrt(0.99))),
        (nn.Sigmoid(), 2 * math.atanh(math.sqrt(0.99))),
        (nn.Softsign(), 9.0),
    ],
)
def test_saturation_begins_where_the_slope_is_one_percent_of_the_steepest(module, edge):
    x = torch.tensor([-1.01, -0.99, 0.0, 0.99, 1.01], dtype=torch.float64) * edge
    assert saturation(module)(module(x)).tolist() == [True, False, False, False, True]
    at_edge = torch.tensor([0.0, edge], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(module(at_edge).sum(), at_edge)
    assert slopes[1] / slopes[0] == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize(
    ("module", "flat", "steep"),
    [
        (nn.Hardtanh(-2, 3), [-2.5, 3.5], [-1.9, 2.9]),
        (nn.Hardsigmoid(), [-3.1, 3.1], [-2.9, 2.9]),
        (nn.ReLU6(), [6.5], [-1.0, 5.9]),
        (nn.ELU(0.5), [-4.7], [-4.5, 1.0]),
        (nn.SELU(), [-4.7], [-4.5, 9.0]),
    ],
)
def test_saturation_of_the_others(module, flat, steep):
    mask = saturation(module)
    assert mask(module(torch.tensor(flat))).all()
    assert not mask(module(torch.tensor(steep))).any()


def test_saturation_is_inherited_and_means_nothing_elsewhere():
    class MyTanh(nn.Tanh):
        pass

    assert saturation(MyTanh()) is not None
    assert saturation(nn.ReLU()) is None
    assert saturation(nn.Linear(2, 3)) is None
    assert measured(torch.tensor([0.0, 1.0]), mask=saturation(nn.Tanh())).saturated == 0.5
