"""Give a model on the meta device memory and values, straight on its target device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.sampling.buffers import fill_buffers, find_buffers
from isometry.sampling.distributions import Distribution
from isometry.sampling.marks import unfinished
from isometry.sampling.places import Places
from isometry.sampling.shards import is_dtensor
from isometry.sampling.write import check, write_jobs


def materialize_(
    model: nn.Module,
    distributions: Mapping[str, Distribution],
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
    build: Callable[[], nn.Module] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    keep: Collection[str] = (),
    finish: Callable[[], None] | None = None,
) -> None:
    """Allocate a meta model's parameters and buffers once, on the target device, and give all of them values.

    Parameters get the values that `write_` would give them. They stay the same objects: ties, Python
    attributes, hooks and an optimiser's references survive, and sharded parameters (DTensor, `fully_shard`)
    get memory for their own shard alone. The peak of memory is that of the parameters, the buffers and a tile
    per thread; joint distributions need one whole matrix at a time, in float32.

    A buffer on the meta device, persistent or not, and any tensor that a module holds as a plain attribute,
    gets its values from the first of: `buffers`; the model that `build` returns; the start of
    the running statistics of torch's normalisations (mean 0, variance 1, count 0).

    Args:
        model: A model with all or some tensors on the meta device. Others are written where they are.
        distributions: By canonical name, one for every parameter but those in `keep`.
        device: Where to allocate; "cpu" when None, and for a sharded parameter always its mesh's kind of
            device.
        seed: Any integer, as in `write_`.
        build: Builds the same model again, such as `lambda: Model(config)`. It is called once, on the CPU,
            with parameters left on the meta device, so that it costs the memory of the buffers; random
            numbers it asks for depend on `seed`, and torch's random state is put back.
        buffers: Values of buffers by canonical name.
        keep: Names of parameters, not on the meta device, to leave as they are.
        finish: As in `write_`.

    Raises:
        NotFoundError: If the model has no parameter or buffer of a name.
        InvalidTypeError: If a parameter cannot hold what should be drawn.
        InvalidValueError: If a parameter has no distribution, or a value for a buffer does not fit.
        ModelError: If a buffer has no source of values, by name; if two parameters share a canonical name.
            After these errors the model is as before. If writing is interrupted, or the inverse of a
            parametrisation refuses its weight, the model is marked: see `incomplete`.

    Example:
        >>> from isometry.sampling import Constant, Normal, materialize_
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3))
        >>> laws = {"0.weight": Normal(0.5), "1.weight": Constant(1.0), "1.bias": Constant(0.0)}
        >>> materialize_(model, laws)
        >>> model[1].running_var.tolist(), model[0].weight.device.type
        ([1.0, 1.0, 1.0], 'cpu')
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    target = _target(device)
    places = Places(model)
    jobs = list(check(places, distributions, seed=seed, keep=keep, on_meta=True))
    _check_kept(places, keep)
    sources = find_buffers(model, build=build, given=buffers or {}, seed=seed)
    fresh = [(name, p, _allocate(p, target)) for name, p in places.parameters.items() if p.is_meta]
    with unfinished(model, [part for job in jobs for part in job.parts]):
        for _, parameter, memory in fresh:
            _replace(model, parameter, memory)
        _reset_fully_sharded(model)
        fill_buffers(sources, target)
        # Some parameters may be new objects now.
        jobs = list(check(Places(model), distributions, seed=seed, keep=keep))
        write_jobs(model, jobs, seed=seed, finish=finish)


def _check_kept(places: Places, keep: Collection[str]) -> None:
    """Raise where parameters are to be left as they are, and have no values that could be left."""
    parts = [(part, p) for name in keep for part, p in places.find(name).parameters.items()]
    if blank := [part for part, parameter in parts if parameter.is_meta]:
        shown = ", ".join(map(repr, blank[:8])) + (", …" if len(blank) > 8 else "")
        raise ModelError(
            f"kept as they are, but on the meta device and without values: {shown}. Load them before, with "
            "model.load_state_dict(values, strict=False, assign=True), or give them a law (a plan's "
            "`overrides`), or build the model with memory"
        )


def _target(device: torch.device | str | None) -> torch.device:
    """Return where values go, if anything can be put there."""
    try:
        target = torch.device("cpu" if device is None else device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for a GPU
        raise InvalidValueError(f"device={str(device)!r} cannot be used: {error}") from error
    if target.type == "meta":
        raise InvalidValueError("device is where values go and must not be 'meta': pass 'cpu' or 'cuda'")
    return target


def _allocate(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Memory without values for a meta parameter: its strides, its dtype, its shard."""
    data: Any = parameter.detach()
    if is_dtensor(data):
        from torch.distributed.tensor import DTensor

        # The mesh knows which kind of device a shard belongs on, and which of them is this process's.
        kind = data.device_mesh.device_type
        local = torch.empty_like(data.to_local(), device=kind)
        data = DTensor.from_local(
            local, data.device_mesh, data.placements, run_check=False, shape=data.shape, stride=data.stride()
        )
    else:
        data = torch.empty_strided(data.shape, data.stride(), dtype=data.dtype, device=device)
    fresh = nn.Parameter(data, requires_grad=parameter.requires_grad)
    fresh.__class__ = type(parameter)
    fresh.__dict__.update(parameter.__dict__)
    return fresh


def _replace(model: nn.Module, parameter: nn.Parameter, memory: nn.Parameter) -> None:
    """Put memory under a parameter, keeping the object; a new object where weak references forbid that."""
    hooks: Any = parameter._backward_hooks
    after: Any = getattr(parameter, "_post_accumulate_grad_hooks", None)
    if weakref.getweakrefcount(parameter):
        for module in model.modules():
            for name, held in module._parameters.items():
                if held is parameter:
                    module._parameters[name] = memory
        parameter = memory
    else:
        torch.utils.swap_tensors(parameter, memory)  # type: ignore[no-untyped-call]
    # Assigning installs them at the new memory: autograd keeps its own list.
    parameter._backward_hooks = hooks
    if after is not None:
        parameter._post_accumulate_grad_hooks = after


def _reset_fully_sharded(model: nn.Module) -> None:
    """Let `fully_shard` take up the new memory, padded as it needs."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module._apply(lambda tensor: tensor, recurse=False)  # type: ignore[no-untyped-call]
