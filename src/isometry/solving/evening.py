"""Share between a stream's size and its gradient what changes from one of its stages to the next.

Where a stream goes through a weight to n′ entries in place of n, the product of its size and its gradient
changes by √(n/n′), whatever the weight's scale; a norm or a bend on the way adds a factor of its own. That
product p, relative to the first stage, is the architecture's. A stage of size √p has the gradient √p as well:
neither is further from the first stage's than it must be, and what a branch's last weight gets as gradient,
relative to its own size, is the same in all stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from isometry.errors import IsometryError
from isometry.flow.stages import Stage
from isometry.flow.tracing import assumption
from isometry.hooks import on_gradient
from isometry.rehearsal import Rehearsal
from isometry.rehearsal import Stage as Run
from isometry.sampling import Distribution
from isometry.solving.passes import Problem
from isometry.solving.solver import Solver

UNEVEN = 2.0  # products within this factor of the first stage's are left alone: predictions are not nearer


def even_sizes(
    problem: Problem, laws: Mapping[str, tuple[Distribution, float]], stages: Sequence[Stage]
) -> dict[int, float]:
    """Return the sizes at which stages share what changes between them.

    Args:
        problem: The model, its inputs and its roles.
        laws: What each parameter is drawn from, with its standard deviation, when all stages have one size.
        stages: The stages of one stream, the first of them first.

    Returns:
        The sizes relative to the first stage's, by the stage's first sum. None where all products are within
        a factor 2 of the first; a stage whose gradient is not known is left out.
    """
    nodes = [stage.first for stage in stages]

    def begin(run: Run) -> _Products:
        return _Products(run, problem, laws, nodes)

    try:
        _, found = Rehearsal[_Products](problem.source, problem.inputs, assumed=assumption({})).run(begin)
    except IsometryError:
        return {}  # its backward pass cannot be run here
    products = {i: found.sizes[i] * found.gradients[i] for i in nodes if found.gradients.get(i, 0.0) > 0.0}
    if nodes[0] not in products:
        return {}
    logs = {i: math.log(p / products[nodes[0]]) for i, p in products.items()}
    uneven = max(map(abs, logs.values())) > math.log(UNEVEN)
    return {i: math.exp(log / 2) for i, log in logs.items()} if uneven else {}


class _Products:
    """Reads sizes after the forward pass, and gradients during the backward one."""

    def __init__(
        self,
        run: Run,
        problem: Problem,
        laws: Mapping[str, tuple[Distribution, float]],
        nodes: Sequence[int],
    ) -> None:
        self.nodes = nodes
        self.sizes: dict[int, float] = {}
        self.gradients: dict[int, float] = {}
        self.solver = Solver(run, problem.roles, laws, {}, frozenset(nodes), "never", problem.seed)
        run.between = self._between

    def _between(self) -> None:
        for index in self.nodes:
            tensor, size = self.solver.tensor(index), self.solver.rms(index)
            if tensor is not None and size is not None and tensor.requires_grad:
                self.sizes[index] = size
                on_gradient(tensor, partial(self._gradient, index))

    def _gradient(self, index: int, gradient: Tensor) -> None:
        size = self.solver.size(gradient)
        if size is not None:
            self.gradients[index] = size
