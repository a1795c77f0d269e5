"""Real data small enough to train on in seconds, and shipped with packages you already have.

`digits` are scikit-learn's 1,797 handwritten digits (8×8 grey levels; on request interpolated to
32×32 = 1,024 inputs). `characters` is a corpus for next-character prediction made from the
source files of the Python standard library itself.

Shape legend: n samples, d inputs, t characters in a block.
"""

import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from isometry.errors import InvalidTypeError, InvalidValueError, MissingExtraError, NotFoundError

# Single-file modules that Python 3.11 to 3.14 all ship; in this order they form the text.
CORPUS_MODULES = (
    "argparse", "ast", "calendar", "configparser", "csv", "dataclasses", "difflib", "doctest", "enum",
    "functools", "heapq", "inspect", "locale", "optparse", "pickle", "random", "shutil", "statistics",
    "subprocess", "tarfile", "textwrap", "threading", "tokenize", "traceback", "typing", "uuid",
)  # fmt: skip

# A fixed vocabulary: the shape of a model does not depend on the Python version, only the text does.
# The last entry stands for every other character.
VOCABULARY = "\n" + "".join(chr(code) for code in range(32, 127)) + "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Data:
    """Training and test samples of one task, with a reproducible stream of batches.

    Integer targets are class indices (cross-entropy, accuracy); floating-point targets are values
    (mean squared error). Targets have the shape of the model's output without its class axis.

    Args:
        name: what the data are called in tables and plots.
        train_inputs: `[n, ...]`.
        train_targets: `[n, ...]`, as many samples as `train_inputs`.
        test_inputs: `[m, ...]`.
        test_targets: `[m, ...]`.

    Raises:
        InvalidTypeError: something is not a tensor.
        InvalidValueError: inputs and targets differ in number, or a part is empty.

    Example:
        >>> x, y = torch.arange(6.0).reshape(6, 1), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> data = Data(name="toy", train_inputs=x, train_targets=y, test_inputs=x, test_targets=y)
        >>> data.classes
        3
        >>> [len(targets) for _, (_, targets) in zip(range(3), data.batches(4, seed=0))]
        [4, 4, 4]
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            inputs, targets = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_targets")
            for what, value in (("inputs", inputs), ("targets", targets)):
                if not isinstance(value, Tensor):
                    raise InvalidTypeError(f"{part}_{what} must be a tensor, got {type(value).__name__}")
            if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets) or len(inputs) == 0:
                raise InvalidValueError(
                    f"the {part} part needs as many targets as inputs, and at least one: "
                    f"got inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}"
                )

    @property
    def classes(self) -> int | None:
        """Number of classes, or None where the targets are values rather than classes."""
        if self.train_targets.is_floating_point():
            return None
        return int(max(self.train_targets.max(), self.test_targets.max())) + 1

    def batches(self, batch_size: int, *, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield training batches without end, in an order that depends on `seed` alone.

        Every pass over the data has a fresh order; what does not fill a batch at its end is left out,
        so that all batches have the same size. Torch's global random state is neither read nor changed.

        Args:
            batch_size: samples per batch, at most the number of training samples.
            seed: of the orders.

        Yields:
            `(inputs, targets)`, `batch_size` samples each.

        Raises:
            InvalidValueError: `batch_size` is not an integer from 1 to the number of samples.

        Example:
            >>> inputs, targets = next(digits().batches(32))
            >>> inputs.shape, targets.shape
            (torch.Size([32, 64]), torch.Size([32]))
        """
        count = len(self.train_inputs)
        if not isinstance(batch_size, int) or not 1 <= batch_size <= count:
            raise InvalidValueError(
                f"batch_size must be an integer from 1 to {count} (the training samples), got {batch_size!r}"
            )
        return self._stream(batch_size, torch.Generator().manual_seed(seed))

    def _stream(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.train_inputs)
        while True:
            order = torch.randperm(count, generator=generator)
            for start in range(0, count - batch_size + 1, batch_size):
                rows = order[start : start + batch_size]
                yield self.train_inputs[rows], self.train_targets[rows]


def digits(*, size: Literal[8, 32] = 8, flat: bool = True, test: int = 360, seed: int = 0) -> Data:
    """Scikit-learn's handwritten digits, standardised, with a fixed split into training and test.

    The mean image of the training part is subtracted, and one standard deviation over all its pixels
    divides the rest: `x ← (x − mean image) / std`. So the training part has mean 0 in every pixel and
    E[x²] = 1 over all, what a gain assumes of its input, and two images are uncorrelated on average.
    (A pixel that is always black stays 0; scaling each by its own deviation would blow up the rare ones.)

    Args:
        size: 8 for the images as they are (64 inputs), 32 for their bilinear interpolation to
            32×32 (1,024 inputs).
        flat: `[n, size²]` for dense layers, or `[n, 1, size, size]` for convolutions.
        test: how many of the 1,797 images are set aside for the test.
        seed: of the split.

    Returns:
        float32 images and int64 classes 0 to 9.

    Raises:
        InvalidValueError: a size other than 8 or 32, or a test part that leaves nothing to train on.
        MissingExtraError: scikit-learn is not installed.

    Example:
        >>> data = digits(size=32)
        >>> data.train_inputs.shape, data.test_inputs.shape, data.classes
        (torch.Size([1437, 1024]), torch.Size([360, 1024]), 10)
        >>> f"{data.train_inputs.pow(2).mean():.4f}"
        '1.0000'

    Reference: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI
        Machine Learning Repository; scikit-learn ships its test part.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "data") from error
    if size not in (8, 32):
        raise InvalidValueError(f"size must be 8 or 32 pixels, got {size!r}")
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8)
    if not 1 <= test < len(images):
        raise InvalidValueError(f"test must be from 1 to {len(images) - 1} images, got {test!r}")
    if size == 32:
        images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[:test], order[test:]
    images = images - images[kept].mean(0)
    images = images / images[kept].pow(2).mean().sqrt()
    if flat:
        images = images.flatten(1)
    classes = torch.from_numpy(labels).long()
    return Data(
        name="digits" if size == 8 else "digits32",
        train_inputs=images[kept],
        train_targets=classes[kept],
        test_inputs=images[held_out],
        test_targets=classes[held_out],
    )


def characters(*, block: int = 64, modules: tuple[str, ...] = CORPUS_MODULES) -> Data:
    """Next-character prediction on the source text of the Python standard library.

    The text is cut into consecutive blocks; the target of a character is the one after it. Every
    tenth block is for the test. The vocabulary is fixed (`VOCABULARY`, 97 characters), the text is
    that of the running Python: the same on every machine with the same Python version, and slightly
    different from one version to the next.

    Args:
        block: characters per sample, t.
        modules: which standard-library modules make up the text, in this order.

    Returns:
        int64 inputs `[n, t]` and targets `[n, t]` with values below 97.

    Raises:
        InvalidValueError: a block without characters, or longer than a tenth of the text.
        NotFoundError: this Python comes without the source of a module.

    Example:
        >>> data = characters(block=32, modules=("heapq",))
        >>> data.train_inputs.shape[1], data.classes is not None
        (32, True)
        >>> bool((data.train_inputs[0, 1:] == data.train_targets[0, :-1]).all())
        True
    """
    text = "".join(_source(name) for name in modules)
    codes = encode(text)
    if not isinstance(block, int) or not 1 <= block <= (len(codes) - 1) // 10:
        raise InvalidValueError(
            f"block must be an integer from 1 to {(len(codes) - 1) // 10} for a text of {len(codes)} "
            f"characters, got {block!r}"
        )
    count = (len(codes) - 1) // block
    inputs = codes[: count * block].reshape(count, block)
    targets = codes[1 : count * block + 1].reshape(count, block)
    held_out = torch.arange(count) % 10 == 9
    return Data(
        name="characters",
        train_inputs=inputs[~held_out],
        train_targets=targets[~held_out],
        test_inputs=inputs[held_out],
        test_targets=targets[held_out],
    )


def encode(text: str) -> Tensor:
    r"""Turn text into indices of `VOCABULARY`; characters it lacks become its last entry.

    Args:
        text: any text.

    Returns:
        int64 indices, one per character.

    Example:
        >>> encode("a\nb").tolist()
        [66, 0, 67]
    """
    index = {character: position for position, character in enumerate(VOCABULARY)}
    return torch.tensor([index.get(character, len(VOCABULARY) - 1) for character in text], dtype=torch.int64)


def _source(module: str) -> str:
    path = Path(sysconfig.get_path("stdlib")) / f"{module}.py"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise NotFoundError(
            f"the corpus needs the source of the standard-library module {module!r}, and {path} cannot be "
            f"read; install Python with its sources, or choose other modules"
        ) from error


DATASETS: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "digits32": lambda: digits(size=32),
    "characters": characters,
}


def load(name: str) -> Data:
    """Load a data set by its name: "digits", "digits32" or "characters".

    Args:
        name: one of `DATASETS`.

    Returns:
        The data with their default options.

    Raises:
        NotFoundError: no data set has this name.

    Example:
        >>> load("digits").train_inputs.shape
        torch.Size([1437, 64])
    """
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise NotFoundError(f"no data set is called {name!r}{hint} (known: {', '.join(DATASETS)})")
    return DATASETS[name]()
