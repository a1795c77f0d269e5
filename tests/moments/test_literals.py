"""Numbers that a model's code writes into tensors on meta."""

import pytest
import torch
from torch import Tensor, nn

from isometry.predict import predict


class Written(nn.Module):
    """Indexes with a list, fills from a list, and compares with a number made on the input's device."""

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, [-2, 0, 1]]
        factors = torch.tensor([3.0, 3.0, 3.0], device=x.device)
        shift = x.new_tensor(5.0)
        return torch.where(torch.as_tensor([True, False, True], device=x.device), x * factors, shift)


def test_their_values_are_known():
    row = predict(Written(), "64x4", backward=False)[""]
    assert not predict(Written(), "64x4", backward=False).notes
    assert row.forward.rms == pytest.approx(((9 + 9 + 25) / 3) ** 0.5, rel=1e-9)
    assert row.forward.mean == pytest.approx(5 / 3, rel=1e-9)


class Asking(nn.Module):
    """Asks whether sequences begin or end with a certain id, as models do that warn of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids) if 7 in ids[:, [-1, 0]] else 0.0 * self.table(ids)


def test_a_branch_on_known_values_gets_its_true_answer():
    profile = predict(Asking(), {"ids": torch.tensor([[7, 1, 2], [3, 4, 5]])})
    assert not any("carrier" in note for note in profile.notes)
    assert profile[""].forward.rms > 0.5


class Tabulated(nn.Module):
    """Fills parameters and buffers from lists and slice by slice while it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(4))
        with torch.no_grad():
            self.scale.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0], device=self.scale.device))
        self.offset = nn.Buffer(torch.tensor([0.0, 1.0, 0.0, 1.0], device=self.scale.device))
        table = torch.zeros(1 << 17, 4)  # large enough to be made on meta
        table[:, 0::2] = torch.arange(1 << 17)[:, None] % 2
        table[:, 1::2] = 3.0
        self.table = nn.Buffer(table)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset, self.table[: len(x)] * self.scale


def test_what_a_builder_writes_is_known():
    built = Tabulated()
    profile = predict(Tabulated, "64x4", backward=False)
    assert not profile.notes
    assert profile[""].forward.rms == pytest.approx((7.5 + 0.5) ** 0.5, rel=1e-9)
    assert predict(built, "64x4", backward=False)[""].forward.rms == pytest.approx(8**0.5, rel=1e-9)
