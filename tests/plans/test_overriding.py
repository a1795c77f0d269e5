"""Overrides by name and role."""

import math

import pytest
from plan_cases import Model, plan_of

from isometry.errors import InvalidTypeError, InvalidValueError, NotFoundError
from isometry.init.structured import Chrono, Orthogonal
from isometry.plans import Plan, Row
from isometry.sampling import Constant, Normal, Uniform

PLAN = plan_of(Model())


def changed(plan):
    return {row.name for row in plan if row != PLAN[row.name]}


def test_names_and_roles_choose_rows():
    plan = PLAN.override({"*.bias": Constant(0.5), "role:embedding": Uniform(-1.0, 1.0)})
    assert changed(plan) == {"up.bias", "norm.bias", "down.bias", "embed.weight"}
    assert plan["up.bias"].law == Constant(0.5)
    assert plan["embed.weight"].law == Uniform(-1.0, 1.0)
    assert plan["embed.weight"].reason == "set by hand (role:embedding)"
    assert (plan.recipe, plan.objective, plan.notes) == (PLAN.recipe, PLAN.objective, PLAN.notes)
    assert changed(PLAN) == set()


def test_the_first_pattern_that_matches_decides():
    plan = PLAN.override({"up.bias": Constant(1.0), "*.bias": Constant(2.0)})
    assert (plan["up.bias"].law, plan["down.bias"].law) == (Constant(1.0), Constant(2.0))
    both = PLAN.override({"*.bias": Constant(2.0), "up.bias": Constant(1.0)})
    assert both["up.bias"].law == Constant(2.0)


def test_none_keeps_and_a_number_is_a_deviation():
    plan = PLAN.override({"down.weight": 0.25, "up.weight": 0, "norm.*": 0.02, "embed.*": None})
    assert plan["down.weight"].law == Orthogonal(0.25)
    assert plan["up.weight"].law == Constant(0.0)
    assert plan["norm.weight"].law == Normal(0.02, mean=1.0)
    assert plan["norm.bias"].law == Normal(0.02)
    assert plan["embed.weight"].law is None
    again = plan.override({"embed.*": 0.5})
    assert again["embed.weight"].law == Normal(0.5)
    assert again["embed.weight"].std == 0.5


def test_rates_stay_and_marks_go():
    row = Row("w", (4, 4), "head", Normal(1.0), "", rate=0.5, marks=("unsolved",))
    made = Plan((row,), "mup", "forward").override({"role:head": 0.1})["w"]
    assert (made.rate, made.marks) == (0.5, ())


@pytest.mark.parametrize(
    ("laws", "error", "words"),
    [
        ({"down.weights": 0.1}, NotFoundError, r"'down.weights' matches no .*did you mean 'down.weight'\?"),
        ({"role:embeddings": 0.1}, NotFoundError, r"did you mean 'role:embedding'\?"),
        ({"role:weight": 0.1, "zz": 0.1}, NotFoundError, "there are embed.weight, up.weight"),
        ({"up.*": "normal"}, InvalidTypeError, "'up.\\*' must be a Distribution, a standard deviation"),
        ({"up.*": True}, InvalidTypeError, "must be a Distribution"),
        ({3: 0.1}, InvalidTypeError, "a pattern must be text"),
        ([("up.*", 0.1)], InvalidTypeError, "laws must be a dict"),
        ({"up.*": -0.1}, InvalidValueError, "'up.\\*' must not be negative"),
        ({"up.*": math.nan}, InvalidValueError, "'up.\\*' must be finite"),
        ({"up.*": Chrono(9)}, InvalidValueError, "for 'up.\\*' does not fit 'up.weight'"),
    ],
)
def test_what_is_no_override(laws, error, words):
    with pytest.raises(error, match=words):
        PLAN.override(laws)
