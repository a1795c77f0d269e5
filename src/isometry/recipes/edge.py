"""Chains that cannot be isometries: the critical point of the correlation map, the edge of chaos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isometry.activations import Activation
from isometry.criticality import CriticalPoint, critical_line, critical_point
from isometry.errors import InvalidValueError
from isometry.flow.chains import Chain, Layer
from isometry.init.structured import of_kind
from isometry.meanfield import next_correlation, response_at
from isometry.recipes.base import Choice, Subject
from isometry.recipes.operating import Bend, logits_size
from isometry.sampling import Distribution, Normal

_DEEPEST = 1000  # layers over which correlations are followed
_TOLD_APART = 0.01


@dataclass(frozen=True)
class Edge:
    """Where a network of one activation is critical, and for how many layers it tells inputs apart.

    Attributes:
        point: σ_w, σ_b and the length q.
        depth: Layers after which two inputs of correlation ½ have one above 0.99; `_DEEPEST` at most.
        critical: Whether χ₁ = 1 at that point; otherwise only the length is kept.
    """

    point: CriticalPoint
    depth: int
    critical: bool


def edge_of(activation: Activation, layers: int) -> Edge:
    """Find the edge of chaos of an activation.

    Without biases where there is such a point; where its length is 0, at the length 1/layers, with the bias
    that belongs to it or, where that would have a negative variance, at the gain that keeps the length.

    Args:
        activation: φ.
        layers: How many there are.

    Returns:
        The edge; with jumps or without a critical point, the gain that keeps a length of 1.

    Raises:
        InvalidValueError: The activation is zero for practically every input.

    Example:
        >>> from isometry.activations import resolve
        >>> edge = edge_of(resolve("cos"), 30)
        >>> round(edge.point.weight_std, 3), edge.depth > 30
        (1.483, True)
    """
    length, critical = 1.0, True
    try:
        point = critical_point(activation)
        length = point.length
        if not length:
            length = 1.0 / max(layers, 1)
            near = critical_line(activation, [length])
            point = near[0] if near else _keeping(activation, length)
            critical = bool(near)
    except InvalidValueError:
        point, critical = _keeping(activation, length or 1.0), False
    return Edge(point, _survival(activation, point), critical)


def _keeping(activation: Activation, length: float) -> CriticalPoint:
    response = response_at(activation, length)
    response.require_output()
    return CriticalPoint(weight_std=math.sqrt(length / response.second_moment), bias_std=0.0, length=length)


def _survival(activation: Activation, point: CriticalPoint) -> int:
    """Return the number of layers after which two inputs can hardly be told apart.

    The map of ln(1 − c) is followed on a line through a few of its points, within a few layers of exact.
    """
    response = response_at(activation, point.length)
    starts = [math.log(0.5) + k / 15 * math.log(_TOLD_APART / 0.5) for k in range(16)]
    ends = []
    for start in starts:
        after = next_correlation(response, 1 - math.exp(start), point.weight_std, point.bias_std)
        ends.append(math.log(max(1 - after, 1e-300)))
    here, depth = starts[0], 0
    while here > starts[-1] and depth < _DEEPEST:
        here = float(np.interp(-here, [-x for x in starts], ends))
        depth += 1
    return depth


def edge_choices(
    subject: Subject,
    chain: Chain,
    reason: str,
    bends: dict[int, Bend],
    arriving: Mapping[int, float],
) -> dict[str, Choice]:
    """Choose the weights and biases of a chain at the edge of chaos.

    Args:
        subject: What a recipe is given.
        chain: The chain.
        reason: Why it cannot be an isometry.
        bends: The functions behind its layers, by the layers' identity; what is missing is taken as linear.
        arriving: The second moment of what a first layer reads, likewise.

    Returns:
        The choices by parameter.
    """
    edges: dict[int, Edge] = {}
    depth = len(chain.layers)
    unknown = ""
    for layer in chain.layers:
        bend = bends.get(id(layer))
        if bend is None or not layer.readers or bend.parity == "linear":
            continue
        if id(bend) not in edges:
            try:
                edges[id(bend)] = edge_of(bend.function, depth)
            except InvalidValueError as error:
                unknown = str(error)
    reach = min((edge.depth for edge in edges.values()), default=_DEEPEST)
    told = f"{reach} layers" if reach < _DEEPEST else f"{_DEEPEST} layers and more"
    note = (
        f"no isometry from {chain.layers[0].role.name} to {chain.layers[-1].role.name}: {reason}; "
        f"edge of chaos, where two inputs are told apart for {told}"
    )
    if unknown:
        note += f"; {unknown}"
    subject.notes.append(note)
    found: dict[str, Choice] = {}
    for layer in chain.layers:
        found |= _choices(subject, chain, layer, edges, bends, reason, arriving)
    return found


def _choices(
    subject: Subject,
    chain: Chain,
    layer: Layer,
    edges: dict[int, Edge],
    bends: dict[int, Bend],
    reason: str,
    arriving: Mapping[int, float],
) -> dict[str, Choice]:
    read = layer.sources[0] if layer.sources else None
    before = edges.get(id(bends.get(id(read)))) if read else None
    after = edges.get(id(bends.get(id(layer))))
    fans = layer.role.fans
    assert fans is not None  # a chain's layers have fans
    target = after.point.length - after.point.bias_std**2 if after else before.point.length if before else 1.0
    size = arriving[id(layer)]
    if before is not None and read is not None:
        point = before.point
        size = response_at(bends[id(read)].function, point.length).second_moment
    std = math.sqrt(target / size)
    words = f"{reason}: edge of chaos"
    if after is not None:
        words += f" at σ_w = {after.point.weight_std:.4g}, σ_b = {after.point.bias_std:.4g}"
        if not after.critical:
            words += " (not critical: it keeps lengths alone)"
    if not layer.readers and layer.output:
        std = logits_size(fans.layout.outputs, chain.bends) / math.sqrt(size)
        words = f"{reason}: small logits"
    law: Distribution = of_kind(
        subject.family or "orthogonal", std / math.sqrt(fans.forward), layout=fans.layout
    )
    found = {layer.role.name: Choice(law, words, marks=("refused",))}
    if after is not None and after.point.bias_std > 0:
        for bias in biases_of(subject, layer):
            found[bias] = Choice(Normal(after.point.bias_std), "the bias of the critical point")
    return found


def biases_of(subject: Subject, layer: Layer) -> list[str]:
    """Return the biases that are added to a layer's output before anything else is.

    Args:
        subject: What a recipe is given.
        layer: The layer.

    Returns:
        Their names.
    """
    cone = layer.role.uses[0].cone
    nodes = cone.nodes if cone else frozenset([layer.node.index])
    return [
        role.name
        for role in subject.roles.by_name.values()
        if role.kind == "bias" and len(role.uses) == 1 and role.uses[0].node.index in nodes
    ]
