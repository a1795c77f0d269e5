"""Mirrored weights for a whole chain of layers whose widths may change.

Shape legend: a chain of L layers has L + 1 interfaces; m is the number of linear coordinates at an interface:
the inputs, the pairs of each hidden width, the outputs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from isometry.errors import InvalidValueError
from isometry.fans import Fans
from isometry.init.mirrored import Box, Flattened, Mirrored, Part, Rotation, Width
from isometry.layout import Layout


@dataclass(frozen=True)
class Weight:
    """A weight that an initialiser has to find a distribution for.

    Attributes:
        name: Canonical name of the parameter.
        module: The module that uses it.
        fans: Its fans and layout.
        precise: Whether it is float64 and so worth exact orthogonalisation.
    """

    name: str
    module: nn.Module
    fans: Fans
    precise: bool = False


@dataclass(frozen=True)
class Layer:
    """A layer of a chain, or of a tree of chains with one trunk.

    Attributes:
        name: Canonical name of the weight.
        layout: Its layout, one block.
        scale: Factor on its orthogonal matrix: the gain wanted over the slope of what it reads.
        sources: The layers that it reads, by index; none: plain coordinates; several: a concatenation.
        mirrored: Whether its outputs are [u; -u].
        positions: How many positions of its source's channels it reads, the box's taps included.
        box: The taps it uses, see `Mirrored`.
        interleaved: See `Mirrored`.
        overlaps: Whether the box's taps read entries that other outputs read, too: with orthonormal columns
            that is a tight frame, which keeps sizes when it is divided by the root of their number.
    """

    name: str
    layout: Layout
    scale: float
    sources: tuple[int, ...] = ()
    mirrored: bool = True
    positions: int = 1
    box: Box | None = None
    interleaved: int = 1
    overlaps: bool = False

    @property
    def writes(self) -> Width:
        """The pairing of its outputs."""
        return Width.of(self.layout.outputs) if self.mirrored else Width(0, plain=self.layout.outputs)


@dataclass(frozen=True)
class Interface:
    """What a layer makes of linear coordinates.

    Attributes:
        inputs: Linear coordinates that it reads.
        outputs: Linear coordinates that it writes.
        live: How many of those carry signal: the narrowest passage so far.
        level: Their mean square, where one coordinate at the beginning has 1.
        boost: A factor on the layer's matrix: above 1 where it reads a concatenation, whose parts carry the
            same signal, and of which it keeps a random part; below 1 where its taps overlap.
    """

    inputs: int
    outputs: int
    live: int
    level: float = 1.0
    boost: float = 1.0

    @property
    def size(self) -> float:
        """Mean square of all coordinates written."""
        return self.level * self.live / self.outputs


def interfaces(layers: Sequence[Layer]) -> list[Interface]:
    """Count the coordinates at the two sides of every layer.

    Args:
        layers: In the order of execution.

    Returns:
        One interface per layer.

    Example:
        >>> from isometry.layout import grouped
        >>> chain = [Layer("a", grouped((9, 5)), 1.0), Layer("b", grouped((3, 9)), 1.0, (0,), False)]
        >>> [(side.inputs, side.outputs, side.live) for side in interfaces(chain)]
        [(5, 4, 4), (4, 3, 3)]
    """
    found: list[Interface] = []
    for layer in layers:
        read = [found[i] for i in layer.sources]
        inputs = layer.positions * (sum(side.outputs for side in read) if read else layer.layout.inputs)
        live = layer.positions * sum(side.live for side in read) if read else inputs
        outputs = layer.writes.coordinates
        if len(read) < 2:
            times = layer.positions if layer.overlaps else 1
            level = (read[0].level if read else 1.0) / times
            found.append(Interface(inputs, outputs, min(live, outputs), level, times**-0.5))
            continue
        norm = layer.positions * sum(side.live * side.level for side in read)
        kept, all_kept = norm * min(1.0, outputs / inputs), norm * min(1.0, outputs / live)
        spread = min(inputs, outputs)
        found.append(Interface(inputs, outputs, spread, all_kept / spread, (all_kept / kept) ** 0.5))
    return found


def woven(layers: Sequence[Layer], seed: int) -> list[Mirrored]:
    """The distributions of layers whose product is to keep all that its narrowest interface can carry.

    Layer l gets W_l = Q_l·Q_{l-1}ᵀ restricted to the coordinates that both sides have, so that the product of
    all layers is Q_L·Q_0ᵀ restricted to the narrowest interface: as many singular values one as that has
    coordinates, the others zero. Exact. Where a layer reads several positions of its source's channels (it is
    flattened, or a strided kernel), Q_{l-1} acts on the channels at every position. A layer that reads a
    concatenation has a basis of its own there.

    Args:
        layers: In the order of execution.
        seed: Key of the rotations.

    Returns:
        One distribution per layer.
    """
    sides = interfaces(layers)
    shared = [min(side.inputs, side.outputs) for side in sides]
    cols = list(shared)
    for i, layer in enumerate(layers):
        if len(layer.sources) == 1 and layer.positions == 1:
            cols[layer.sources[0]] = max(cols[layer.sources[0]], shared[i])
    targets = [Rotation(_key(seed, a.name), sides[i].outputs, cols[i]) for i, a in enumerate(layers)]
    laws = []
    for i, layer in enumerate(layers):
        key = _key(seed, f"{layer.name}/inputs")
        source: Rotation | Flattened = Rotation(key, sides[i].inputs, shared[i])
        if len(layer.sources) == 1:
            (before,) = layer.sources
            source = targets[before]
            if layer.positions > 1:
                source = Flattened(source, layer.positions, sides[before].live, shared[i], key)
        reads = tuple(layers[j].writes.times(layer.positions) for j in layer.sources)
        laws.append(
            Mirrored(
                layer.scale,
                _part(any(read.pairs for read in reads), layer.mirrored),
                layer.layout,
                layer.box,
                (reads[0] if len(reads) == 1 else reads) or None,
                layer.interleaved,
                source,
                targets[i],
            )
        )
    return laws


def _part(reads_mirrored: bool, writes_mirrored: bool) -> Part:
    if reads_mirrored:
        return "hidden" if writes_mirrored else "last"
    return "first" if writes_mirrored else "only"


def mirrored_chain(weights: Sequence[Weight], *, slope: float, gain: float, seed: int) -> list[Mirrored]:
    """The looks-linear distribution of each layer of a chain, in the order given; see `woven`.

    *Assumes* that the order given is the order of execution, with one activation between two layers and none
    before the first or after the last.

    Args:
        weights: The layers' weights.
        slope: c of φ(x) - φ(-x) = c·x.
        gain: Factor on the whole map of every layer, 1 for isometry.
        seed: Key of the rotations.

    Returns:
        One distribution per weight.

    Raises:
        InvalidValueError: A layer that is no plain linear map, or that does not read what the one before it
            writes.

    Example:
        >>> from isometry.fans import fans
        >>> layers = [nn.Linear(8, 6), nn.Linear(6, 4)]
        >>> chain = [Weight(str(i), layer, fans(layer)) for i, layer in enumerate(layers)]
        >>> [law.part for law in mirrored_chain(chain, slope=1.0, gain=1.0, seed=0)]
        ['first', 'last']
    """
    last = len(weights) - 1
    layers = []
    for i, weight in enumerate(weights):
        layout = weight.fans.layout
        layers.append(
            Layer(
                weight.name,
                layout,
                gain if i == 0 else gain / slope,
                sources=(i - 1,) if i else (),
                mirrored=i < last,
                positions=_positions(weights, i),
            )
        )
        if i < last and layout.outputs < 2:
            raise InvalidValueError(
                f"the layer of {weight.name!r} has one unit, and a mirrored layer needs pairs: give it two"
            )
    return woven(layers, seed)


def _positions(weights: Sequence[Weight], i: int) -> int:
    """How many positions of what the layer before writes a layer reads."""
    weight = weights[i]
    _require_plain(weight)
    if i == 0:
        return 1
    inputs, written = weight.fans.layout.inputs, weights[i - 1].fans.layout.outputs
    flattened = bool(weights[i - 1].fans.layout.taps) and not weight.fans.layout.taps
    positions = inputs // written
    if inputs % written or not (positions == 1 or (positions > 1 and flattened)):
        raise InvalidValueError(
            f"{weight.name!r} reads {inputs} units, but {weights[i - 1].name!r}, registered before it, "
            f"writes {written}: mirrored weights need a plain chain whose modules are registered in the "
            "order in which they run; leave other layers out with skip= or initialise the plain parts "
            "one by one"
        )
    return positions


def _require_plain(weight: Weight) -> None:
    odd_ones = (
        nn.RNNBase,
        nn.RNNCellBase,
        nn.MultiheadAttention,
        nn.Bilinear,
        nn.modules.conv._ConvTransposeNd,
    )
    if isinstance(weight.module, odd_ones) or weight.fans.layout.blocks != 1:
        raise InvalidValueError(
            f"{weight.name!r} of {type(weight.module).__name__} cannot be mirrored (only linear layers and "
            "convolutions without groups can): skip= it or initialise the plain parts one by one"
        )


def _key(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"isometry/mirrored/{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
