import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import isometry
from isometry.diagnosis import before_and_after, sentences
from isometry.diagnosis.checks import alike, gradients, saturated, signal, silent
from isometry.profile import Profile, Signal, Stats


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


def test_a_norms_scale_near_zero_is_named_as_the_cause() -> None:
    (fault,) = isometry.diagnose(mobile, "8x1x8x8")
    assert "same signal from '10' (Linear) on" in fault.symptom
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


def plain(depth: int, activation: type[nn.Module], std: float | None = None) -> nn.Module:
    """Linear layers of width 64; weights N(0, std²), or torch's own."""
    layers = [part for _ in range(depth) for part in (nn.Linear(64, 64), activation())]
    model = nn.Sequential(*layers)
    for module in model:
        if std is not None and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            nn.init.zeros_(module.bias)
    return model


@pytest.mark.parametrize(("std", "words"), [(0.01, "the signal vanishes"), (1.0, "the signal explodes")])
def test_weights_of_the_wrong_size_are_named(std: float, words: str) -> None:
    told = isometry.diagnose(lambda: plain(12, nn.ReLU, std), "32x64")
    assert told[0].symptom.startswith(words)
    assert f"has RMS {std:g}" in told[0].causes[0]


def test_torchs_default_fades_and_is_named() -> None:
    told = isometry.diagnose(lambda: plain(12, nn.ReLU), "32x64")
    assert [fault.symptom.split(":")[0] for fault in told] == [
        "the gradient fades",
        "any two samples give the same signal from '12' (Linear) on",
    ]
    assert told[0].causes == told[1].causes
    assert "*.weight ×11 (weight → relu) has RMS 0.072 (torch's default) and needs" in told[0].causes[0]


@pytest.mark.parametrize(
    ("activation", "gain", "cause"),
    [
        (nn.ReLU, 5 / 3, "(tanh's gain in torch or silu's gain) and needs 0.18"),
        (nn.GELU, 2**0.5, "(relu's gain) and needs 0.19"),
    ],
)
def test_the_gain_of_another_activation_is_named(
    activation: type[nn.Module], gain: float, cause: str
) -> None:
    told = isometry.diagnose(lambda: plain(40, activation, gain / 8), "32x64")
    assert cause in told[0].causes[0]


@pytest.mark.parametrize(("activation", "gain"), [(nn.ReLU, 2**0.5), (nn.GELU, 1.5338), (nn.Tanh, 1.5928)])
def test_the_right_gain_is_healthy_at_any_depth(activation: type[nn.Module], gain: float) -> None:
    told = isometry.diagnose(lambda: plain(20, activation, gain / 8), "32x64")
    assert not any("signal vanishes" in f.symptom or "explodes" in f.symptom for f in told)
    assert not any("'s gain" in cause for fault in told for cause in fault.causes)


def test_the_typical_weight_of_a_group_is_told() -> None:
    """Of tanh layers the first needs to be small, the others larger than torch's default."""
    told = isometry.diagnose(lambda: plain(20, nn.Tanh), "32x64")
    assert "*.weight ×19 (weight → tanh) has RMS 0.072 (torch's default) and needs 0.13" in told[0].causes


def test_saturated_and_dead_units_are_seen() -> None:
    told = isometry.diagnose(lambda: plain(6, nn.Tanh, 1.0), "32x64")
    assert [fault.symptom.split(":")[0] for fault in told] == ["units are saturated"]
    assert "(N(0, 1))" in told[0].causes[0]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    nn.init.constant_(model[0].bias, -2.0)
    assert any("units are dead" in fault.symptom for fault in isometry.diagnose(model, torch.randn(512, 64)))


def test_units_that_are_dead_in_a_branch_are_seen() -> None:
    class Block(nn.Module):
        def __init__(self, bias: float) -> None:
            super().__init__()
            self.up, self.relu, self.down = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
            nn.init.constant_(self.up.bias, bias)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.relu(self.up(x)))

    torch.manual_seed(0)
    model = nn.Sequential(Block(0.0), Block(-9.0), Block(0.0), nn.Linear(64, 10))
    told = [fault.symptom for fault in isometry.diagnose(model, torch.randn(256, 64))]
    assert told[0].startswith("2 of 7 weights get no gradient")
    assert told[1].startswith("units are dead: 100% at '1.relu' (ReLU)")
    assert len(told) == 2


def test_branches_that_begin_at_zero_are_healthy() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(self.down.bias)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(self.norm(x))))

    def build() -> nn.Module:
        head = nn.Linear(64, 10)
        nn.init.zeros_(head.weight)
        return nn.Sequential(*[Block() for _ in range(12)], nn.LayerNorm(64), head)

    assert isometry.diagnose(build, "32x64") == ()


def test_a_layer_scale_is_healthy() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(64), nn.Linear(64, 64)
            self.scale = nn.Parameter(torch.full((64,), 1e-6))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.linear(self.norm(x))

    model = nn.Sequential(*[Scaled() for _ in range(12)], nn.Linear(64, 10))
    assert isometry.diagnose(model, "32x64") == ()


def test_the_model_and_the_random_state_stay_as_they_are() -> None:
    model = plain(12, nn.ReLU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert isometry.diagnose(model, torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_given_profile_is_judged_in_place_of_a_prediction() -> None:
    torch.manual_seed(0)
    model, x = plain(30, nn.ReLU), torch.randn(32, 64)
    profile = isometry.measure(model, x)
    told = isometry.diagnose(model, x, profile=profile)
    assert any("get no gradient" in fault.symptom for fault in told)
    healthy = Profile(tuple(Signal(name=f"{i}", forward=Stats(rms=1.0)) for i in range(3)))
    assert isometry.diagnose(model, x, profile=healthy) == ()


def chain(sizes: list[float], **stats: float) -> Profile:
    rows = [
        Signal(name=f"{i}", kind="Linear", forward=Stats(rms=size, **stats)) for i, size in enumerate(sizes)
    ]
    return Profile(tuple(rows))


def test_each_check_on_numbers() -> None:
    assert signal(chain([1.0, 1e-7, 1.0, 1.0])) is None  # it comes back
    assert signal(chain([1.0, 1.0, 1e-9])) is None  # the last module is the targets'
    assert "RMS 1e-05 behind '1' (Linear), 1 before" in str(signal(chain([1.0, 1e-5, 1e-5, 1.0])))
    assert "RMS 2e+04 behind '1'" in str(signal(chain([1.0, 2e4, 1.0])))
    assert "RMS nan behind '1'" in str(signal(chain([1.0, float("nan"), 1.0])))
    assert signal(Profile(())) is None
    assert alike(Profile(())) is None
    assert gradients(Profile(())) is None
    assert alike(chain([1.0] * 3, cosine=1.0)) is None  # nothing with weights
    assert saturated(chain([1.0], saturated=0.4)) is None
    assert "60% at '0' (Linear)" in str(saturated(chain([1.0], saturated=0.6)))
    assert silent(chain([1.0, 1.0], zeros=0.5)) is None
    assert "99.9% at '1' (Linear) and 1 more" in str(silent(chain([1.0, 1.0, 1.0], zeros=0.999)))
    assert silent(chain([0.0, 0.0, 0.0], zeros=1.0)) is None  # of nothing comes nothing
    infinite = Signal(name="0.weight", shape=(2, 2), backward=Stats(rms=float("inf")))
    assert "1 of 1 gradients are nan or infinite, of '0.weight'" in str(gradients(Profile((), (infinite,))))


def test_a_sigmoid_behind_the_head_is_no_fault() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3), nn.Sigmoid())
    with torch.no_grad():
        model[2].weight.mul_(0.05)
        model[2].bias.zero_()
    assert isometry.predict(model, "32x64")["3"].forward.cosine > 0.999
    assert isometry.diagnose(model, torch.randn(32, 64)) == ()


def test_sentences_say_what_faults_share_once() -> None:
    lines = sentences(isometry.diagnose(lambda: plain(12, nn.ReLU), "32x64"))
    assert [line.split(" ")[0] for line in lines] == ["The", "Any", "Cause:", "Remedy:"]
    assert sentences(()) == []


def test_a_healthy_model_has_no_fault() -> None:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, dropout=0.0),
        3,
        enable_nested_tensor=False,
    )
    assert isometry.diagnose(model.apply(isometry.Kaiming(nonlinearity="relu")), "4x8x32") == ()


def test_before_and_after_leaves_the_model_alone() -> None:
    model = mobile()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = str(before_and_after(model, "8x1x8x8"))
    assert "parameters without a gradient" in table
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
