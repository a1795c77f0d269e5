import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from isometry.errors import IsometryWarning
from isometry.watch import watch
from isometry.watch.history import History


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32) / 16
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def mlp(activation, depth, width, init="torch", norm=False):
    """A plain network on the digits; `init`: torch's default, or a gain times N(0, 1/fan_in), or a std."""
    torch.manual_seed(0)
    layers, fan_in = [nn.Flatten()], 64
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width), *([nn.BatchNorm1d(width)] if norm else []), activation()]
        fan_in = width
    model = nn.Sequential(*layers, nn.Linear(fan_in, 10))
    for module in model:
        if isinstance(module, nn.Linear) and init != "torch":
            gain = 1.0 if module is model[-1] else init.get("gain", None)
            std = init["std"] if gain is None or "std" in init else gain / math.sqrt(module.in_features)
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    return model


class ResNet(nn.Module):
    def __init__(self, zero_gamma=False):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(12) for _ in range(6)])
        self.convs = nn.ModuleList([nn.Conv2d(12, 12, 3, padding=1, bias=False) for _ in range(6)])
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(12, 10)
        for norm in self.norms[1::2] if zero_gamma else ():
            nn.init.zeros_(norm.weight)

    def forward(self, x):
        x = self.relu(self.stem(x[:, None]))
        for i in range(0, 6, 2):
            y = self.relu(self.norms[i](self.convs[i](x)))
            y = self.norms[i + 1](self.convs[i + 1](y))
            y += x
            x = self.relu(y)
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self, norm_first=True):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.position = nn.Linear(8, 24), nn.Parameter(0.02 * torch.randn(8, 24))
        layer = nn.TransformerEncoderLayer(
            24, 4, 48, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x) + self.position).mean(1))


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(8, 32, 2, batch_first=True), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def adam(lr):
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def train(model, make, digits, steps=80, every=8, loss_of=F.cross_entropy, **options):
    """Train a little; return the watch and the warnings."""
    x, y = digits
    optimizer = make(model.parameters())
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(model, optimizer=optimizer, every=every, **options) as seen:
            for _ in range(steps):
                batch = torch.randint(0, len(x), (64,), generator=generator)
                loss = loss_of(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen.step(loss)
    assert all(issubclass(warning.category, IsometryWarning) for warning in caught)
    return seen, [str(warning.message) for warning in caught]


HEALTHY = {
    "torch's default, 3 relu layers": (lambda: mlp(nn.ReLU, 3, 64), sgd(0.05)),
    "kaiming, 12 relu layers, adam": (lambda: mlp(nn.ReLU, 12, 96, {"gain": math.sqrt(2)}), adam(5e-4)),
    "5 tanh layers": (lambda: mlp(nn.Tanh, 5, 64, {"gain": 1.5}), sgd(0.03)),
    "2 sigmoid layers": (lambda: mlp(nn.Sigmoid, 2, 48, {"gain": 1.0}), adam(3e-3)),
    "gelu": (lambda: mlp(nn.GELU, 4, 64), adam(1e-3)),
    "batch norm, 10 layers": (lambda: mlp(nn.ReLU, 10, 64, norm=True), sgd(0.03)),
    "residual": (ResNet, sgd(0.05)),
    "residual, zero gamma": (lambda: ResNet(zero_gamma=True), sgd(0.05)),
    "transformer, pre-norm": (Transformer, adam(1e-3)),
    "transformer, post-norm": (lambda: Transformer(norm_first=False), adam(1e-3)),
    "lstm": (Lstm, adam(3e-3)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_training_gives_no_warning(name, digits):
    build, make = HEALTHY[name]
    seen, messages = train(build(), make, digits)
    assert messages == []
    assert seen.findings == []
    losses = [snapshot.loss for snapshot in seen.history.snapshots]
    assert losses[-1] < losses[0]  # it is training, not merely quiet


def pushed_below_zero():
    model = mlp(nn.ReLU, 3, 64, {"gain": math.sqrt(2)})
    nn.init.constant_(model[3].bias, -30.0)
    return model


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 48), nn.Linear(48, 10)
        nn.init.constant_(self.a.bias, -30.0)

    def forward(self, x):
        return self.b(F.relu(self.a(x.flatten(1))))


class Overflows(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.exp, self.b = nn.Linear(64, 16), nn.Identity(), nn.Linear(16, 10)

    def forward(self, x):
        return self.b(self.exp((1000 * self.a(x.flatten(1))).exp()))


BROKEN = {
    "fades": (lambda: mlp(nn.ReLU, 20, 64), sgd(0.05), "vanishing gradient", "1"),
    "fades, sigmoid": (lambda: mlp(nn.Sigmoid, 6, 64), sgd(0.05), "vanishing gradient", "1"),
    "explodes at the start": (
        lambda: mlp(nn.ReLU, 8, 128, {"std": 1.0}),
        sgd(1e-9),
        "exploding gradient",
        "1",
    ),
    "saturated by N(0, 1) weights": (
        lambda: mlp(nn.Tanh, 4, 128, {"std": 1.0}),
        sgd(1e-4),
        "saturated units",
        "2",
    ),
    "dead by its biases": (pushed_below_zero, sgd(0.01), "dead units", "4"),
    "dead in a function": (Functional, sgd(0.01), "dead units", "a"),
    "dead by the learning rate": (
        lambda: mlp(nn.ReLU, 3, 64, {"gain": math.sqrt(2)}),
        adam(1.0),
        "dead units",
        None,
    ),
    "diverges": (lambda: mlp(nn.Tanh, 3, 64, {"gain": 1.5}), sgd(20.0), "exploding variance", "1"),
    "becomes nan": (lambda: mlp(nn.ReLU, 3, 64, {"gain": math.sqrt(2)}), sgd(100.0), "nonfinite", None),
    "overflows inside": (Overflows, sgd(0.01), "nonfinite", "exp"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_training_gives_the_right_warning(name, digits):
    build, make, symptom, module = BROKEN[name]
    seen, messages = train(build(), make, digits)
    found = [finding for finding in seen.findings if finding.symptom == symptom]
    assert found
    assert module is None or found[0].name == module
    text = next(message for message in messages if symptom in message)
    assert f"step {found[0].step}, {found[0].name}" in text
    # Once per module and symptom.
    keys = [(finding.symptom, finding.name, finding.call) for finding in seen.findings]
    assert len(keys) == len(set(keys))


def nudged(change, **options):
    """Watch two linear layers while `change(step, first layer)` is done to the first."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    with watch(model, **options) as seen:
        for step in range(8):
            with torch.no_grad():
                change(step, model[0])
            model(x).sum().backward()
            seen.step()
    return [(finding.symptom, finding.name, finding.step) for finding in seen.findings]


def test_a_drifting_mean():
    with pytest.warns(IsometryWarning, match="step 4, 0: drifting mean: mean .* standard deviations away"):
        found = nudged(lambda step, layer: layer.bias.fill_(10.0 * step), every=2)
    assert found == [("drifting mean", "0", 4)]  # beyond 10 std from step 2 on, patience 2


def test_a_collapsing_variance():
    def shrink(step, layer):
        layer.bias.zero_()
        if step == 2:
            layer.weight.mul_(1e-4)

    with pytest.warns(IsometryWarning, match="step 3, 0: collapsing variance: std .* at the first"):
        found = nudged(shrink, every=1)
    assert found == [("collapsing variance", "0", 3)]


# --- it changes nothing ---------------------------------------------------------------------------


class Mixed(nn.Module):
    """Dropout, batch norm, in-place operations, checkpointing, a module called twice."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(64, 32), nn.Linear(32, 32)
        self.norm, self.drop, self.relu = nn.BatchNorm1d(32), nn.Dropout(0.3), nn.ReLU(inplace=True)
        self.head, self.reentrant = nn.Linear(32, 10), reentrant

    def forward(self, x):
        x = self.drop(self.relu(self.norm(self.inner(x.flatten(1)))))
        y = checkpoint(lambda z: self.drop(self.outer(z)), x, use_reentrant=self.reentrant)
        y = self.outer(y)
        y += x
        return self.head(y)


def run(watched, digits, *, reentrant=False, accumulate=1, bf16=False, steps=12):
    x, y = digits
    model = Mixed(reentrant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    torch.manual_seed(9)
    trace = []

    def step(t):
        optimizer.zero_grad()
        for part in range(accumulate):
            batch = slice(32 * (t * accumulate + part), 32 * (t * accumulate + part + 1))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = model(x[batch])
                loss = F.cross_entropy(output, y[batch]) / accumulate
            scaler.scale(loss).backward()
        trace.extend([output.detach().clone(), *(p.grad.clone() for p in model.parameters())])
        scaler.step(optimizer)
        scaler.update()
        return loss

    if watched:
        with watch(model, optimizer=optimizer, every=3, scaler=scaler) as seen:
            for t in range(steps):
                seen.step(step(t))
        assert hook_count(model) == 0
    else:
        seen = None
        for t in range(steps):
            step(t)
    trace += [t.clone() for t in model.state_dict().values()]
    for state in optimizer.state.values():
        trace += [value.clone() for value in state.values()]
    return [*trace, torch.get_rng_state()], seen


@pytest.mark.parametrize(
    "options",
    [{}, {"reentrant": True}, {"accumulate": 3}, {"bf16": True}, {"bf16": True, "accumulate": 2}],
    ids=str,
)
def test_training_is_equal_to_the_bit(options, digits):
    alone, _ = run(False, digits, **options)
    watched, seen = run(True, digits, **options)
    assert len(alone) == len(watched)
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    assert [snapshot.step for snapshot in seen.history.snapshots] == [0, 3, 6, 9]
    assert seen.history.snapshots[1].profile["outer", 1].backward.rms > 0


def test_hooks_are_there_on_observed_steps_only():
    model = mlp(nn.ReLU, 1, 8)
    x, counts = torch.randn(4, 64), []
    with watch(model, every=3) as seen:
        for _ in range(7):
            counts.append(hook_count(model) > 0)
            model(x).sum().backward()
            seen.step()
    assert counts == [True, False, False, True, False, False, True]
    assert hook_count(model) == 0


def test_steps_ends_the_observation():
    model = mlp(nn.ReLU, 1, 8)
    with watch(model, every=2, steps=3) as seen:
        for _ in range(6):
            model(torch.randn(4, 64)).sum().backward()
            seen.step()
    assert [snapshot.step for snapshot in seen.history.snapshots] == [0, 2]


def test_an_exception_leaves_nothing_behind():
    model = mlp(nn.ReLU, 1, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = watch(model, optimizer=optimizer)

    def interrupted():
        with seen:
            model(torch.randn(4, 64))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hook_count(model) == 0
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# --- what it sees ---------------------------------------------------------------------------------


def test_a_snapshot_holds_values_gradients_and_updates(digits):
    x, y = digits
    model = mlp(nn.Tanh, 1, 16)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer=optimizer) as seen:
        loss = F.cross_entropy(model(x[:50]), y[:50])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.step(loss)
    [snapshot] = seen.history.snapshots
    hidden = twin[1](x[:50].flatten(1))
    hidden.retain_grad()
    twin_loss = F.cross_entropy(twin[3](hidden.tanh()), y[:50])
    twin_loss.backward()

    def rms(tensor):
        return float(tensor.detach().double().square().mean().sqrt())

    assert snapshot.loss == loss.item()
    assert snapshot.profile.source == "watched"
    assert snapshot.profile["1"].forward.rms == pytest.approx(rms(hidden), rel=1e-6)
    assert snapshot.profile["1"].backward.rms == pytest.approx(rms(hidden.grad), rel=1e-5)
    weight = twin[1].weight
    assert snapshot.profile["1.weight"].forward.rms == pytest.approx(rms(weight), rel=1e-12)
    assert snapshot.profile["1.weight"].backward.rms == pytest.approx(rms(weight.grad), rel=1e-5)
    assert snapshot.updates["1.weight"] == pytest.approx(0.1 * rms(weight.grad) / rms(weight), rel=1e-4)


def test_validation_between_steps_is_not_observed(digits):
    x, y = digits
    model = mlp(nn.ReLU, 2, 16)
    with watch(model, every=1) as seen:
        F.cross_entropy(model(x[:30]), y[:30]).backward()
        with torch.no_grad():
            model(1000 * x)
        seen.step()
    assert seen.history.snapshots[0].profile["1"].shape == (30, 16)
    assert seen.history.snapshots[0].profile["1"].forward.max < 100


def test_gradients_are_those_of_the_unscaled_loss(digits):
    x, y = digits

    def gradients(scaler):
        model = mlp(nn.Tanh, 2, 16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(model, optimizer=optimizer, scaler=scaler) as seen:
            loss = F.cross_entropy(model(x[:50]), y[:50])
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            seen.step(loss)
        profile = seen.history.snapshots[0].profile
        return [row.backward.rms for row in (*profile.leaves()[1:], *profile.parameters)]

    scaled = gradients(torch.amp.GradScaler("cpu", init_scale=2.0**16))
    assert scaled == pytest.approx(gradients(None), rel=1e-5)


def test_steps_that_the_scaler_skips_are_not_judged(digits):
    x, y = digits
    model = mlp(nn.Tanh, 2, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    with watch(model, optimizer=optimizer, scaler=scaler, every=1) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(100 * model(x[:50]), y[:50])).backward()
            scaler.step(optimizer)
            scaler.update()
            seen.step()
    assert seen.findings == []
    assert seen.history.snapshots[0].profile["1"].backward is None
    assert seen.history.snapshots[0].profile["1"].forward.rms > 0
    assert seen.history.snapshots[0].updates == {}


def test_history_plot_and_file(digits, tmp_path):
    seen, _ = train(mlp(nn.ReLU, 2, 32), sgd(0.05), digits, steps=20, every=5)
    seen.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == seen.history
    figure = seen.plot(tmp_path / "history.png", side="backward")
    assert figure.axes[0].collections[0].get_array().shape == (5, 4)  # Flatten has no gradient
    assert (tmp_path / "history.png").stat().st_size > 0


def test_a_logger_gets_the_numbers_of_observed_steps(digits):
    x, y = digits
    model = mlp(nn.ReLU, depth=2, width=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    logged = []
    with watch(model, optimizer=optimizer, every=2, log=lambda *told: logged.append(told)) as watching:
        for _ in range(3):
            loss = F.cross_entropy(model(x[:32]), y[:32])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watching.step(loss)
    assert [step for _, step in logged] == [0, 2]
    numbers, snapshot = logged[-1][0], watching.history.snapshots[-1]
    assert numbers["loss"] == loss.item()
    assert numbers["forward/1"] == snapshot.profile["1"].forward.rms
    assert numbers["backward/1"] == snapshot.profile["1"].backward.rms
    assert numbers["weight/1.weight"] == snapshot.profile["1.weight"].forward.rms
    assert numbers["gradient/1.weight"] == snapshot.profile["1.weight"].backward.rms
    assert numbers["update/1.weight"] == snapshot.updates["1.weight"]


def test_a_logger_hears_of_every_call_and_not_of_what_is_unknown(digits):
    x, _ = digits
    model = nn.Sequential(nn.Flatten(), layer := nn.Linear(64, 64), layer)
    logged = {}
    with watch(model, every=1, log=lambda numbers, step: logged.update(numbers)) as watching:
        model(x[:32]).square().mean().backward()
        watching.step()
    assert {"forward/1", "forward/1#1", "backward/1#1"} <= logged.keys()
    assert "loss" not in logged
    assert not any(name.startswith("update/") for name in logged)
