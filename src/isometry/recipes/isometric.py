"""Plain chains start as isometries: orthogonal at the critical gain, mirrored where φ is not odd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from isometry.errors import InvalidValueError, ModelError
from isometry.flow.chains import Chain, Layer, Reading, chains_of
from isometry.flow.graph import Node
from isometry.init.mirrored import Box
from isometry.initialisers import chain as weaving
from isometry.initialisers.chain import interfaces, woven
from isometry.moments.calls import tensors_in
from isometry.recipes.base import Choice, Subject, recipe
from isometry.recipes.edge import biases_of, edge_choices
from isometry.recipes.operating import Bend, Operating, bend_of, centre_of, logits_size, operating_point
from isometry.rehearsal import first_batch
from isometry.sampling import Constant


def plain_choices(subject: Subject, *, activations: int = 2) -> dict[str, Choice]:
    """Choose the weights of the plain chains of a model.

    Args:
        subject: What a recipe is given.
        activations: Chains with fewer activations one behind another are left out.

    Returns:
        The choices by parameter. A chain that cannot be woven is at the edge of chaos, with the reason.
    """
    found: dict[str, Choice] = {}
    bends: dict[Any, Bend] = {}
    for chain in chains_of(subject.roles):
        if chain.bends < activations or any(r.role.name in subject.settled for r in chain.layers):
            continue
        weaver = _Weaver(subject, chain, bends)
        try:
            found |= weaver.choices()
        except InvalidValueError as refusal:
            arriving = {id(layer): weaver.second_moment(layer) for layer in chain.layers}
            plain = _Weaver(subject, chain, bends, centred=False)
            found |= edge_choices(subject, chain, str(refusal), plain.bends, arriving)
    return found


@recipe(
    "isometric",
    source="Saxe et al. (2014); Pennington et al. (2017); Balduzzi et al. (2017); Xiao et al. (2018)",
)
def isometric(subject: Subject) -> Mapping[str, Choice]:
    """Keep every singular value of a plain network near one: orthogonal, mirrored and delta weights."""
    found = plain_choices(subject, activations=0)
    outside = [role for role in subject.weights() if role.name not in found]
    for role in outside:
        found[role.name] = Choice(None, "in no plain chain: kept as it is")
    if outside:
        subject.notes.append(
            f"{len(outside)} weights, such as {outside[0].name!r} ({outside[0].words}), are kept: they are "
            "in no plain chain; recipe 'auto' knows residual branches, attention and gates"
        )
    return found


class _Weaver:
    """The laws of one chain."""

    def __init__(
        self, subject: Subject, chain: Chain, bends: dict[Any, Bend], *, centred: bool = True
    ) -> None:
        self.subject, self.chain = subject, chain
        self.refused = chain.refused
        self.index = {id(layer): i for i, layer in enumerate(chain.layers)}
        self.bends: dict[int, Bend] = {}
        self.frames: dict[int, Box] = {}  # taps that overlap
        self.biases: dict[str, Choice] = {}  # those that are not to be zero
        for layer in chain.layers:
            if layer.readers:
                self._bend(layer, bends, centred)

    def _bend(self, layer: Layer, known: dict[Any, Bend], centred: bool) -> None:
        """Find the function behind a layer, the same for all its readers."""
        found: list[Bend] = []
        readings = [r for reader in layer.readers for r in reader.reads if r.layer is layer]
        centre = self._centre(layer, readings) if centred else 0.0
        for reading in readings:
            key = reading.key, centre
            if key not in known:
                function = reading.function if not centre else _shifted(reading.function, centre)
                try:
                    known[key] = bend_of(function, _named(layer, reading))
                except InvalidValueError as error:
                    self.refused = self.refused or str(error)
                    return
            found.append(known[key])
        if any(bend is not found[0] for bend in found):
            self.refused = self.refused or f"{layer.role.name} is read through different functions"
        if found[0].parity == "even":
            self.refused = self.refused or (
                f"{found[0].name} behind {layer.role.name} is even: it has no odd part to mirror"
            )
        self.bends[id(layer)] = found[0]

    def _centre(self, layer: Layer, readings: list[Reading]) -> float:
        """Let a layer's biases move its units to where what reads them is zero, if that is not at 0."""
        biases = biases_of(self.subject, layer)
        if len(biases) != 1 or len({reading.key for reading in readings}) != 1:
            return 0.0
        try:
            centre = centre_of(readings[0].function)
        except (ModelError, RuntimeError, TypeError):
            return 0.0
        if centre:
            reason = f"at {centre:.4g} {_named(layer, readings[0])} is zero"
            self.biases[biases[0]] = Choice(Constant(centre), reason)
        return centre

    def choices(self) -> dict[str, Choice]:
        """Return the choices of the chain's weights, and of the biases that are not to be zero.

        Raises:
            InvalidValueError: The chain cannot be woven; the message says why.
        """
        if self.refused:
            raise InvalidValueError(self.refused)
        self._spread_taps()
        sides = interfaces([self._layer(layer, 1.0) for layer in self.chain.layers])
        factors = []
        for layer, side in zip(self.chain.layers, sides, strict=True):
            if layer.readers:
                factors.append((self.bends[id(layer)], side.size))
        mean = math.exp(sum(math.log(f) for _, f in factors) / len(factors)) if factors else 1.0
        point = operating_point(factors, 1.0 / mean)
        layers, gains = [], []
        for layer, side in zip(self.chain.layers, sides, strict=True):
            gain = self._gain(layer, point, sides)
            if not layer.readers and layer.output:
                size = math.sqrt(point.length * side.size)
                gain *= logits_size(side.outputs, self.chain.bends) / size
            gains.append(gain)
            layers.append(self._layer(layer, gain))
        laws = woven(layers, self.subject.seed)
        return {
            layer.role.name: Choice(law, self._reason(layer, gain, point, sides))
            for layer, law, gain in zip(self.chain.layers, laws, gains, strict=True)
        } | self.biases

    def _spread_taps(self) -> None:
        """Let convolutions before a pooling read neighbours, as far as their channels carry more than now.

        On one tap a kernel keeps pixels apart, and a pooling would leave as many numbers as channels carry.
        """
        pooled = [
            i for i, a in enumerate(self.chain.layers) if any(r.maxima or r.averaged > 1 for r in a.reads)
        ]
        woven_so_far: list[weaving.Layer] = []
        for layer in self.chain.layers[: max(pooled, default=0)]:
            made = self._layer(layer, 1.0)
            side = interfaces([*woven_so_far, made])[-1]
            room = made.writes.coordinates // side.live
            box = wider_box(layer, room) if len(layer.reads) < 2 and made.positions == 1 else None
            if box is not None:
                self.frames[id(layer)] = box
                made = self._layer(layer, 1.0)
            woven_so_far.append(made)

    def second_moment(self, layer: Layer) -> float:
        """Return the second moment of what a first layer reads; 1 where that is no input of the model."""
        flow, start = self.subject.roles.flow, layer.start
        if start is None or start.op != "input" or layer.entry is None:
            return 1.0
        order = [n.index for n in flow.nodes if n.op == "input"].index(start.index)
        batch = first_batch(self.subject.inputs)
        tensor = list(tensors_in((batch.args, dict(batch.kwargs))))[order].detach()
        moment = float(layer.entry(tensor.to("cpu", torch.float64)).square().mean())
        return moment if 0 < moment < math.inf else 1.0

    def _layer(self, layer: Layer, scale: float) -> weaving.Layer:
        fans = layer.role.fans
        assert fans is not None  # a chain's layers have fans
        box = self.frames.get(id(layer)) or box_of(layer)
        taps = math.prod(count for _, count in box) if box else 1
        reads = layer.reads[0] if layer.reads else None
        if fans.layout.blocks != 1:
            raise InvalidValueError(
                f"{layer.role.name} has {fans.layout.blocks} blocks (groups) and cannot be mirrored"
            )
        mirrored = bool(layer.readers) and self.bends[id(layer)].mirrored
        if mirrored and fans.layout.outputs < 2:
            raise InvalidValueError(f"{layer.role.name} has one unit, and a mirrored layer needs pairs")
        if reads and reads.positions > 1 and taps > 1:
            raise InvalidValueError(f"{layer.role.name} reads flattened units through a kernel")
        return weaving.Layer(
            layer.role.name,
            fans.layout,
            scale,
            tuple(self.index[id(source)] for source in layer.sources),
            mirrored,
            taps * (reads.positions if reads else 1),
            box,
            reads.positions if reads and reads.interleaved else 1,
            id(layer) in self.frames,
        )

    def _gain(self, layer: Layer, point: Operating, sides: list[weaving.Interface]) -> float:
        if not layer.reads:
            boost = sides[self.index[id(layer)]].boost
            return math.sqrt(point.length / self.second_moment(layer)) * boost
        logs = []
        for reading in layer.reads:
            side = sides[self.index[id(reading.layer)]]
            gain = self.bends[id(reading.layer)].at(point.length * side.size).gain
            # An average of n keeps what its entries share and 1/n of what they do not: half is made good.
            logs.append(math.log(gain * reading.averaged**0.25))
        return math.exp(sum(logs) / len(logs)) * sides[self.index[id(layer)]].boost

    def _reason(self, layer: Layer, gain: float, point: Operating, sides: list[weaving.Interface]) -> str:
        words = []
        bend = self.bends.get(id(layer))
        read = self.bends[id(layer.sources[0])] if layer.sources else None
        if bend is not None and bend.mirrored:
            words.append(f"mirrored for {bend.name}")
        elif read is not None and read.mirrored:
            words.append(f"reads mirrored {read.name}")
        else:
            words.append("orthogonal")
        box = self.frames.get(id(layer)) or box_of(layer)
        if box is not None:
            spread = math.prod(count for _, count in box)
            way = "overlap" if id(layer) in self.frames else "tile what it reads"
            words.append("on one tap" if spread == 1 else f"on {spread} taps that {way}")
        words.append(f"gain {gain:.4g}")
        if not layer.readers and layer.output:
            words.append("for small logits")
        elif read is not None and read.slope is None:
            words.append(f"keeps signals of variance {point.length:.3g} through {read.name}")
        if point.spread > 1.001:
            words.append(f"singular values within a factor {point.spread:.3g} of one")
        if len(layer.reads) > 1:
            words.append(f"sizes kept on average behind a concatenation of {len(layer.reads)}")
        if any(r.maxima for r in layer.reads):
            words.append("up to max pooling, which is odd but not linear")
        return ", ".join(words)


def _shifted(function: Callable[[Tensor], Tensor], by: float) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x + by)


def box_of(layer: Layer) -> Box | None:
    """Return the taps that a convolution uses: the central one, or with a stride those that tile the input.

    Raises:
        InvalidValueError: A transposed convolution.
    """
    node = layer.node
    if "convolution" not in node.op:
        return None
    fans = layer.role.fans
    assert fans is not None  # a chain's layers have fans
    if node.args[6]:
        raise InvalidValueError(f"{layer.role.name} is a transposed convolution, which is not woven")
    box = []
    for axis, side in enumerate(fans.layout.taps_shape):
        stride, padding, dilation = (_along(node.args[i], axis) for i in (3, 4, 5))
        count = min(stride, side) if dilation == 1 else 1
        first = min(padding, side - count) if stride > 1 else (side - 1) // 2
        box.append((first, count))
    return tuple(box)


def wider_box(layer: Layer, room: int) -> Box | None:
    """Return the largest box of up to `room` taps of a convolution that keeps an image's size, if any."""
    node = layer.node
    if room < 2 or "convolution" not in node.op or layer.role.fans is None:
        return None
    sides = layer.role.fans.layout.taps_shape
    counts = [1] * len(sides)
    while True:
        grown = [a for a, side in enumerate(sides) if counts[a] < side and _same_size(node, a, side)]
        grown = [a for a in grown if math.prod(counts) // counts[a] * (counts[a] + 1) <= room]
        if not grown:
            break
        counts[min(grown, key=counts.__getitem__)] += 1
    if math.prod(counts) == 1:
        return None
    return tuple(((side - count) // 2, count) for side, count in zip(sides, counts, strict=True))


def _same_size(node: Node, axis: int, side: int) -> bool:
    stride, padding, dilation = (_along(node.args[i], axis) for i in (3, 4, 5))
    return stride == 1 and dilation == 1 and 2 * padding == side - 1


def _along(sides: list[int], axis: int) -> int:
    return int(sides[axis] if len(sides) > 1 else sides[0])


def _named(layer: Layer, reading: Reading) -> str:
    names = [feed for feed in layer.role.feeds if feed not in ("linear", "output", "sum", "product", "cat")]
    return names[0] if names and reading.bends else "the identity"
