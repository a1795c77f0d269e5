"""How a parameter's axes make up a batch of linear maps.

Shape legend: B blocks (gates, groups, projections, experts), O outputs and I inputs of one block,
K taps of the receptive field (the product of the kernel's sides).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from isometry.errors import InvalidTypeError, InvalidValueError

Axis = int | Sequence[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """A parameter seen as B independent kernels of shape (O, I, *taps).

    The parameter is first reshaped to `shape` (this splits fused axes: gates, groups, projections), and every
    axis of that shape is then one of four things.

    Attributes:
        shape: The split shape; its product is the parameter's number of elements.
        batch: Axes that number independent blocks.
        out: Axes that number outputs.
        inp: Axes that number inputs.
        taps: Axes of the receptive field.

    Example:
        >>> lstm = Layout(shape=(4, 3, 5), batch=(0,), out=(1,), inp=(2,))  # weight_ih of LSTM(5, 3)
        >>> lstm.blocks, lstm.outputs, lstm.inputs
        (4, 3, 5)
        >>> import torch
        >>> lstm.kernels(torch.zeros(12, 5)).shape
        torch.Size([4, 3, 5])
    """

    shape: tuple[int, ...]
    batch: tuple[int, ...] = ()
    out: tuple[int, ...] = (0,)
    inp: tuple[int, ...] = (1,)
    taps: tuple[int, ...] = ()

    @property
    def blocks(self) -> int:
        """B: the number of independent kernels."""
        return self._count(self.batch)

    @property
    def outputs(self) -> int:
        """O: the outputs of one block."""
        return self._count(self.out)

    @property
    def inputs(self) -> int:
        """I: the inputs of one block, without the receptive field."""
        return self._count(self.inp)

    @property
    def taps_shape(self) -> tuple[int, ...]:
        """The sides of the receptive field, () where there is none."""
        return tuple(self.shape[axis] for axis in self.taps)

    @property
    def kernels_shape(self) -> tuple[int, ...]:
        """(B, O, I, *taps): what `kernels` returns."""
        return (self.blocks, self.outputs, self.inputs, *self.taps_shape)

    def kernels(self, tensor: Tensor) -> Tensor:
        """The parameter's values as (B, O, I, *taps)."""
        return tensor.reshape(self.shape).permute(self._order()).reshape(self.kernels_shape)

    def restore(self, kernels: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `kernels`: values (B, O, I, *taps) as a parameter of the given shape."""
        order = self._order()
        permuted = kernels.reshape([self.shape[axis] for axis in order])
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return permuted.permute(inverse).reshape(tuple(shape))

    def _order(self) -> tuple[int, ...]:
        return (*self.batch, *self.out, *self.inp, *self.taps)

    def _count(self, axes: tuple[int, ...]) -> int:
        return math.prod(self.shape[axis] for axis in axes)


def layout_of_axes(
    shape: Sequence[int],
    *,
    in_axis: Axis = 1,
    out_axis: Axis = 0,
    batch_axis: Axis = (),
    what: str = "the tensor",
) -> Layout:
    """The layout of a tensor whose input, output and batch axes are named; the other axes are taps.

    Args:
        shape: The tensor's shape, at least two axes.
        in_axis: Axis or axes that number inputs.
        out_axis: Axis or axes that number outputs.
        batch_axis: Axis or axes that number independent maps (experts, heads).
        what: How error messages call the tensor.

    Returns:
        The layout; negative axes are resolved.

    Raises:
        InvalidValueError: Too few axes, an axis outside the shape, or one axis in two roles.

    Example:
        >>> experts = layout_of_axes((8, 512, 256), in_axis=1, out_axis=2, batch_axis=0)
        >>> experts.blocks, experts.outputs, experts.inputs
        (8, 256, 512)
    """
    sizes = tuple(int(side) for side in shape)
    if len(sizes) < 2:
        raise InvalidValueError(
            f"the fans of {what} need an input and an output axis, but its shape is {sizes}: "
            "give it two axes or more, or initialise it with a constant or a plain normal"
        )
    inp = _axes(in_axis, sizes, "in_axis", what)
    out = _axes(out_axis, sizes, "out_axis", what)
    batch = _axes(batch_axis, sizes, "batch_axis", what)
    used = (*batch, *out, *inp)
    if len(set(used)) != len(used):
        raise InvalidValueError(
            f"in_axis={in_axis}, out_axis={out_axis} and batch_axis={batch_axis} of {what} overlap: "
            f"each axis of shape {sizes} has one role"
        )
    taps = tuple(axis for axis in range(len(sizes)) if axis not in used)
    return Layout(sizes, batch=batch, out=out, inp=inp, taps=taps)


def grouped(shape: Sequence[int], groups: int = 1, *, what: str = "the tensor") -> Layout:
    """The layout of a convolution kernel (C_out, C_in/groups, *taps) or a matrix (out, in).

    Args:
        shape: The tensor's shape, at least two axes.
        groups: In how many independent blocks the first axis falls.
        what: How error messages call the tensor.

    Returns:
        The layout with `groups` blocks.

    Raises:
        InvalidTypeError: `groups` is no int.
        InvalidValueError: `groups` does not divide the first axis, or too few axes.

    Example:
        >>> grouped((6, 2, 3, 3), groups=3).kernels_shape
        (3, 2, 2, 3, 3)
    """
    plain = layout_of_axes(shape, what=what)
    first, *rest = plain.shape
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise InvalidTypeError(f"groups must be an int, got {groups!r}")
    if groups < 1 or first % groups:
        raise InvalidValueError(
            f"groups={groups} must divide the first axis of {what}, whose shape is {plain.shape}"
        )
    if groups == 1:
        return plain
    split = (groups, first // groups, *rest)
    return Layout(split, batch=(0,), out=(1,), inp=(2,), taps=tuple(range(3, len(split))))


def _axes(axis: Axis, shape: tuple[int, ...], argument: str, what: str) -> tuple[int, ...]:
    axes = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    for one in axes:
        if isinstance(one, bool) or not isinstance(one, int):
            raise InvalidTypeError(f"{argument} of {what} must be an int or a sequence of ints, got {axis!r}")
        if not -len(shape) <= one < len(shape):
            raise InvalidValueError(f"{argument}={one} is outside the shape {shape} of {what}")
    return tuple(one % len(shape) for one in axes)
