"""Blocks of laws, and draws that they share."""

import math

import pytest
import torch

from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.init.shared import Blocks, Factor, Piece, Times
from isometry.plans import std_of
from isometry.plans.laws import law_from_data, law_to_data
from isometry.plans.sizes import mean_of
from isometry.sampling import Constant, Normal


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_unit_gets_the_law_of_its_piece():
    law = Blocks((Piece(Normal(1.0), ((0, 2), (4, 6))), Piece(Constant(3.0), ((2, 4),), 1)), axis=1)
    drawn = law.draw((500, 6), _generator())
    assert (drawn[:, 2:4] == 3).all()
    assert float(drawn[:, [0, 1, 4, 5]].std()) == pytest.approx(1, rel=0.07)  # 2000 values: 1/√4000 = 1.6 %
    assert torch.equal(drawn, law.draw((500, 6), _generator()))
    assert not torch.equal(drawn, law.draw((500, 6), _generator(1)))


def test_pieces_of_one_group_share_their_numbers_and_others_do_not():
    law = Blocks(
        (Piece(Normal(1.0), ((0, 3),)), Piece(Normal(2.0), ((3, 6),)), Piece(Normal(1.0), ((6, 9),), 1))
    )
    a, b, c = law.draw((9, 4), _generator()).split(3)
    assert torch.allclose(2 * a, b)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize("runs", [((0, 3),), ((0, 4), (3, 5)), ((0, 6),)])
def test_pieces_that_do_not_fit_are_refused(runs):
    with pytest.raises(InvalidValueError, match="each of the 5 units"):
        Blocks((Piece(Normal(1.0), runs),)).draw((5, 2), _generator())


def test_sizes_are_those_of_a_large_draw_and_laws_survive_json():
    laws = Times(50.0), Times(50.0, -1.0), Constant(1.0)
    law = Blocks(tuple(Piece(each, ((k, k + 300),)) for each, k in zip(laws, (0, 300, 600), strict=True)))
    drawn = law.draw((900, 50), _generator()).double()
    assert mean_of(law, drawn.shape) == pytest.approx(float(drawn.mean()), abs=0.02)
    assert std_of(law, drawn.shape) == pytest.approx(float(drawn.std()), rel=0.01)
    one = Times(50.0)
    values = one.draw((20000,), _generator()).double()
    assert (mean_of(one, (20000,)), std_of(one, (20000,))) == pytest.approx(
        (float(values.mean()), float(values.std())), rel=0.02
    )
    for each in (law, Factor("left", 0.1, -0.2, heads=2, turned=True)):
        assert law_from_data(law_to_data(each), "the law") == each


def test_factors_multiply_to_the_best_approximation_of_their_rank():
    d, rank = 12, 3
    left, right = (
        Factor(side, 0.7, 0.7, heads=2).draw((2 * rank, d), _generator()) for side in ("left", "right")
    )
    whole = [Factor(side, 0.7, 0.7).draw((d, d), _generator()).double() for side in ("left", "right")]
    full = whole[0].T @ whole[1]
    singular = torch.linalg.svdvals(full)
    error = torch.linalg.matrix_norm(full - left[:rank].T.double() @ right[:rank].double())
    assert float(error) == pytest.approx(
        float(singular[rank:].square().sum().sqrt()), rel=1e-4
    )  # Eckart, Young
    turned = Factor("left", 0.7, 0.7, heads=2, turned=True).draw((d, 2 * rank), _generator())
    assert torch.equal(turned, left.T)


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidValueError, match="greater than 2"):
        Times(2.0)
    with pytest.raises(InvalidTypeError, match="alpha"):
        Factor("left", "a", 1.0)
    with pytest.raises(InvalidValueError, match="heads"):
        Factor("left", 0.1, 1.0, heads=3).draw((4, 4), _generator())
    assert Times(10.0).draw((4,), _generator()).max() <= math.log(9)
