"""Whether a law can be drawn in a shape, told without drawing it."""

from __future__ import annotations

import math
from functools import singledispatch

from isometry.errors import InvalidValueError
from isometry.init.mirrored import Flattened, Mirrored, Rotation
from isometry.init.structured import (
    ICNR,
    Chrono,
    DeltaOrthogonal,
    Gates,
    Identity,
    Orthogonal,
    Sparse,
    gate_size,
)
from isometry.layout import Layout, grouped
from isometry.plans.scales import Scaled
from isometry.sampling import Distribution, Elementwise


@singledispatch
def fits(law: Distribution, shape: tuple[int, ...]) -> bool:
    """Check a law against the shape it should be drawn in.

    Args:
        law: The law.
        shape: The shape.

    Returns:
        True if it can be drawn, False if only drawing tells: a joint law of one's own without a method
        `check(shape)` that raises.

    Raises:
        InvalidValueError: It cannot be drawn.
    """
    if isinstance(law, Elementwise):
        return True
    own = getattr(law, "check", None)
    if own is None:
        return False
    own(shape)
    return True


@fits.register
def _(law: Orthogonal, shape: tuple[int, ...]) -> bool:
    _check_layout(law.layout, shape)
    return True


@fits.register(DeltaOrthogonal)
@fits.register(Identity)
def _(law: DeltaOrthogonal | Identity, shape: tuple[int, ...]) -> bool:
    _check_tap(law.tap, _check_layout(law.layout, shape))
    return True


@fits.register
def _(law: Sparse, shape: tuple[int, ...]) -> bool:
    if len(shape) != 2:
        raise InvalidValueError(f"a sparse initialisation needs a matrix (out, in), got shape {shape}")
    return True


@fits.register
def _(law: Gates, shape: tuple[int, ...]) -> bool:
    gate_size(shape, len(law.values))
    return True


@fits.register
def _(law: Chrono, shape: tuple[int, ...]) -> bool:
    gate_size(shape, 4)
    return True


@fits.register
def _(law: ICNR, shape: tuple[int, ...]) -> bool:
    if not shape or law.copies < 1 or shape[0] % law.copies:
        raise InvalidValueError(f"shape {shape} has no multiple of {law.copies} output channels")
    return fits(law.base, (shape[0] // law.copies, *shape[1:]))


@fits.register
def _(law: Scaled, shape: tuple[int, ...]) -> bool:
    return fits(law.law, shape)


@fits.register
def _(law: Mirrored, shape: tuple[int, ...]) -> bool:
    _check_layout(law.layout, shape)
    rows, cols, _, _ = law.sides(shape)
    if law.source is None or law.target is None:
        return True
    _check_basis(law.target)
    _check_basis(law.source)
    if (law.target.rows, _rows(law.source)) != (rows, cols):
        raise InvalidValueError(
            f"the rotations of a mirrored weight have {law.target.rows} and {_rows(law.source)} coordinates, "
            f"but W is {rows}×{cols}"
        )
    shared = min(rows, cols)
    if min(shared, law.target.cols) != min(shared, law.source.cols):
        raise InvalidValueError(
            f"the rotations of a mirrored weight have {law.target.cols} and {law.source.cols} directions, "
            f"{shared} are needed of both"
        )
    return True


def _rows(basis: Rotation | Flattened) -> int:
    return basis.rows if isinstance(basis, Rotation) else basis.channels.rows * basis.positions


def _check_basis(basis: Rotation | Flattened) -> None:
    if isinstance(basis, Flattened):
        _check_basis(basis.channels)
        if not 0 < basis.live <= basis.channels.cols:
            raise InvalidValueError(f"{basis.live} of {basis.channels.cols} directions cannot be live")
    if not 0 < basis.cols <= _rows(basis):
        raise InvalidValueError(f"{_rows(basis)} coordinates cannot have {basis.cols} directions")


def _check_layout(layout: Layout | None, shape: tuple[int, ...]) -> Layout:
    if layout is None:
        return grouped(shape)
    axes = sorted((*layout.batch, *layout.out, *layout.inp, *layout.taps))
    if math.prod(layout.shape) != math.prod(shape) or axes != list(range(len(layout.shape))):
        raise InvalidValueError(f"the layout {layout} does not fit the shape {shape}")
    return layout


def _check_tap(tap: tuple[int, ...] | None, layout: Layout) -> None:
    taps = layout.taps_shape
    if tap is not None and (
        len(tap) != len(taps) or any(not 0 <= at < side for at, side in zip(tap, taps, strict=True))
    ):
        raise InvalidValueError(f"tap {tap} lies outside the receptive field {taps}")
