"""A SwiGLU block and an activation of one's own: every weight gets the gain of what it reads."""

from itertools import islice

import torch
from torch import Tensor, nn

import isometry


def snake(x: Tensor) -> Tensor:
    """An activation that no table knows."""
    return x + torch.sin(x) ** 2


class SwiGLU(nn.Module):
    """x + out(silu(gate(x̂)) · value(x̂)), x̂ normalised: the feed-forward block of today's language models."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, width]` to `[n, width]`."""
        normed = self.norm(x)
        return x + self.out(nn.functional.silu(self.gate(normed)) * self.value(normed))


class Snake(nn.Module):
    """The activation as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every entry."""
        return snake(x)


torch.manual_seed(0)
data = isometry.datasets.digits(size=32)
model = nn.Sequential(
    nn.Linear(1024, 128), SwiGLU(128, 344), SwiGLU(128, 344), SwiGLU(128, 344), nn.RMSNorm(128), Snake(),
    nn.Linear(128, 10),
)  # fmt: skip
print(isometry.measure(model, data.train_inputs[:256]).table(leaves=True))  # before

model.apply(isometry.Kaiming(nonlinearity="linear"))  # gain 1 for what follows no activation,
model.apply(isometry.Kaiming(nonlinearity="swiglu", only="*.out"))  # SwiGLU's for what reads the product,
model.apply(isometry.Kaiming(nonlinearity=snake, only="6"))  # one's own for what reads the snake
print(isometry.measure(model, data.train_inputs[:256]).table(leaves=True))  # after

optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
with isometry.watch(model, optimizer=optimizer, every=10) as watch:
    for inputs, targets in islice(data.batches(64), 100):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(loss)
right = (model(data.test_inputs).argmax(1) == data.test_targets).sum()
print(f"{right} of {len(data.test_targets)} right after 100 steps; findings: {watch.findings}")
