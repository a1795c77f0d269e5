"""Weights that are computed from other parameters: torch's parametrizations and the old weight_norm hook."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from isometry.errors import ModelError


def weight_norm_hooks(module: nn.Module) -> dict[str, WeightNorm]:
    """The hooks of the old form of weight_norm, by the name of the weight they compute.

    Example:
        >>> weight_norm_hooks(nn.Linear(2, 3))
        {}
    """
    hooks = module._forward_pre_hooks.values()
    return {hook.name: hook for hook in hooks if isinstance(hook, WeightNorm)}


def invertible(owner: nn.Module, leaf: str) -> bool:
    """Whether a weight can be assigned to: it is plain, or all its parametrisations have a right_inverse.

    Example:
        >>> invertible(nn.Linear(2, 3), "weight")
        True
    """
    if not parametrize.is_parametrized(owner, leaf):
        return True
    assert isinstance(owner.parametrizations, nn.ModuleDict)
    return all(hasattr(step, "right_inverse") for step in owner.parametrizations[leaf].children())


@torch.no_grad()
def shape_of(owner: nn.Module, leaf: str) -> tuple[int, ...]:
    """The shape of a parameter or parametrised weight; of a DTensor the global one.

    A parametrised weight is computed in evaluation mode: in training spectral_norm would move its buffers on.

    Example:
        >>> shape_of(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), "weight")
        (3, 2)
    """
    if not parametrize.is_parametrized(owner, leaf):
        return tuple(int(side) for side in getattr(owner, leaf).shape)
    assert isinstance(owner.parametrizations, nn.ModuleDict)
    steps = owner.parametrizations[leaf]
    modes = [(module, module.training) for module in steps.modules()]
    try:
        return tuple(steps.eval()().shape)
    finally:
        for module, training in modes:
            module.training = training


def dtype_of(owner: nn.Module, leaf: str) -> torch.dtype | None:
    """The dtype of a parameter or parametrised weight, which is not computed for it; None for anything else.

    Example:
        >>> dtype_of(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), "weight")
        torch.float32
    """
    if parametrize.is_parametrized(owner, leaf):
        assert isinstance(owner.parametrizations, nn.ModuleDict)
        return next((p.dtype for p in owner.parametrizations[leaf].parameters()), None)
    found = getattr(owner, leaf, None)
    return found.dtype if isinstance(found, Tensor) else None


@torch.no_grad()
def pieces_of(owner: nn.Module, leaf: str, weight: Tensor) -> tuple[Tensor, ...]:
    """The parameters from which a parametrised module computes a given weight.

    A parametrisation that cannot give every weight (spectral_norm, orthogonal) gets the pieces of the nearest
    one its own inverse knows.

    Args:
        owner: The module that has the parametrised weight.
        leaf: The weight's name, "weight".
        weight: The value wanted.

    Returns:
        The pieces, in the order in which the module registers them.

    Raises:
        ModelError: A parametrisation has no inverse, or its inverse refuses this weight.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
        >>> [tuple(piece.shape) for piece in pieces_of(layer, "weight", torch.ones(3, 2))]
        [(3, 1), (3, 2)]
    """
    hook = weight_norm_hooks(owner).get(leaf)
    if hook is not None:
        return (torch.norm_except_dim(weight, 2, hook.dim), weight)
    assert isinstance(owner.parametrizations, nn.ModuleDict)
    steps = owner.parametrizations[leaf]
    assert isinstance(steps, parametrize.ParametrizationList)
    value: Tensor | Sequence[Tensor] = weight
    for step in reversed(list(steps)):
        inverse = getattr(step, "right_inverse", None)
        if inverse is None:
            raise ModelError(f"the parametrisation {type(step).__name__} has no right_inverse")
        try:
            with _own_randomness(weight.device):
                value = inverse(value)
        except Exception as error:
            raise ModelError(
                f"the right_inverse of the parametrisation {type(step).__name__} failed: {error}"
            ) from error
    return (value,) if isinstance(value, Tensor) else tuple(value)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Some inverses draw random numbers (orthogonal completes a basis): always the same, torch's own kept."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(0)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield
