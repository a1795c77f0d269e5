"""Weights that are used again: what a loop makes of its steps is alike, on the way there and back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry.moments import columns, kin, origins
from isometry.moments.axes import Array
from isometry.moments.latents import Latent
from isometry.moments.places import Axes, View, blocks_seen, composed, seen, view_of
from isometry.moments.record import Run
from isometry.predict import predict

BATCH, STEPS, INPUTS, WIDTH = 4, 10, 24, 64
DRAWS = 120
FINITE = 0.03  # of a root mean square: what is asymptotic in a width of 64


class Recurrent(nn.Module):
    """Two layers of torch's own kind, of which the last step's output is read."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.first = kind(INPUTS, WIDTH, batch_first=True)
        self.second = kind(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state behind the last step."""
        return self.second(self.first(x)[0])[0][:, -1]


class Written(nn.Module):
    """A gated cell in a loop over time, of input and state side by side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs + WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return all states."""
        state, states = x.new_zeros(x.shape[0], WIDTH), []
        for step in range(x.shape[1]):
            gate, new = self.gates(torch.cat([x[:, step], state], -1)).chunk(2, -1)
            state = state + torch.sigmoid(gate) * (torch.tanh(new) - state)
            states.append(state)
        return torch.stack(states, 1)


class Ahead(nn.Module):
    """A gated cell in a loop over time, which reads what was made of all inputs at once."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs, self.states = nn.Linear(inputs, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return all states."""
        made, state, states = self.inputs(x), x.new_zeros(x.shape[0], WIDTH), []
        for step in range(x.shape[1]):
            keep, take, new = (made[:, step] + self.states(state)).chunk(3, -1)
            state = torch.sigmoid(keep) * state + torch.sigmoid(take) * torch.tanh(new)
            states.append(state)
        return torch.stack(states, 1)


class WrittenTwice(nn.Module):
    """Two layers of such cells, of which the last step's output is read."""

    def __init__(self, cell: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = cell(INPUTS), cell(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state behind the last step."""
        return self.second(self.first(x))[:, -1]


class Again(nn.Module):
    """A residual stream that meets one and the same layer five times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream."""
        x = self.first(x)
        for _ in range(5):
            x = x + torch.tanh(self.layer(x))
        return x


class Copies(nn.Module):
    """Attention layers that begin with the same weights, as copies of one do."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.first = nn.Linear(INPUTS, WIDTH)
        self.layers = nn.TransformerEncoder(layer, 5, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream."""
        made: Tensor = self.layers(self.first(x))
        return made


class Block(nn.Module):
    """Convolutions and batch norms beside a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream."""
        made = torch.relu(self.norms[0](self.convs[0](x)))
        return x + self.norms[1](self.convs[1](made))


class Convolved(nn.Module):
    """Copies of one block, its batch norms and their counters included."""

    def __init__(self) -> None:
        super().__init__()
        self.first, block = nn.Conv1d(INPUTS, WIDTH, 3, padding=1), Block()
        self.layers = nn.Sequential(*[copy.deepcopy(block) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream."""
        made: Tensor = self.layers(self.first(x.transpose(1, 2)))
        return made


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "written": lambda: WrittenTwice(Written),
    "ahead": lambda: WrittenTwice(Ahead),
    "again": Again,
    "copies": Copies,
    "convolved": Convolved,
}


def drawn(build: Callable[[], nn.Module]) -> dict[str, list[float]]:
    """Return the mean squares of outputs and of parameters' gradients, draw by draw."""
    found: dict[str, list[float]] = {}
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        model = build()
        for name, module in model.named_children():

            def note(_: nn.Module, __: object, out: Tensor | tuple[Tensor, ...], name: str = name) -> None:
                out = out if isinstance(out, Tensor) else out[0]
                found.setdefault(name, []).append(float(out.detach().square().mean()))

            module.register_forward_hook(note)
        made = model(torch.randn(BATCH, STEPS, INPUTS))
        found.setdefault("", []).append(float(made.detach().square().mean()))
        made.backward(torch.randn_like(made))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            found.setdefault(f"gradient {name}", []).append(float(parameter.grad.square().mean()))
    return found


@pytest.mark.parametrize("name", BUILDERS)
def test_signal_and_gradients_through_weights_used_again(name: str) -> None:
    told = predict(BUILDERS[name], f"{BATCH}x{STEPS}x{INPUTS}")
    assert not any(n.startswith("unknown") for n in told.notes)
    for row, squares in drawn(BUILDERS[name]).items():
        if row == "layer":  # called several times
            continue
        if name == "convolved" and row.endswith(("first.bias", "norms.1.bias")):
            continue  # what norms leave of sums over all places is told too large
        stats = told[row.removeprefix("gradient ")]
        side = stats.backward if row.startswith("gradient") else stats.forward
        assert side is not None
        assert side.rms is not None
        mean, error = np.mean(squares), np.std(squares) / DRAWS**0.5
        slack = 2 * FINITE + 4 * error / mean + (0.1 if name == "again" and "bias" in row else 0.0)
        assert side.rms**2 == pytest.approx(mean, rel=slack), row


@pytest.mark.parametrize("name", ["copies", "convolved"])
def test_copies_in_a_model_with_values_are_known_as_such(name: str) -> None:
    build = BUILDERS[name]
    torch.manual_seed(0)
    told, same = predict(build, "4x10x24"), predict(build(), "4x10x24")
    assert not any(note.startswith("builder") for note in told.notes)
    for row in ("", "first", "first.weight"):
        (one, other) = (x[row].backward for x in (told, same))
        assert one is not None
        assert other is not None
        assert one.rms == pytest.approx(other.rms, rel=0.1)  # the values' own scatter


def test_views_of_a_table() -> None:
    rho = np.array([[1.0, 0.1], [0.5, 0.05]])  # samples × units, same and differ
    latent = Latent(((4,), (12,)), rho)
    whole, third, other = (view_of(latent, (Run(0, 1, 0), Run(1, 1, offset))) for offset in (0, 4, 8))
    axes = ((4,), (4,))
    assert None not in (whole, third, other)
    assert view_of(latent, (Run(0, 1, 0), Run(1, 1, 4))) is third
    np.testing.assert_allclose(seen(rho, latent.axes, third.places, third.places, axes), rho)
    apart = seen(rho, latent.axes, third.places, other.places, axes)
    np.testing.assert_allclose(apart, rho[:, 1:])  # never the same unit
    picked = [view_of((latent, Run(0, 1, 0), k), (Run(1, 1, 0),)) for k in (1, 2)]
    assert None not in picked
    between = seen(rho, latent.axes, picked[0].places, picked[1].places, ((12,),))
    np.testing.assert_allclose(between, rho[1])  # two samples, by unit
    assert view_of(latent, (None, Run(1, 1, 0))) is None  # which sample is not told


def test_views_of_channels_cut_into_heads() -> None:
    rho = np.array([[1.0, 0.1], [0.5, 0.05]])  # samples × channels
    latent = Latent(((4,), (12,)), rho)
    heads = view_of(latent, (Run(0, 1, 0), Run(1, 4, 0), Run(1, 1, 0)))
    assert heads is not None
    told = seen(rho, latent.axes, heads.places, heads.places, ((4,), (3,), (4,)))
    assert told is not None
    np.testing.assert_allclose(told[:, 0, 0], rho[:, 0])
    np.testing.assert_allclose(told[:, [0, 1, 1], [1, 0, 1]], rho[:, [1, 1, 1]])
    halves = [view_of((latent, Run(1, 6, 0), k), (Run(0, 1, 0), Run(1, 2, 0), Run(1, 1, 0))) for k in (0, 1)]
    assert None not in halves
    apart = seen(rho, latent.axes, halves[0].places, halves[1].places, ((4,), (3,), (2,)))
    np.testing.assert_allclose(
        np.broadcast_to(apart, (2, 2, 2)), np.broadcast_to(rho[:, 1:, None], (2, 2, 2))
    )
    assert composed(heads.places, (Run(0, 1, 0), 2, Run(1, 1, 0))) == (Run(0, 1, 0), Run(1, 1, 8))
    np.testing.assert_allclose(
        blocks_seen(np.array([[1.0, 2.0, 3.0]]), ((4,), (4, 4, 4)), heads.places, ((4,), (1, 1, 1), (4,))),
        np.array([[[1.0], [2.0], [3.0]]]),
    )
    uneven = view_of(latent, (None, Run(1, 5, 0), Run(1, 1, 0)))
    assert uneven is None or seen(rho, latent.axes, uneven.places, uneven.places, ((4,), (2,), (4,))) is None


class Turned(nn.Module):
    """What is left of scaled values when the same, written down in another order and back, are taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        turned = x.transpose(0, 1).contiguous().view(-1, x.shape[-1]).view(7, 3, 5).transpose(0, 1)
        return x * self.scale - turned * self.scale


def test_known_values_in_another_order_are_the_same_variable() -> None:
    told = predict(Turned, torch.randn(3, 7, 5), backward=False)[""].forward
    assert told is not None
    assert told.rms == pytest.approx(0.0, abs=1e-6)


def test_a_model_without_a_loop_asks_nothing_after_one_with_a_loop():
    predict(nn.RNN(8, 16, batch_first=True), "2x3x8", backward=False)
    assert origins.any_again()
    predict(nn.Linear(8, 16), "2x8", backward=False)
    assert not origins.any_again()


def test_steps_that_a_sum_has_forgotten_are_not_asked_for(monkeypatch) -> None:
    """Twice the steps ask about twice as much, and what is left out makes no difference."""
    asked, note = [], kin._note_faint

    def counted(sum_: Latent, later: Latent, found: Array | None) -> None:
        if isinstance(sum_.origin, origins.Sum) and isinstance(later.origin, origins.Contraction):
            asked.append(later)
        note(sum_, later, found)

    def told(steps: int) -> tuple[list[float], int]:
        asked.clear()
        profile = predict(lambda: nn.Sequential(nn.RNN(16, 32)), f"{steps}x4x16")
        return [p.backward.rms for p in profile.parameters if p.backward is not None], len(asked)

    monkeypatch.setattr(kin, "_note_faint", counted)
    _, few = told(24)
    sizes, many = told(48)
    assert many < 3 * few
    monkeypatch.setattr(kin, "_past", lambda *_: False)
    assert sizes == pytest.approx(told(48)[0], rel=1e-4)


def test_a_loop_asks_for_few_pairs_of_steps(monkeypatch) -> None:
    """Twice the steps ask about twice as much, and what is told without asking makes no difference."""
    solved, between = [0], kin._between

    def counted(x: View, y: View, axes: Axes) -> kin.Asking:
        solved[0] += 1
        return between(x, y, axes)

    def told(steps: int) -> tuple[list[float], int]:
        solved[0] = 0
        profile = predict(lambda: nn.RNN(16, 32), f"{steps}x4x16")
        return [p.backward.rms for p in profile.parameters if p.backward is not None], solved[0]

    monkeypatch.setattr(kin, "_between", counted)
    _, few = told(32)
    sizes, many = told(64)
    assert many < 2.4 * few  # four times as many pairs
    monkeypatch.setattr(columns, "steady", lambda *_: False)
    exact, all_ = told(64)
    assert many < 0.7 * all_
    assert sizes == pytest.approx(exact, rel=2e-3)


def test_what_two_runs_of_a_loop_have_in_common_is_not_taken_from_one_of_them() -> None:
    """One cell reads two sequences: the second one's steps are no later steps of the first."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNN(16, 32, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x)[0] + self.cell(x.flip(0))[0]

    def told() -> list[float]:
        profile = predict(Twice, "4x24x16")
        return [p.backward.rms for p in profile.parameters if p.backward is not None]

    sizes = told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "steady", lambda *_: False)
        assert sizes == pytest.approx(told(), rel=2e-3)
