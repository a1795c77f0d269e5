import pytest
import torch
from torch import nn

from isometry import demo
from isometry.errors import InvalidValueError


@pytest.mark.parametrize("activation", demo.ACTIVATIONS)
def test_a_plain_network_is_layers_and_activations_and_nothing_else(activation):
    model = demo.plain(depth=4, width=12, inputs=7, classes=3, activation=activation)
    kinds = [type(module) for module in model]
    phi = demo.ACTIVATIONS[activation]
    assert kinds == [nn.Linear, phi, nn.Linear, phi, nn.Linear, phi, nn.Linear]
    assert model(torch.zeros(5, 7)).shape == (5, 3)


def test_a_plain_network_needs_two_layers_and_a_known_activation():
    with pytest.raises(InvalidValueError, match="2 or more"):
        demo.plain(depth=1)
    with pytest.raises(InvalidValueError, match="relu, tanh, gelu"):
        demo.plain(activation="rleu")


def test_the_demo_goes_over_its_activations_with_all_starts():
    seen = []
    found = dict(
        demo.run(
            activations=["tanh", "gelu"],
            arguments={"depth": 4, "width": 16},
            steps=2,
            lr=0.01,
            progress=lambda *news: seen.append(news),
        )
    )
    assert list(found) == ["tanh", "gelu"]
    assert [entry.name for entry in found["gelu"]] == list(demo.INITS)
    assert [name for name, _ in found["tanh"].skipped] == ["mirrored"]
    assert found["gelu"].title == "4 plain gelu layers"
    assert all(entry.lr == 0.01 for entry in found["gelu"])
    done = [now / total for _, now, total in seen]
    assert done == sorted(done)
    assert done[0] > 0
    assert done[-1] == 1
