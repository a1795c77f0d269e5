"""Weights that are used again: what a loop makes of its steps is alike, on the way there and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isometry.moments import kin, origins
from isometry.moments.axes import Array
from isometry.moments.latents import Latent
from isometry.moments.places import seen, view_of
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


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "written": lambda: WrittenTwice(Written),
    "ahead": lambda: WrittenTwice(Ahead),
    "again": Again,
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
        stats = told[row.removeprefix("gradient ")]
        side = stats.backward if row.startswith("gradient") else stats.forward
        assert side is not None
        assert side.rms is not None
        mean, error = np.mean(squares), np.std(squares) / DRAWS**0.5
        slack = 2 * FINITE + 4 * error / mean + (0.1 if name == "again" and "bias" in row else 0.0)
        assert side.rms**2 == pytest.approx(mean, rel=slack), row


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
