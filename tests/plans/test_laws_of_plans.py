"""Laws as plain data: every class makes the round trip, everything else is refused with a reason."""

import importlib
import inspect
import json
import math
import pkgutil
from dataclasses import dataclass

import pytest
from plan_cases import Unregistered

import isometry.init
import isometry.sampling
from isometry.errors import InvalidTypeError, InvalidValueError
from isometry.init.bounded import BoundedNormal
from isometry.init.channels import PerChannel
from isometry.init.mirrored import Flattened, Mirrored, Rotation, Width
from isometry.init.shared import Blocks, Factor, Piece, Times
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
from isometry.plans import Scaled, register_law
from isometry.plans.laws import law_from_data, law_to_data
from isometry.sampling import Constant, Distribution, Elementwise, Normal, TruncatedNormal, Uniform, Whole

ROTATION = Rotation(key=2**62 + 1, rows=4, cols=2)
FLATTENED = Flattened(ROTATION, positions=9, live=2, cols=20, key=5)
LAWS = [
    Constant(-0.1),
    Normal(0.02, mean=1e-30),
    Uniform(-1 / 3, 2),
    TruncatedNormal(0.1, 0.2, cut=1.5),
    BoundedNormal(1.0, 0.0, -math.inf, 3.0),
    Orthogonal(0.1, grouped((6, 2, 3), 3), precise=True),
    DeltaOrthogonal(0.1, None, (1, 2)),
    Identity(0.5, Layout((2, 3), (), (1,), (0,)), None),
    Sparse(0.9, 0.1),
    Gates((0.0, 1.0, 0.5)),
    Chrono(100),
    ICNR(Orthogonal(0.5), 4),
    Blocks((Piece(Normal(0.5), ((0, 2), (4, 5))), Piece(Orthogonal(0.5), ((2, 4),), group=1)), axis=1),
    Times(100, -1.0),
    Factor("left", 0.7, -0.4, heads=2, turned=True),
    PerChannel(Orthogonal(0.5), (0.5, 1 / 3, 0.0), Layout((3, 2, 4), taps=(2,))),
    Mirrored(0.5, "last", None, ((1, 2),), (Width(3, 1), Width(0, plain=2)), 2, FLATTENED, ROTATION),
    Mirrored(0.5, "first", source=ROTATION, target=ROTATION),
    Scaled(ICNR(Uniform(-1, 1), 9), 0.3),
]


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_law_comes_back_equal(law):
    data = json.loads(json.dumps(law_to_data(law), allow_nan=False))
    read = law_from_data(data, "the law")
    assert read == law
    assert type(read) is type(law)
    assert hash(read) == hash(law)
    assert repr(law_from_data(law_to_data(read), "the law")) == repr(read)


def test_every_law_of_the_package_is_among_them():
    found = set()
    for package in (isometry.sampling, isometry.init):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for kind in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(kind) and issubclass(kind, Distribution):
                    found.add(kind)
    assert found - {Distribution, Elementwise, Whole} == {type(law) for law in LAWS} - {Scaled}


NORMAL = {"type": "Normal", "std": 0.5}
MIRRORED = law_to_data(LAWS[-3])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "the law must be of type dict"),
        ({}, "unknown type None"),
        ({"type": "Normals", "std": 1.0}, "did you mean 'Normal'"),
        ({"type": ["Normal"], "std": 1.0}, "unknown type"),
        ({"type": "Layout", "shape": [3]}, "unknown type 'Layout'"),
        (NORMAL | {"scale": 2.0}, "does not know: scale"),
        ({"type": "Normal", "mean": 0.0}, "lacks 'std'"),
        (NORMAL | {"std": "0.5"}, "the law.std must be a number"),
        (NORMAL | {"std": True}, "the law.std must be a number"),
        (NORMAL | {"std": None}, "the law.std must be a number"),
        (NORMAL | {"std": "nan"}, "the law.std must be a number"),
        (NORMAL | {"std": math.nan}, "the law.std must be a number"),
        (NORMAL | {"std": 10**400}, "the law.std is too large"),
        (NORMAL | {"std": "inf"}, "must be finite"),
        (NORMAL | {"std": -1.0}, "the law: std must be at least 0"),
        ({"type": "Gates", "values": 1.0}, "the law.values must be of type list"),
        ({"type": "Gates", "values": [0.0, "x"]}, r"the law.values\[1\] must be a number"),
        ({"type": "ICNR", "base": NORMAL, "copies": 2.0}, "the law.copies must be of type int"),
        ({"type": "ICNR", "base": {"type": "Width"}, "copies": 2}, "the law.base has the unknown type"),
        ({"type": "Orthogonal", "std": 1.0, "precise": 1}, "the law.precise must be of type bool"),
        ({"type": "Orthogonal", "std": 1.0, "layout": NORMAL}, "the law.layout has the unknown type"),
        ({"type": "Orthogonal", "std": 1.0, "layout": [1]}, "the law.layout must be of type dict"),
        (MIRRORED | {"part": "middle"}, "the law.part must be one of 'first'"),
        (MIRRORED | {"part": ["first"]}, "the law.part must be one of 'first'"),
        (MIRRORED | {"target": {"type": "Flattened"}}, "the law.target has the unknown type"),
        (
            MIRRORED | {"source": {"type": "Rotation", "key": 1, "rows": 2}},
            "the law.source of type Rotation lacks",
        ),
    ],
)
def test_anything_else_is_refused(data, words):
    with pytest.raises(InvalidValueError, match=words):
        law_from_data(data, "the law")


def test_a_law_of_ones_own_is_saved_once_it_is_registered():
    with pytest.raises(InvalidValueError, match=r"Unregistered is not registered.*register_law"):
        law_to_data(Scaled(Unregistered(2.0), 0.5))

    @register_law
    @dataclass(frozen=True)
    class Ours(Whole):
        base: Distribution
        names: tuple[str, int] | None = None

        def draw(self, shape, generator):
            raise NotImplementedError

    for law in (Ours(Normal(0.5)), Ours(Normal(0.5), ("a", 2))):
        assert law_from_data(json.loads(json.dumps(law_to_data(law))), "") == law
    with pytest.raises(InvalidValueError, match="must have 2 entries"):
        law_from_data({"type": "Ours", "base": NORMAL, "names": ["a"]}, "")
    register_law(Ours)
    with pytest.raises(InvalidValueError, match="'Ours' is registered already"):
        register_law(dataclass(frozen=True)(type("Ours", (Normal,), {})))


@pytest.mark.parametrize("kind", [3, Elementwise, dataclass(type("Loose", (), {}))])
def test_only_frozen_dataclasses_are_laws(kind):
    with pytest.raises(InvalidTypeError, match="frozen dataclass"):
        register_law(kind)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(InvalidValueError, match="cannot be kept as JSON"):
        law_to_data(Scaled(Orthogonal(0.5, layout={1, 2}), 1.0))
