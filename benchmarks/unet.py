"""A U-Net in plain torch.nn, after Ronneberger, Fischer, Brox 2015, padded and with batch norm."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def _double(inner: int, outer: int) -> nn.Module:
    parts: list[nn.Module] = []
    for channels in (inner, outer):
        parts += [
            nn.Conv2d(channels, outer, 3, padding=1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    """Four scales down by max-pooling and up by transposed convolutions, joined by skip connections."""

    def __init__(self, channels: int = 3, classes: int = 5, width: int = 32, scales: int = 4) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(scales + 1)]
        self.enter = _double(channels, width)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_double(a, b) for a, b in pairwise(widths))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_double(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' scores of every pixel."""
        kept = [self.enter(x)]
        for block in self.down:
            kept.append(block(self.pool(kept[-1])))
        x = kept.pop()
        for k in reversed(range(len(kept))):
            x = self.up[k](torch.cat([kept[k], self.rise[k](x)], 1))
        return self.head(x)
