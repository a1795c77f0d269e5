"""The demonstration: deep plain networks on handwritten digits, from good and bad starts.

"Plain" means linear layers and activations, nothing else: no normalisation and no skip connection
repairs what the initial weights do.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn

from isometry.compare import Progress, compare
from isometry.compare.comparison import Comparison
from isometry.compare.contenders import Start
from isometry.errors import InvalidValueError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}

INITS = ("standard_normal", "torch", "wrong_gain", "kaiming", "xavier", "orthogonal", "mirrored")
# Every start keeps the one that serves it best: what follows is not a matter of the learning rate.
RATES = (0.003, 0.01, 0.03)


def plain(
    *, depth: int = 30, width: int = 128, inputs: int = 64, classes: int = 10, activation: str = "relu"
) -> nn.Sequential:
    """Build a plain network: `depth` linear layers with an activation between each two.

    Args:
        depth: linear layers, the output's included.
        width: units of every hidden layer.
        inputs: numbers per sample.
        classes: scores at the output.
        activation: "relu", "tanh" or "gelu".

    Returns:
        The model with torch's default weights, on `[n, inputs]` and returning `[n, classes]`.

    Raises:
        InvalidValueError: a depth below 2 or an unknown activation.

    Example:
        >>> model = plain(depth=3, width=16, activation="gelu")
        >>> [tuple(module.weight.shape) for module in model if isinstance(module, nn.Linear)]
        [(16, 64), (16, 16), (10, 16)]
    """
    if depth < 2:
        raise InvalidValueError(f"depth must be 2 or more linear layers, got {depth}")
    if activation not in ACTIVATIONS:
        raise InvalidValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    sizes = [inputs, *[width] * (depth - 1), classes]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def run(
    *,
    activations: Sequence[str] = tuple(ACTIVATIONS),
    data: str = "digits",
    inits: Sequence[Start] = INITS,
    lr: float | Sequence[float] = RATES,
    arguments: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Iterator[tuple[str, Comparison]]:
    """Compare starts on plain networks, one comparison per activation, each as soon as it is finished.

    Args:
        activations: of "relu", "tanh", "gelu".
        data: as in `isometry.compare`.
        inits: as in `isometry.compare`.
        lr: as in `isometry.compare`.
        arguments: of `plain`, such as `{"depth": 60}`; the depth is 30 otherwise.
        progress: as in `isometry.compare`, counted over all activations.
        **options: every other option of `isometry.compare`.

    Yields:
        The activation and its comparison.

    Example:
        >>> [(name, found)] = run(activations=["gelu"], arguments={"depth": 10, "width": 32}, steps=20)
        >>> name, found.title, len(found)
        ('gelu', '10 plain gelu layers', 7)
    """
    arguments = {"depth": 30, **(arguments or {})}
    for done, activation in enumerate(activations):

        def report(start: str, now: int, total: int, done: int = done, activation: str = activation) -> None:
            if progress is not None:
                progress(f"{activation} {start}", done * total + now, len(activations) * total)

        yield (
            activation,
            compare(
                partial(plain, activation=activation, **arguments),
                data,
                inits=inits,
                lr=lr,
                title=f"{arguments['depth']} plain {activation} layers",
                progress=report,
                **options,
            ),
        )
