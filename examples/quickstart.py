"""The classic network on 1,024-pixel digits: measured before and after the right gain, and watched."""

from itertools import islice

import torch
from torch import nn

import isometry

torch.manual_seed(0)
data = isometry.datasets.digits(size=32)
model = nn.Sequential(
    nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(),
    nn.Linear(128, 10),
)  # fmt: skip
print(isometry.measure(model, data.train_inputs[:256]).table(leaves=True))  # before
model.apply(isometry.Kaiming(nonlinearity="relu"))
print(isometry.measure(model, data.train_inputs[:256]).table(leaves=True))  # after

optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
with isometry.watch(model, optimizer=optimizer, every=10) as watch:
    for inputs, targets in islice(data.batches(64), 100):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(loss)
right = (model(data.test_inputs).argmax(1) == data.test_targets).sum()
print(f"{right} of {len(data.test_targets)} right after 100 steps; findings: {watch.findings}")
