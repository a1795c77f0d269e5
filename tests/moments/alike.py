"""Inputs of tests: entries, such as samples or places of an image, that have something in common."""

import math

from torch import Tensor, nn


class Alike(nn.Module):
    """Entries that have a share of their variance in common."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, own: Tensor, common: Tensor) -> Tensor:
        return math.sqrt(1.0 - self.share) * own + math.sqrt(self.share) * common
