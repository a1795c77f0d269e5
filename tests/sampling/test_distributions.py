import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.sampling import Constant, Normal, TruncatedNormal, Uniform, fill_keyed_

N = 2**20
LAWS = {
    "normal": (Normal(0.7, 0.2), stats.norm(0.2, 0.7)),
    "uniform": (Uniform(-0.3, 0.9), stats.uniform(-0.3, 1.2)),
    "cut at 2": (TruncatedNormal(1.0), None),
    "cut at 3": (TruncatedNormal(0.02, -0.01, 3.0), None),
    "cut at 0.3": (TruncatedNormal(1.0, cut=0.3), None),
    "cut at 6": (TruncatedNormal(1.0, cut=6.0), None),
}


def reference(law, exact):
    if exact is not None:
        return exact
    return stats.truncnorm(-law.cut, law.cut, law.mean, law.parent_std)


def draw(law, seed=0, name="layers.0.weight", shape=(1024, 1024)):
    return fill_keyed_(torch.empty(shape), law, seed=seed, name=name).double().flatten().numpy()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", LAWS)
def test_moments_and_distribution_function(kind, seed):
    law, exact = LAWS[kind]
    exact = reference(law, exact)
    x = draw(law, seed)
    mean, variance, skew, kurtosis = (float(v) for v in exact.stats("mvsk"))
    z = (x - mean) / math.sqrt(variance)
    sixth, eighth = float(np.mean(z**6)), float(np.mean(z**8))
    # five standard deviations of each estimator
    assert abs(z.mean()) < 5 / math.sqrt(N)
    assert abs(np.mean(z**2) - 1) < 5 * math.sqrt((kurtosis + 2) / N)
    assert abs(np.mean(z**3) - skew) < 5 * math.sqrt(sixth / N)
    assert abs(np.mean(z**4) - kurtosis - 3) < 5 * math.sqrt((eighth - (kurtosis + 3) ** 2) / N)
    assert stats.kstest(x, exact.cdf).pvalue > 1e-4


@pytest.mark.parametrize("kind", LAWS)
def test_tails(kind):
    law, exact = LAWS[kind]
    exact = reference(law, exact)
    x = np.concatenate([draw(law, seed) for seed in range(3)])
    for share in (1e-2, 1e-4, 1e-5):
        for outside in (np.sum(x < exact.ppf(share)), np.sum(x > exact.isf(share))):
            expected = share * x.size
            assert abs(outside - expected) < 5 * math.sqrt(expected) + 1


def test_nothing_correlates():
    """Between seeds, neighbouring names, tiles, rows, columns, and the two of a pair; nor do squares."""
    law = Normal(1.0)
    base = draw(law).reshape(1024, 1024)
    blocks = [base[i : i + 512, j : j + 512] for i, j in itertools.product((0, 512), (0, 512))]
    pairs = {
        "seeds": (base, draw(law, seed=1).reshape(base.shape)),
        "names": (base, draw(law, name="layers.1.weight").reshape(base.shape)),
        "bias": (base, draw(law, name="layers.0.bias").reshape(base.shape)),
        "rows": (base[:-1], base[1:]),
        "columns": (base[:, :-1], base[:, 1:]),
        "halves of a tile": (base[:256, :512], base[256:512, :512]),
    } | {f"tiles {a}, {b}": (blocks[a], blocks[b]) for a, b in itertools.combinations(range(4), 2)}
    for name, (a, b) in pairs.items():
        for power in (1, 2):
            r = np.corrcoef(a.ravel() ** power, b.ravel() ** power)[0, 1]
            assert abs(r) < 5 / math.sqrt(a.size), (name, power)


def test_rows_and_columns_look_like_a_random_matrix():
    """The largest singular value of a normal matrix is √m + √n, within m^(-1/6) or so (asymptotic)."""
    w = fill_keyed_(torch.empty(900, 400), Normal(1.0), seed=0, name="w").double()
    s = torch.linalg.svdvals(w)
    assert abs(s[0] - 50) < 5 * 900 ** (-1 / 6)
    assert abs(s[-1] - 10) < 5 * 900 ** (-1 / 6)


def test_the_std_asked_for_is_the_std_drawn():
    for cut in (1e-4, 0.0199, 0.0201, 1.0, 2.0, 3.0, 8.0):
        law = TruncatedNormal(0.5, cut=cut)
        variance = stats.truncnorm(-cut, cut).var() if cut > 0.01 else cut**2 / 3
        assert law.parent_std * math.sqrt(variance) == pytest.approx(0.5, rel=1e-6)
    assert TruncatedNormal(1.0).std / TruncatedNormal(1.0).parent_std == pytest.approx(0.8796, abs=5e-5)
    x = draw(TruncatedNormal(1.0, cut=1e-4), shape=(N,))
    assert abs(np.mean(x**2) - 1) < 5 * math.sqrt(0.8 / N)
    assert np.unique(x).size > 0.9 * N


def test_degenerate_laws():
    assert set(draw(Normal(0.0, 0.5), shape=(100,))) == {0.5}
    assert set(draw(TruncatedNormal(0.0, 0.5), shape=(100,))) == {0.5}
    assert set(draw(Uniform(0.25, 0.25), shape=(100,))) == {0.25}
    assert set(draw(Constant(-1.5), shape=(100,))) == {-1.5}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Normal(-1.0), InvalidValueError, "std must be at least 0, got -1"),
        (lambda: Normal(math.nan), InvalidValueError, "std must be finite"),
        (lambda: Normal(1e39), InvalidValueError, "std must be finite in float32"),
        (lambda: Normal("1"), InvalidTypeError, "std must be a number, got '1'"),
        (lambda: Normal(True), InvalidTypeError, "std must be a number"),
        (lambda: Uniform(1.0, 0.0), InvalidValueError, "low must not exceed high"),
        (lambda: Uniform(0.0, math.inf), InvalidValueError, "high must be finite"),
        (lambda: Uniform(-3e38, 3e38), InvalidValueError, "high - low must be finite"),
        (lambda: TruncatedNormal(1.0, cut=0.0), InvalidValueError, "cut must be positive"),
        (lambda: Constant(math.nan), InvalidValueError, "value must be finite"),
    ],
)
def test_parameters_that_make_no_law(make, error, words):
    with pytest.raises(error, match=words):
        make()
