"""Where the values of a meta model's buffers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError, NotFoundError
from isometry.names import canonical_name
from isometry.sampling.places import nearest
from isometry.sampling.streams import stream_key

# Where torch's normalisations start.
_RUNNING = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


@dataclass(frozen=True)
class Source:
    """A tensor on the meta device, or whose values are given, and its values, which may be broadcast."""

    owner: nn.Module
    leaf: str
    tensor: Tensor
    values: Tensor


def find_buffers(
    model: nn.Module, *, build: Callable[[], nn.Module] | None, given: Mapping[str, Tensor], seed: int
) -> list[Source]:
    """Find the values of every buffer and plain tensor attribute on the meta device; write nothing.

    Raises:
        NotFoundError: If `given` names a buffer that the model has not.
        InvalidTypeError: If a given value is no tensor, or `build` returns no module.
        InvalidValueError: If values do not fit in shape.
        ModelError: If there are no values for a buffer.
    """
    wanted = {name: (owner, leaf, tensor) for name, owner, leaf, tensor in _tensors(model)}
    for name in given:
        if name not in wanted:
            raise NotFoundError(f"the model has no buffer named {name!r}{nearest(name, wanted)}")
    wanted = {name: entry for name, entry in wanted.items() if entry[2].is_meta or name in given}
    built: dict[str, Tensor] = {}
    if build is not None and any(name not in given for name in wanted):
        built = {name: tensor for name, _, _, tensor in _tensors(_rebuild(build, seed)) if not tensor.is_meta}
    sources, missing = [], []
    for name, (owner, leaf, tensor) in wanted.items():
        values = given.get(name, built.get(name))
        if values is not None:
            _check_fits(name, tensor, values)
        elif leaf in _RUNNING and isinstance(owner, nn.modules.batchnorm._NormBase):
            values = torch.tensor(_RUNNING[leaf], device="cpu")
        else:
            missing.append(name)
            continue
        sources.append(Source(owner, leaf, tensor, values))
    if missing:
        raise ModelError(
            f"nobody knows the values of {', '.join(map(repr, missing))}: pass build=, a callable that "
            "builds the model again, or the values themselves in buffers="
        )
    return sources


def fill_buffers(sources: list[Source], device: torch.device) -> None:
    """Allocate on the device and fill what `find_buffers` found; shared tensors stay shared."""
    made: dict[int, Tensor] = {}
    for source in sources:
        fresh = source.tensor
        if fresh.is_meta:
            # Filled before it is bound: a buffer that is not on meta has its values, whatever interrupts.
            if id(fresh) not in made:
                made[id(fresh)] = torch.empty_like(fresh, device=device)
            fresh = made[id(fresh)]
        with torch.no_grad():
            fresh.copy_(source.values)
        _bind(source.owner, source.leaf, fresh)


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Name, owner, leaf and tensor of every buffer and of every tensor held as a plain attribute."""
    for path, module in model.named_modules():
        base = canonical_name(path)
        prefix = f"{base}." if base else ""
        for leaf, tensor in [*module._buffers.items(), *module.__dict__.items()]:
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and tensor.grad_fn is None:
                yield prefix + leaf, module, leaf, tensor


def _bind(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    else:
        setattr(owner, leaf, tensor)


def _rebuild(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with _parameters_on_meta(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int.from_bytes(stream_key(seed, "buffers")[:4], "little"))
        model = build()
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"build must return a torch.nn.Module, got {type(model).__name__}")
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Send every parameter to the meta device as a module registers it, before it gets values."""

    def send(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or torch.nn.parameter.is_lazy(parameter):
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(send)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _check_fits(name: str, tensor: Tensor, values: object) -> None:
    if not isinstance(values, Tensor):
        raise InvalidTypeError(f"buffers[{name!r}] must be a tensor, got {type(values).__name__}")
    if values.shape != tensor.shape:
        raise InvalidValueError(
            f"buffer {name!r} has shape {tuple(tensor.shape)} and its values {tuple(values.shape)}: "
            "pass values of the same shape, or a build= of the same model"
        )
