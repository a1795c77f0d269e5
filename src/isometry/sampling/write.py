"""Write a whole model by canonical parameter name: all checked before the first write, whole or marked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from isometry.errors import InvalidTypeError, InvalidValueError, ModelError
from isometry.restore import collector_paused
from isometry.sampling import engine, workers
from isometry.sampling.distributions import Distribution, Whole
from isometry.sampling.drawing import Draw
from isometry.sampling.fill import fill_keyed_
from isometry.sampling.marks import unfinished
from isometry.sampling.places import Place, Places
from isometry.sampling.shards import Shard, is_dtensor, shard_of
from isometry.sampling.streams import stream_key
from isometry.sampling.workers import Task

Keep = Collection[str] | Literal["unnamed"]


def write_(
    model: nn.Module,
    distributions: Mapping[str, Distribution],
    *,
    seed: int = 0,
    keep: Keep = "unnamed",
    finish: Callable[[], None] | None = None,
) -> None:
    """Write initial values into a model's parameters, each from its own stream.

    A value is a function of the seed, the parameter's canonical name, the logical index and the distribution
    (exact): not of the other parameters, of threads, shards, wrappers or the dtype stored. Values are drawn
    in float32 and rounded, or widened for float64.

    A weight under a parametrisation (`weight_norm`, `orthogonal`, `spectral_norm`; also the old
    `weight_norm`) is named as without it. Its value is drawn as without it and assigned through the
    parametrisation's inverse, so that the effective weight is the value drawn (`weight_norm`), the value over
    its spectral norm, or its orthogonal factor. Instead the parameters it is computed from may be named
    themselves.

    Args:
        model: Any module, also wrapped, sharded, or with tied parameters (written once, under their first
            name).
        distributions: By canonical name (`isometry.names.canonical_name`).
        seed: Any integer. torch's random state is neither read nor moved.
        keep: Names of the parameters to leave as they are, when all others must be named; "unnamed" leaves
            all that `distributions` does not name.
        finish: Called after the last write, before the model counts as written: for what goes with the
            weights, such as rows of padding.

    Raises:
        NotFoundError: If the model has no parameter of a name.
        InvalidTypeError: If a parameter cannot hold what should be drawn.
        InvalidValueError: If a parameter is both named and kept, or neither.
        ModelError: If a parameter is on the meta device or lazy, or a parametrisation cannot be assigned to.
            After all these errors the model is as before. If writing is interrupted (Ctrl-C, out of memory)
            it is marked: see `incomplete`.

    Example:
        >>> from isometry.sampling import Constant, Normal, write_
        >>> layer = nn.Linear(4, 3)
        >>> write_(layer, {"weight": Normal(0.5), "bias": Constant(0.0)}, seed=0)
        >>> layer.bias.tolist()
        [0.0, 0.0, 0.0]
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    with collector_paused():
        jobs = list(check(Places(model), distributions, seed=seed, keep=keep))
        write_jobs(model, jobs, seed=seed, finish=finish)


class Job(NamedTuple):
    """A parameter, what it takes, and the name of the stream that is drawn from."""

    name: str
    distribution: Distribution
    stream: str
    tensor: Tensor

    @property
    def parts(self) -> Iterable[str]:
        """The canonical names of the parameters that are written."""
        return (self.name,)


class Computed(NamedTuple):
    """A weight that is computed from parameters, what it takes, and the name of its stream."""

    place: Place
    distribution: Distribution
    stream: str

    @property
    def parts(self) -> Iterable[str]:
        """The canonical names of the parameters that are written."""
        return self.place.parameters


def check(
    places: Places, distributions: Mapping[str, Distribution], *, seed: int, keep: Keep, on_meta: bool = False
) -> Iterator[Job | Computed]:
    """Check all that can be checked without writing, and yield what is to be written.

    Raises:
        The errors of `write_`.
    """
    if not isinstance(distributions, Mapping):
        raise InvalidTypeError(
            f"distributions must be a dict of names and distributions, got {type(distributions).__name__}"
        )
    kept = _kept(places, keep)
    written: dict[str, str] = {}
    shared: dict[int, str | None] = {}
    memory: dict[int, str] = {}
    stream_key(seed, "")  # refuses a seed that is none
    for name, distribution in distributions.items():
        place = places.find(name)
        if place.name != name and place.name in distributions:
            continue  # a tied parameter goes by its first name
        for part, parameter in place.parameters.items():
            if part in written:
                raise InvalidValueError(
                    f"{part!r} would be written twice, for {written[part]!r} and {name!r}"
                )
            if kept is not None and part in kept:
                raise InvalidValueError(f"{part!r} is both to be kept and to be written: name it once")
            _check_ready(part, parameter, on_meta)
            _check_own(part, parameter, memory)
            written[part] = name
        if id(distribution) not in shared:  # most parameters share one of a few
            engine.check_law(distribution, repr(name))
            shared[id(distribution)] = distribution.stream if isinstance(distribution, Whole) else None
        stream = shared[id(distribution)]
        stream = place.name if stream is None else stream
        if place.owner is None:
            engine.check_tensor(parameter, distribution, repr(name))
            yield Job(place.name, distribution, stream, parameter)
        elif any(is_dtensor(parameter) for parameter in place.parameters.values()):
            raise ModelError(f"{name!r} is parametrised and sharded: name the parameters it is computed from")
        else:
            yield Computed(place, distribution, stream)
    if kept is not None:
        missing = [name for name in places.parameters if name not in written and name not in kept]
        if missing:
            raise InvalidValueError(
                f"no distribution is given for {', '.join(map(repr, missing))}: add one, or name it in keep"
            )


def write_jobs(
    model: nn.Module, jobs: list[Job | Computed], *, seed: int, finish: Callable[[], None] | None = None
) -> None:
    """Write what `check` yielded, marking the model until all is done."""
    computed = _computed([job for job in jobs if isinstance(job, Computed)], seed)
    plain = [job for job in jobs if isinstance(job, Job)]
    # What refuses does so before the first write: a DTensor of partial sums has no shard.
    sharded = {job.name: shard_of(job.tensor) for job in plain if is_dtensor(job.tensor)}
    with unfinished(model, [part for job in jobs for part in job.parts]):
        for place, pieces in computed:
            for parameter, piece in zip(place.parameters.values(), pieces, strict=True):
                with torch.no_grad():
                    parameter.copy_(piece)
        # A joint law keeps all threads busy by itself, and holds a whole matrix: one after the other.
        joint = [job for job in plain if isinstance(job.distribution, Whole)]
        for task in engine.tasks(_draws(joint, sharded, seed)):
            task()
        separate = [job for job in plain if not isinstance(job.distribution, Whole)] if joint else plain
        workers.run(engine.tasks(_draws(separate, sharded, seed)))
        engine.finish([sharded[job.name].local if job.name in sharded else job.tensor for job in plain])
        if finish is not None:
            finish()


def _draws(jobs: Iterable[Job], sharded: Mapping[str, Shard], seed: int) -> Iterator[Draw | Task]:
    for name, distribution, stream, tensor in jobs:
        shard = sharded.get(name) or shard_of(tensor)
        yield from engine.draws(shard, distribution, stream_key(seed, stream))


def _computed(jobs: list[Computed], seed: int) -> list[tuple[Place, tuple[Tensor, ...]]]:
    """Ask every inverse before the first write, as it may refuse; its own state is put back if one does."""
    states = [
        (module, dict(module._buffers))
        for job in jobs
        if job.place.owner is not None
        for module in job.place.owner.modules()
    ]
    try:
        return [(job.place, _pieces(job, seed)) for job in jobs]
    except BaseException:
        for module, buffers in states:
            module._buffers.update(buffers)
        raise


def _pieces(job: Computed, seed: int) -> tuple[Tensor, ...]:
    place = job.place
    drawn = torch.empty_like(place.like, requires_grad=False)
    engine.check(drawn, job.distribution, repr(place.name))
    value = fill_keyed_(drawn, job.distribution, seed=seed, name=job.stream)
    pieces = place.pieces(value)
    for (name, parameter), piece in zip(place.parameters.items(), pieces, strict=True):
        if piece.shape != parameter.shape:
            raise ModelError(
                f"the parametrisation gives {name!r} the shape {tuple(piece.shape)}: cannot assign"
            )
    return pieces


def _kept(places: Places, keep: Keep) -> set[str] | None:
    """Canonical first names of the kept parameters; None where all unnamed ones are."""
    if keep == "unnamed":
        return None
    if isinstance(keep, str):
        raise InvalidTypeError(f"keep must be 'unnamed' or a collection of names, got {keep!r}")
    return {part for name in keep for part in places.find(name).parameters}


def _check_ready(name: str, parameter: Tensor, on_meta: bool) -> None:
    if is_lazy(parameter):
        raise ModelError(f"{name!r} is lazy and has no shape yet: run the model once on an example first")
    if not on_meta and parameter.is_meta:
        raise ModelError(f"{name!r} is on the meta device and has no memory: use isometry.materialize_")


def _check_own(name: str, parameter: Tensor, memory: dict[int, str]) -> None:
    """Refuse a second parameter in the same memory: which value stays would be up to the threads."""
    if type(parameter) is nn.Parameter and parameter.is_cpu and parameter.numel():
        other = memory.setdefault(parameter.data_ptr(), name)
        if other != name:
            raise InvalidValueError(
                f"{other!r} and {name!r} share memory and cannot both be written: "
                "make them one nn.Parameter, or name one alone"
            )
