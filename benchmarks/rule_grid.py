"""The grid of `rules.py`: for each family of operations, networks over sizes, correlations and lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rule_networks import (
    Apply,
    Attention,
    Branches,
    Chain,
    Classifier,
    Gated,
    Residual,
    Source,
    linear,
    normal,
)

SHARES = (0.0, 0.5, 0.9)  # correlations of samples, tokens or places
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Point:
    """One point of the grid.

    Attributes:
        family: The family of operations.
        name: Its settings in words, unique within the family.
        build: Returns a fresh network.
        inputs: Floats on meta stand for N(0, 1); integers are as they are.
    """

    family: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs


Found = Iterator[tuple[str, Callable[[], nn.Module], Inputs]]


def mixed(shape: tuple[int, ...], *alike: int) -> Inputs:
    """What `Source` takes: entries of their own, and what they share along the dims `alike`."""
    common = tuple(1 if d in alike else n for d, n in enumerate(shape))
    return tuple(torch.empty(s, device="meta", requires_grad=True) for s in (shape, common))


def chain(share: float, *layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A builder of a source and layers."""
    return lambda: Chain(Source(share), *[layer() for layer in layers])


def _each(**settings: tuple[Any, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All combinations of settings, and a name for each."""
    for values in product(*settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        yield ", ".join(f"{k} {v}" for k, v in chosen.items()), chosen


# --- layers -------------------------------------------------------------------------------------------------


def activations() -> Found:
    """A linear map and an activation; samples are alike."""
    for name, s in _each(activation=(*ACTIVATIONS, "swiglu"), width=(32, 256), share=SHARES, gain=(0.5, 2.0)):
        width, inputs = s["width"], mixed((32, 64), 0)
        if s["activation"] == "swiglu":
            yield name, chain(s["share"], partial(Gated, 64, width, s["gain"])), inputs
            continue
        layers = partial(linear, 64, width, s["gain"]), partial(Apply, ACTIVATIONS[s["activation"]])
        yield name, chain(s["share"], *layers), inputs


def dropouts() -> Found:
    """Dropout of an activation's output, before a linear map."""
    for name, s in _each(rate=(0.1, 0.5), width=(32, 256), share=SHARES):
        layers = (nn.GELU, partial(nn.Dropout, s["rate"]), partial(linear, s["width"], 48))
        yield name, chain(s["share"], *layers), mixed((16, s["width"]), 0)


def residuals() -> Found:
    """A stream and a branch of a linear map and an activation, and what reads their sum."""
    for name, s in _each(activation=("relu", "gelu"), width=(64, 256), share=SHARES, scale=(0.3, 1.0)):
        width, fn = s["width"], ACTIVATIONS[s["activation"]]

        def layer(width: int = width, fn: Any = fn, scale: float = s["scale"]) -> nn.Module:
            return Residual(linear(width, width, 1.4), Apply(fn), scale=scale)

        yield name, chain(s["share"], layer, layer, nn.ReLU), mixed((32, width), 0)


def parts() -> Found:
    """Unlike functions of one tensor side by side, then cut elsewhere and multiplied."""
    for name, s in _each(width=(48, 192), share=SHARES, cut=(0.25, 0.5)):
        width, cut = s["width"], int(s["cut"] * s["width"])

        def join(width: int = width) -> nn.Module:
            return Branches(linear(width, width, 2.0), nn.ReLU(), nn.Tanh())

        def cut_at(width: int = width, cut: int = cut) -> nn.Module:
            return Apply(lambda x: x[:, cut : cut + width] * torch.sigmoid(x[:, 2 * width :]))

        layers = (join, cut_at, partial(linear, width, 32))
        yield name, chain(s["share"], *layers), mixed((16, width), 0)


def layer_norms() -> Found:
    """Layer norm of normal entries or of a relu's, before a relu or a linear map."""
    yield from _norms(nn.LayerNorm)


def rms_norms() -> Found:
    """RMS norm, as layer norm."""
    yield from _norms(nn.RMSNorm)


def _norms(kind: Callable[[int], nn.Module]) -> Found:
    for name, s in _each(features=(8, 32, 128, 512), before=("linear", "relu"), share=SHARES):
        n = s["features"]
        if s["before"] == "relu" and n < 32:  # some rows are all zeros: the gradient is that of 1/√eps
            continue
        layers = (partial(linear, 64, n), *_relu(s), partial(kind, n), nn.ReLU)
        yield name, chain(s["share"], *layers), mixed((16, 64), 0)


def _relu(settings: dict[str, Any]) -> list[Callable[[], nn.Module]]:
    return [nn.ReLU] if settings["before"] == "relu" else []


def batch_norms() -> Found:
    """Batch norm in training mode, before a relu."""
    for name, s in _each(samples=(8, 32, 128), before=("linear", "relu"), share=(0.0, 0.5)):
        layers = (partial(linear, 64, 96), *_relu(s), partial(nn.BatchNorm1d, 96), nn.ReLU)
        yield name, chain(s["share"], *layers), mixed((s["samples"], 64), 0)
    for name, s in _each(samples=(4, 16), pixels=(4, 8), share=(0.0, 0.5)):
        layers = (partial(nn.BatchNorm2d, 16), nn.ReLU)
        size = s["pixels"]
        yield name, chain(s["share"], *layers), mixed((s["samples"], 16, size, size), 2, 3)


def group_norms() -> Found:
    """Group norm of images whose places are alike, before a relu."""
    for name, s in _each(channels=(1, 2, 16), groups=(2, 8), pixels=(1, 4, 8), share=SHARES):
        if s["channels"] * s["pixels"] ** 2 < 8:  # the gradient has no second moment, or hardly
            continue
        channels, size = s["channels"] * s["groups"], s["pixels"]
        layers = (partial(nn.GroupNorm, s["groups"], channels), nn.ReLU)
        yield name, chain(s["share"], *layers), mixed((8, channels, size, size), 2, 3)


# --- images -------------------------------------------------------------------------------------------------


def convolutions() -> Found:
    """One convolution, or two with a relu between."""
    kinds = {"dense": 1, "groups": 4, "depthwise": 32}
    for name, s in _each(
        kind=tuple(kinds), kernel=("1", "3", "3/2", "5"), pixels=(4, 12), layers=(1, 2), share=(0.0, 0.5)
    ):

        def conv(s: dict[str, Any] = s) -> nn.Module:
            size, _, stride = s["kernel"].partition("/")
            kernel, groups = int(size), kinds[s["kind"]]
            made = nn.Conv2d(32, 32, kernel, int(stride or 1), kernel // 2, groups=groups, bias=False)
            return normal(made, 1.4)

        layers = (conv,) if s["layers"] == 1 else (conv, nn.ReLU, conv)
        yield name, chain(s["share"], *layers), mixed((8, 32, s["pixels"], s["pixels"]), 2, 3)


def poolings() -> Found:
    """Average and max pools of normal entries and of relus, before an activation."""
    windows = {"2/2": (2, 2, 0), "3/2 padded": (3, 2, 1), "3/1 padded": (3, 1, 1), "4/4": (4, 4, 0)}
    for name, s in _each(
        pool=("max", "average"),
        window=tuple(windows),
        before=("normal", "relu"),
        pixels=(8, 16),
        share=SHARES,
    ):
        kernel, stride, padding = windows[s["window"]]
        kind = nn.MaxPool2d if s["pool"] == "max" else nn.AvgPool2d
        layers = (*_relu(s), partial(kind, kernel, stride, padding), nn.SiLU)
        yield name, chain(s["share"], *layers), mixed((8, 16, 12, 12), 2, 3)


# --- text ---------------------------------------------------------------------------------------------------


def classifiers() -> Found:
    """Embedding, head and cross entropy, with repeated words and uneven classes."""
    for name, s in _each(words=(16, 256), width=(32, 128), classes=(10, 100, 1000), logit=(0.3, 1.0, 2.0)):
        generator = torch.Generator().manual_seed(7)
        ids = torch.randint(0, s["words"], (4, 24), generator=generator)
        classes = torch.randint(0, s["classes"], (4, 24), generator=generator)
        yield name, partial(Classifier, s["words"], s["width"], s["classes"], s["logit"]), (ids, classes)


def attentions() -> Found:
    """Softmax attention; queries, keys and values of one x whose tokens are alike."""
    sizes = (16, 32, 64, 128)
    grid = [
        *product(("plain", "causal"), (8, 32, 128), (0.2, 1.0, 2.5, 6.0), SHARES),
        *product(("grouped", "padded"), (8, 64), (0.2, 1.0, 2.5, 6.0), (0.0, 0.7)),
        *product(("plain", "causal"), (512,), (0.2, 1.0, 2.5, 6.0), (0.5,)),
    ]
    for k, (kind, length, score, share) in enumerate(grid):
        size = sizes[(k + k // 4) % 4]
        heads = 4 if size <= 32 or kind == "grouped" else 2
        name = f"{kind}, length {length}, score {score}, share {share}, heads {heads}x{size}"
        layer = partial(Attention, heads, size, score, kind)
        samples = 4 if length <= 64 else 2 if length <= 128 else 1
        yield name, chain(share, layer), mixed((samples, length, heads * size), 1)


# --- blocks -------------------------------------------------------------------------------------------------


def feed_forwards() -> Found:
    """A feed-forward block with its residual, pre-norm or post-norm."""
    for name, s in _each(
        activation=("relu", "gelu", "swiglu"), width=(64, 256), norm=("pre", "post"), share=SHARES
    ):
        block = partial(_block, s["width"], s["norm"], partial(_inner, s["activation"], s["width"]))
        yield name, chain(s["share"], block), mixed((4, 16, s["width"]), 1)


def attention_blocks() -> Found:
    """An attention block with its residual, pre-norm or post-norm."""
    for name, s in _each(
        kind=("plain", "causal"),
        length=(16, 64),
        score=(0.2, 1.0, 3.0),
        norm=("pre", "post"),
        share=(0.0, 0.7),
    ):
        inner = partial(_attending, s["kind"], s["score"])
        yield name, chain(s["share"], partial(_block, 128, s["norm"], inner)), mixed((4, s["length"], 128), 1)


def _inner(activation: str, width: int) -> list[nn.Module]:
    hidden = 4 * width
    if activation == "swiglu":
        return [Gated(width, hidden), linear(hidden, width)]
    return [linear(width, hidden), Apply(ACTIVATIONS[activation]), linear(hidden, width)]


def _attending(kind: str, score: float) -> list[nn.Module]:
    return [Attention(4, 32, score, kind), linear(128, 128)]


def _block(width: int, norm: str, inner: Callable[[], list[nn.Module]]) -> nn.Module:
    if norm == "pre":
        return Residual(nn.LayerNorm(width), *inner())
    return Residual(*inner(), norm=nn.LayerNorm(width))


FAMILIES: dict[str, Callable[[], Found]] = {
    "activation": activations,
    "layer norm": layer_norms,
    "RMS norm": rms_norms,
    "batch norm": batch_norms,
    "group norm": group_norms,
    "attention": attentions,
    "convolution": convolutions,
    "pooling": poolings,
    "cross entropy": classifiers,
    "dropout": dropouts,
    "residual": residuals,
    "parts": parts,
    "feed-forward block": feed_forwards,
    "attention block": attention_blocks,
}


def points(family: str) -> list[Point]:
    """Return a family's points."""
    return [Point(family, *found) for found in FAMILIES[family]()]
