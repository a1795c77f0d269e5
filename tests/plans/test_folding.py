"""Folding of layers that are alike."""

from isometry.plans.folding import folded, masked, span, spanning


def labels(names, alike=lambda name: ""):
    return [(fold.label, len(fold.items)) for fold in folded(names, str, alike)]


def test_neighbours_that_are_alike_fold():
    names = [f"layers.{i}.{leaf}" for i in range(3) for leaf in ("w", "b")]
    assert labels(["embed", *names, "head"]) == [
        ("embed", 1),
        ("layers.0…2.w", 3),
        ("layers.0…2.b", 3),
        ("head", 1),
    ]


def test_every_item_is_in_one_fold_in_order_of_layers():
    names = [f"layers.{i}.{leaf}" for i in range(3) for leaf in ("w", "b")]
    assert [fold.items for fold in folded(names, str, lambda _: 0)] == [tuple(names[::2]), tuple(names[1::2])]


def test_a_layer_that_differs_stands_alone():
    names = [f"layers.{i}.w" for i in range(6)]
    assert labels(names, lambda name: name == "layers.3.w") == [
        ("layers.0…2.w", 3),
        ("layers.3.w", 1),
        ("layers.4…5.w", 2),
    ]
    more = ["a.0.w", "a.0.b", "a.1.w", "a.2.w", "a.2.b"]
    assert labels(more) == [(name, 1) for name in more]


def test_numbers_may_leave_gaps_and_patterns_may_repeat():
    plain = [f"{i}.weight" for i in range(0, 20, 2)]
    assert labels(plain) == [("0…18.weight", 10)]
    pattern = [f"{i}.{leaf}" for k in range(4) for i, leaf in ((3 * k, "conv"), (3 * k + 1, "norm"))]
    assert labels([*pattern, "12.fc"]) == [("0…9.conv", 4), ("1…10.norm", 4), ("12.fc", 1)]


def test_layers_within_layers_fold():
    names = [f"layers.{i}.experts.{j}.w" for i in range(3) for j in range(4)]
    assert labels(names) == [("layers.0…2.experts.0…3.w", 12)]
    stages = [f"s.{i}.{j}.w" for i, depth in enumerate((2, 2, 3)) for j in range(depth)]
    assert labels(stages) == [("s.0…1.0…1.w", 4), ("s.2.0…2.w", 3)]


def test_a_thousand_layers_make_a_few_lines():
    names = [f"net.{i}.{leaf}" for i in range(1000) for leaf in ("a", "b", "c")]
    assert len(labels(names)) == 3


def test_words_that_differ_in_numbers_alone():
    texts = [
        "ends branch 1 of 24: 0.5e-3 of it",
        "ends branch 3 of 24: 2 of it",
        "ends branch 5 of 24: 2 of it",
    ]
    assert masked(texts[0]) == masked(texts[1]) == "ends branch # of #: # of it"
    assert spanning(texts) == "ends branch 1…5 of 24: 0.5e-3…2 of it"
    assert spanning(["plain", "plain"]) == "plain"
    assert span([3.0, 1.0, 2.0]) == "1…3"
    assert span([1.00001, 1.00002]) == "1"
