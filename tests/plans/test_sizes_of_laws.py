"""Sizes of laws against what is drawn from them, and multiplication of laws by numbers."""

import math
from dataclasses import dataclass

import pytest
import torch
from plan_cases import Unregistered

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.init.bounded import BoundedNormal
from isometry.init.mirrored import Flattened, Mirrored, Rotation, Width
from isometry.init.structured import (
    ICNR,
    Chrono,
    DeltaOrthogonal,
    Gates,
    Identity,
    Orthogonal,
    Sparse,
)
from isometry.layout import Layout, grouped
from isometry.plans import Scaled, mean_of, scaled, std_of
from isometry.plans.fitting import fits
from isometry.plans.sizes import size_of
from isometry.sampling import Constant, Normal, TruncatedNormal, Uniform, Whole, fill_keyed_

KEYS = Rotation(1, 10, 6), Rotation(2, 7, 6)
FLAT = Flattened(Rotation(3, 4, 3), positions=9, live=3, cols=20, key=4)
# Law, shape, whether mean and deviation of the entries are not random.
CASES = [
    (Constant(-0.4), (3,), True),
    (Normal(0.5, 0.3), (40, 30), False),
    (Uniform(-1.0, 2.0), (40, 30), False),
    (TruncatedNormal(0.5, -0.3, 1.1), (40, 30), False),
    (BoundedNormal(0.5, 0.1, -0.6, 9.0), (40, 30), False),
    (Orthogonal(0.2), (30, 20), True),
    (Orthogonal(0.2, grouped((12, 4, 3), 3)), (12, 4, 3), True),
    (DeltaOrthogonal(0.2), (12, 8, 3, 3), True),
    (Identity(-0.7), (4, 6), True),
    (Identity(0.7, Layout((2, 6, 4), (0,), (2,), (1,))), (12, 4), True),
    (Identity(0.7), (4, 6, 5), True),
    (Sparse(0.74, 0.5), (50, 40), False),
    (Gates((0.0, 1.0, 3.0)), (12,), True),
    (Chrono(100), (4000,), False),
    (Chrono(2.001), (4000,), False),
    (ICNR(Normal(0.5), 4), (32, 16, 3, 3), False),
    *((Mirrored(0.5, part), (13, 9), True) for part in ("first", "hidden", "last", "only")),
    (Mirrored(0.5, "hidden", reads=Width(4, 3)), (10, 11), True),
    (Mirrored(0.5), (8, 6, 3), True),
    (Mirrored(0.5, box=((1, 2), (0, 2)), reads=Width(8, 4)), (8, 5, 3, 2), True),
    (Mirrored(0.5, "last", reads=Width(6, 6), interleaved=3), (20, 18), True),
    (Mirrored(0.5, "last", reads=(Width(3, 1), Width(0, plain=5))), (12, 12), True),
    (Mirrored(0.5, "last", reads=(Width(9, 1), Width(0, plain=9))), (12, 28), False),
    (Mirrored(0.5, "hidden", source=KEYS[0], target=KEYS[1]), (15, 20), True),
    (Mirrored(0.5, "last", reads=Width(36, 0), source=FLAT, target=Rotation(5, 20, 20)), (20, 72), True),
    (Scaled(Chrono(100), 0.3), (4000,), False),
    (Scaled(Normal(0.5, 1.0), 0.3), (40, 30), False),
]


def drawn(law, shape, name="x"):
    return fill_keyed_(torch.empty(shape, dtype=torch.float64), law, seed=0, name=name)


def allowed(size, count):
    """Six standard deviations of the mean and of the mean square deviation."""
    share = size.copies / count
    return 6 * size.std * math.sqrt(share), 6 * size.std**2 * math.sqrt((size.kurtosis - 1) * share)


@pytest.mark.parametrize(("law", "shape", "exact"), CASES, ids=repr)
def test_mean_and_deviation_are_those_drawn(law, shape, exact):
    size, sample = size_of(law, shape), drawn(law, shape)
    assert (size.mean, size.std) == (mean_of(law, shape), std_of(law, shape))
    of_mean, of_square = allowed(size, sample.numel())
    square = float((sample - size.mean).square().mean())
    if exact:
        assert size.kurtosis == 1
        assert math.sqrt(square) == pytest.approx(size.std, rel=1e-6, abs=1e-9)
    assert abs(float(sample.mean()) - size.mean) <= of_mean + 1e-7
    assert abs(square - size.std**2) <= of_square + 1e-6 * size.std**2
    fourth = float((sample - size.mean).pow(4).mean())
    if not exact:
        assert fourth <= 1.35 * size.kurtosis * size.std**4, "the kurtosis is a bound"


@pytest.mark.parametrize(("law", "shape", "exact"), CASES, ids=repr)
@pytest.mark.parametrize("factor", [0.0, 0.25, 3.0])
def test_a_multiplied_law_draws_multiples(law, shape, exact, factor):
    made = scaled(law, factor)
    torch.testing.assert_close(drawn(made, shape), factor * drawn(law, shape), rtol=1e-6, atol=1e-6)
    assert std_of(made, shape) == pytest.approx(factor * std_of(law, shape), rel=1e-12)
    assert fits(made, shape)
    if factor and not isinstance(law, Chrono):
        assert type(made) is type(law)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_a_factor_is_a_size(factor):
    for make in (scaled, Scaled):
        with pytest.raises(InvalidValueError, match="factor must"):
            make(Normal(0.5), factor)
    with pytest.raises(InvalidTypeError, match="factor must be a number"):
        scaled(Normal(0.5), "2")


def test_laws_of_ones_own_tell_their_size_or_nobody_knows_it():
    @dataclass(frozen=True)
    class Known(Unregistered):
        def moments(self, shape):
            return 0, self.std * len(shape)

        def scaled(self, factor):
            return Known(self.std * factor)

        def check(self, shape):
            if len(shape) != 2:
                raise InvalidValueError("not a matrix")

    assert (mean_of(Known(0.5), (2, 3)), std_of(Known(0.5), (2, 3))) == (0.0, 1.0)
    assert scaled(Known(0.5), 2.0) == Known(1.0)
    assert fits(Known(), (2, 3))
    with pytest.raises(InvalidValueError, match="not a matrix"):
        fits(Known(), (2,))
    stranger = Unregistered(0.5)
    assert std_of(stranger, (2, 3)) is None
    assert std_of(ICNR(stranger, 2), (2, 3)) is None
    assert scaled(scaled(stranger, 2.0), 3.0) == Scaled(stranger, 6.0)
    assert std_of(Scaled(stranger, 2.0), (2, 3)) is None
    assert not fits(Scaled(stranger, 2.0), (2, 3))


def test_a_multiplied_law_shares_the_stream_of_its_law():
    @dataclass(frozen=True)
    class Shared(Unregistered):
        stream: str | None = None

    assert Scaled(Shared(stream="pair"), 2.0).stream == "pair"
    assert Scaled(Normal(0.5), 2.0).stream is None


@pytest.mark.parametrize(
    ("law", "shape"),
    [
        (Orthogonal(1.0), (3,)),
        (Orthogonal(1.0, grouped((4, 3))), (4, 4)),
        (Orthogonal(1.0, Layout((4, 3), (), (0,), ())), (4, 3)),
        (Orthogonal(1.0, Layout((4, 3), (), (0,), (2,))), (4, 3)),
        (DeltaOrthogonal(1.0, None, (1,)), (4, 3)),
        (DeltaOrthogonal(1.0, None, (3,)), (4, 3, 3)),
        (Identity(1.0, None, (0, 0)), (4, 3, 3)),
        (Sparse(0.5), (4, 3, 3)),
        (Gates((1.0, 2.0, 3.0)), (8,)),
        (Gates((1.0, 2.0)), (4, 2)),
        (Chrono(10), (6,)),
        (ICNR(Normal(1.0), 4), (6, 3, 3)),
        (ICNR(Normal(1.0), 0), (6, 3, 3)),
        (ICNR(Orthogonal(1.0), 2), (6,)),
        (Scaled(Chrono(10), 2.0), (6,)),
        (Mirrored(1.0, layout=grouped((8, 3), 2)), (8, 3)),
        (Mirrored(1.0), (8, 1)),
        (Mirrored(1.0, reads=Width(2, 0)), (8, 6)),
        (Mirrored(1.0, box=((3, 1),)), (8, 6, 3)),
        (Mirrored(1.0, box=((1, 1),)), (8, 6, 3, 3)),
        (Mirrored(1.0, interleaved=4), (8, 6)),
        (Mirrored(1.0, "only", source=Rotation(1, 6, 6), target=Rotation(2, 7, 6)), (8, 6)),
        (Mirrored(1.0, "only", source=Rotation(1, 5, 5), target=Rotation(2, 8, 5)), (8, 6)),
        (Mirrored(1.0, "only", source=Rotation(1, 6, 4), target=Rotation(2, 8, 6)), (8, 6)),
        (
            Mirrored(1.0, "only", source=Flattened(Rotation(1, 3, 2), 2, 3, 6, 1), target=Rotation(2, 8, 6)),
            (8, 6),
        ),
    ],
    ids=repr,
)
def test_what_cannot_be_drawn_is_known_beforehand(law, shape):
    with pytest.raises(InvalidValueError):
        fits(law, shape)
    with pytest.raises((InvalidValueError, RuntimeError, IndexError, ValueError)):
        (law if isinstance(law, Whole) else ICNR(law, 1)).draw(shape, torch.Generator())


def test_a_rotation_has_no_more_directions_than_coordinates():
    law = Mirrored(1.0, "only", source=Rotation(1, 6, 7), target=Rotation(2, 8, 8))
    with pytest.raises(InvalidValueError, match="6 coordinates cannot have 7 directions"):
        fits(law, (8, 6))
