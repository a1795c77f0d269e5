"""A small hand-written transformer that reads a digit row by row: planned, initialised, measured, trained."""

from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F

import isometry


class Block(nn.Module):
    """Attention and a gated feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x):
        """Add what attention and feed-forward make of the stream."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class RowReader(nn.Module):
    """A transformer over the 8 rows of a digit's 8×8 pixels."""

    def __init__(self, width=64, depth=3):
        super().__init__()
        self.row = nn.Linear(8, width)
        self.place = nn.Parameter(torch.zeros(8, width))
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, pixels):
        """Return scores of the ten digits."""
        x = self.row(pixels.unflatten(-1, (8, 8))) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


torch.set_num_threads(1)
torch.manual_seed(0)
data = isometry.datasets.digits()
model = RowReader()
plan = isometry.plan(model, data.train_inputs[:256], calibrate=True)  # touches nothing
print(plan)
plan.apply_(model, seed=0)  # both in one: isometry.init_(model, data.train_inputs[:256], calibrate=True)
print(isometry.measure(model, data.train_inputs[:256]).table(depth=2))

optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
with isometry.watch(model, optimizer=optimizer, every=25) as watch:
    for inputs, targets in islice(data.batches(64), 50):
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.step(loss)
right = (model(data.test_inputs).argmax(1) == data.test_targets).sum()
print(f"{right} of {len(data.test_targets)} right after 50 steps; findings: {watch.findings}")
