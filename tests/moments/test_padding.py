"""Rows of zeros in tables of embeddings, which padding looks up."""

import pytest
import torch
from torch import Tensor, nn

from isometry.measure import measure
from isometry.predict import predict

IDS = torch.tensor([[5, 7, 3, 9, 2], [4, 4, 1, 1, 1], [8, 6, 5, 1, 1]])  # five of fifteen are padding


class Embedded(nn.Module):
    """Looks up with the row of zeros in the table's midst."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 64, padding_idx=1)
        self.out = nn.Linear(64, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.table(ids))


def test_padded_places_hold_zeros() -> None:
    assert predict(Embedded, {"ids": IDS})["table"].forward.rms == pytest.approx((10 / 15) ** 0.5, rel=1e-6)
    model = Embedded()
    rows = model.table.weight.detach()[torch.arange(12) != 1]
    told = predict(model, {"ids": IDS})["table"].forward.rms
    assert told == pytest.approx(float(10 / 15 * rows.square().mean()) ** 0.5, rel=1e-5)
    whole = predict(Embedded, {"ids": IDS + 1})["table"].forward.rms  # ids of other rows
    assert whole == pytest.approx(1.0, rel=1e-6)


def test_padding_sends_no_gradient_to_the_table() -> None:
    told = predict(Embedded, {"ids": IDS})["table.weight"].backward.rms
    torch.manual_seed(0)
    draws = [measure(Embedded(), {"ids": IDS})["table.weight"].backward.rms ** 2 for _ in range(60)]
    seen = torch.tensor(draws)
    assert abs(told**2 - seen.mean()) < 4 * seen.std() / 60**0.5
