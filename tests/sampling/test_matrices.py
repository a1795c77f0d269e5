import math

import pytest
import torch
from scipy import stats

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.sampling import haar


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("batch", "rows", "cols"),
    [(1, 1, 1), (3, 1, 4), (3, 5, 1), (2, 300, 137), (1, 129, 260), (600, 8, 9), (2, 0, 3), (0, 3, 2)],
)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 3e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-2)]
)
def test_rows_or_columns_are_orthonormal(batch, rows, cols, dtype, error):
    q = haar(batch, rows, cols, generator(), dtype=dtype)
    assert q.shape == (batch, rows, cols)
    assert q.dtype == dtype
    assert q.is_contiguous()
    exact = q.double()
    gram = exact @ exact.mT if rows <= cols else exact.mT @ exact
    assert torch.allclose(
        gram, torch.eye(min(rows, cols), dtype=torch.float64).expand_as(gram), rtol=0, atol=error
    )


def test_the_law_is_haars():
    """Traces of powers of a Haar matrix (Diaconis and Shahshahani, 1994), the law of one entry; exact."""
    n, k = 40_000, 5
    q = haar(n, k, k, generator(1)).double()
    power = torch.eye(k, dtype=torch.float64).expand(n, k, k)
    for j in (1, 2):
        power = power @ q
        trace = torch.diagonal(power, dim1=1, dim2=2).sum(1)
        mean = 1 - j % 2  # E tr Q^j is 1 for even j and 0 for odd, for j <= k/2
        assert abs(trace.mean() - mean) < 5 * trace.std() / n**0.5
        square = (trace - mean) ** 2
        assert abs(square.mean() - j) < 5 * square.std() / n**0.5  # Var tr Q^j = j
    determinant = torch.linalg.det(q)
    assert abs(determinant.mean()) < 5 / n**0.5
    # every entry has the law of a coordinate on the sphere: (1 + x)/2 ~ Beta((k - 1)/2, (k - 1)/2)
    law = stats.beta((k - 1) / 2, (k - 1) / 2, loc=-1, scale=2)
    for i, j in ((0, 0), (4, 4), (0, 4), (4, 0), (2, 3)):
        assert stats.kstest(q[:, i, j].numpy(), law.cdf).pvalue > 1e-4


def test_the_sum_of_squares_between_blocks_is_right():
    """Past the first block of reflections: E of the squared sum of a corner of a Haar matrix (exact)."""
    q = haar(200, 150, 150, generator(2)).double()
    corner = q[:, 120:, 130:].square().sum((1, 2))
    assert abs(corner.mean() - 30 * 20 / 150) < 5 * corner.std() / math.sqrt(200)
    assert corner.std() > 0


@pytest.mark.parametrize(("rows", "cols"), [(300, 200), (200, 777), (64, 64)])
def test_threads_do_not_change_a_bit(rows, cols):
    mine = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            drawn.append(haar(2, rows, cols, generator()))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(mine)
    assert all(torch.equal(q, drawn[0]) for q in drawn)


def test_the_global_generator_serves_by_default():
    torch.manual_seed(4)
    first = haar(1, 3, 4)
    assert torch.equal(haar(1, 3, 4, generator(4)), first)
    assert not torch.equal(haar(1, 3, 4), first)


def test_sizes_and_dtypes_that_make_no_matrix():
    with pytest.raises(InvalidValueError, match="rows=-1"):
        haar(1, -1, 2)
    with pytest.raises(InvalidTypeError, match="floating-point"):
        haar(1, 2, 2, dtype=torch.int64)
