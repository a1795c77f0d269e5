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
from isometry.init.mirrored import Flattened, Mirrored, Part, Rotation, Width


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


def mirrored_chain(weights: Sequence[Weight], *, slope: float, gain: float, seed: int) -> list[Mirrored]:
    """The looks-linear distribution of each layer of a chain, in the order given.

    Layer l gets W_l = Q_l·Q_{l-1}ᵀ restricted to the coordinates that both sides have, so that the product of
    all layers is Q_L·Q_0ᵀ restricted to the narrowest interface: as many singular values one as that has
    coordinates, the others zero. Exact. Where a linear layer reads flattened channels, Q_{l-1} acts on the
    channels at every position.

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
    reads = _reads(weights)
    last = len(weights) - 1
    ins = [read.pairs for read in reads]
    outs = [weight.fans.layout.outputs if i == last else _pairs(weight) for i, weight in enumerate(weights)]
    shared = [min(pair) for pair in zip(ins, outs, strict=True)]
    targets = []
    for i, weight in enumerate(weights):
        joined = i < last and ins[i + 1] == outs[i]
        cols = max(shared[i], shared[i + 1]) if joined else shared[i]
        targets.append(Rotation(_key(seed, weight.name), outs[i], cols))
    laws = []
    live = ins[0] if ins else 0  # how many coordinates carry the signal
    for i, weight in enumerate(weights):
        key = _key(seed, f"{weight.name}/inputs")
        source: Rotation | Flattened
        if i == 0:
            source = Rotation(key, ins[0], shared[0])
        elif ins[i] == outs[i - 1]:
            source = targets[i - 1]
        else:
            positions = ins[i] // outs[i - 1]
            source = Flattened(targets[i - 1], positions, live, shared[i], key)
            live *= positions
        live = min(live, outs[i])
        scale, layout = gain if i == 0 else gain / slope, weight.fans.layout
        laws.append(Mirrored(scale, _part(i, last), layout, None, reads[i], source, targets[i]))
    return laws


def _part(index: int, last: int) -> Part:
    if last == 0:
        return "only"
    return "first" if index == 0 else "last" if index == last else "hidden"


def _pairs(weight: Weight) -> int:
    pairs = Width.of(weight.fans.layout.outputs).pairs
    if not pairs:
        raise InvalidValueError(
            f"the layer of {weight.name!r} has one unit, and a mirrored layer needs pairs: give it two"
        )
    return pairs


def _reads(weights: Sequence[Weight]) -> list[Width]:
    """How the inputs of each layer pair up; the first reads plain coordinates."""
    reads: list[Width] = []
    for i, weight in enumerate(weights):
        _require_plain(weight)
        inputs = weight.fans.layout.inputs
        if i == 0:
            reads.append(Width(inputs, 0))
            continue
        written = weights[i - 1].fans.layout.outputs
        flattened = bool(weights[i - 1].fans.layout.taps) and not weight.fans.layout.taps
        positions = inputs // written
        if inputs % written or not (positions == 1 or (positions > 1 and flattened)):
            raise InvalidValueError(
                f"{weight.name!r} reads {inputs} units, but {weights[i - 1].name!r}, registered before it, "
                f"writes {written}: mirrored weights need a plain chain whose modules are registered in the "
                "order in which they run; leave other layers out with skip= or initialise the plain parts "
                "one by one"
            )
        reads.append(Width.of(written).times(positions))
    return reads


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
