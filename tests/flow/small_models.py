"""What the tests of residual streams and attention share: models from parts, and readings of their roles."""

import torch
from torch import Tensor, nn

from isometry.flow.roles import Roles
from isometry.flow.tracing import study

D, H, T, B = 8, 2, 5, 3


class Of(nn.Module):
    """A model from its parts and a function of them."""

    def __init__(self, function, **modules):
        super().__init__()
        self._function = function
        for name, value in modules.items():
            setattr(self, name, value)

    def forward(self, *args, **kwargs):
        return self._function(self, *args, **kwargs)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def roles(model: nn.Module, *inputs: Tensor, **named: Tensor) -> Roles:
    return study(model, named or inputs).roles


def ends(read: Roles) -> dict[str, tuple[int, int]]:
    """The parameters that end a branch, with the branch's order and number."""
    return {n: (r.ends.order, r.ends.number) for n, r in read.by_name.items() if r.ends is not None}


def parts(read: Roles, name: str) -> set[str]:
    return set(read[name].parts)


def tokens() -> Tensor:
    return torch.randn(B, T, D)


def ids() -> Tensor:
    return torch.randint(1, 20, (B, T))


def pictures() -> Tensor:
    return torch.randn(2, D, 8, 8)


def blocks(make, number: int = 2) -> nn.ModuleList:
    return nn.ModuleList(make() for _ in range(number))


def kinds(read: Roles) -> dict[str, str]:
    return {name: role.kind for name, role in read.by_name.items()}


def vectors() -> Tensor:
    return torch.randn(B, D)
