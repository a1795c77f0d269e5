import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry.faults import before_and_after, faults


class Inverted(nn.Module):
    """A block of a mobile network: expand, filter each channel, contract, a norm behind each."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        wide = 4 * width
        self.expand, self.first = nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.each, self.second = (
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.contract, self.third = nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.first(self.expand(x)))
        return x + self.third(self.contract(F.silu(self.second(self.each(h)))))


def mobile() -> nn.Module:
    """A mobile network whose norms begin at N(0, 0.02²), as a published one's do."""
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU()]
    head = [nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    model = nn.Sequential(*stem, *[Inverted() for _ in range(4)], *head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return model


def found(build: object, inputs: str) -> tuple[isometry.faults.Fault, ...]:
    return faults(build, inputs, isometry.predict(build, inputs))


def test_a_norms_scale_near_zero_is_named_as_the_cause() -> None:
    (fault,) = [f for f in found(mobile, "8x1x8x8") if "gradient" in f.symptom]
    assert fault.causes[0].startswith("*.")
    assert "(norm scale) has RMS 0.02 and needs" in fault.causes[0]
    assert "init_" in fault.remedy


def test_it_trains_after_init() -> None:
    data = isometry.datasets.digits(flat=False)

    def loss_after(steps: int, *, mended: bool) -> float:
        torch.manual_seed(0)
        model = mobile()
        if mended:
            isometry.init_(model, data.train_inputs[:64], seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _, (images, labels) in zip(range(steps), data.batches(64, seed=0), strict=False):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses[-5:]) / 5

    assert loss_after(40, mended=True) < 0.7 * loss_after(40, mended=False)


@pytest.mark.parametrize(("std", "words"), [(0.01, "the signal vanishes"), (1.0, "the signal explodes")])
def test_weights_of_the_wrong_size_are_named(std: float, words: str) -> None:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(12):
            layers += [nn.Linear(64, 64), nn.ReLU()]
        model = nn.Sequential(*layers)
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, std)
                nn.init.zeros_(module.bias)
        return model

    told = found(build, "32x64")
    assert told[0].symptom.startswith(words)
    assert f"has RMS {std:g}" in told[0].causes[0]


def test_a_healthy_model_has_no_fault() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, dropout=0.0),
        3,
        enable_nested_tensor=False,
    )
    assert found(model.apply(isometry.Kaiming(nonlinearity="relu")), "4x8x32") == ()


def test_before_and_after_leaves_the_model_alone() -> None:
    model = mobile()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = str(before_and_after(model, "8x1x8x8"))
    assert "parameters without a gradient" in table
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
