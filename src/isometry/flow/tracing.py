"""Run a model once without numbers, and read what each of its parameters is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from isometry.flow.graph import Tracer
from isometry.flow.origin import tell
from isometry.flow.roles import Roles, roles_of
from isometry.moments import algebra as alg
from isometry.moments.carrier import Kind
from isometry.moments.concrete import Concrete
from isometry.moments.rules.base import Value
from isometry.names import canonical_name
from isometry.rehearsal import Rehearsal, Stage


@dataclass(frozen=True)
class Study:
    """A model whose data flow was read.

    Attributes:
        stage: The run.
        roles: What its parameters are for.
        assumed: The names of parameters and buffers without values, and what they were taken for.
    """

    stage: Stage
    roles: Roles
    assumed: dict[str, str]


def study(source: nn.Module | Callable[[], nn.Module], inputs: object, *, prefer: Kind = "meta") -> Study:
    """Run a model's forward code on meta tensors and read the roles of its parameters.

    A model on meta need not have values: a parameter without them is taken as random, a buffer as zero (a
    running variance as one).

    Args:
        source: The model, or the function that builds it.
        inputs: In any of the forms of `isometry.inputs.batches`.
        prefer: The carrier; some kernels run as other operations on real tensors.

    Returns:
        The study. The model is as before.

    Raises:
        The errors of `isometry.predict`.
    """
    assumed: dict[str, str] = {}

    def begin(stage: Stage) -> Tracer:
        parameters = {canonical_name(name): p for name, p in stage.twin.named_parameters()}
        interpreter = stage.interpreter

        def known(tensor: Tensor) -> float | None:
            value = interpreter.value(tensor) if tensor.is_meta else Concrete(tensor)
            if not isinstance(value, Concrete) or value.tensor.is_complex():
                return None
            with _disable_current_modes():
                return float(value.tensor)

        tracer = Tracer(parameters, (stage.args, stage.kwargs), lambda: interpreter.module, known)
        interpreter.observer = tracer
        return tracer

    rehearsal = Rehearsal[Tracer](
        source, inputs, backward=False, assumed=assumption(assumed), prefer=prefer, predicted=False
    )
    stage, tracer = rehearsal.run(begin)
    flow = tracer.finish(stage.output)
    tell(flow)
    return Study(stage, roles_of(stage.model, flow), assumed)


def assumption(told: dict[str, str]) -> Callable[[str, Tensor], Value]:
    """Return what a tensor without values is taken for, and tell of buffers in a dict."""

    def assume(name: str, tensor: Tensor) -> Value:
        if isinstance(tensor, nn.Parameter):
            rows = max(tensor.numel() // max(tensor.shape[0], 1), 1) if tensor.dim() else 1
            return alg.normal(tensor.shape, 0.0, rows**-0.5)
        one = name.endswith("running_var")
        told[canonical_name(name)] = "one" if one else "zero"
        return Concrete(torch.full((), float(one)).to(tensor.dtype).expand(tensor.shape))

    return assume
