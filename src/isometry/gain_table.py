"""What is known about activations, as a table: a row per quantity, a column per activation."""

from collections.abc import Callable, Sequence

from isometry.gain import Description
from isometry.tables import Table, compact

_Read = Callable[[Description], float | None]

_ROWS: tuple[tuple[str, _Read], ...] = (
    ("forward gain", lambda d: d.forward),
    ("backward gain", lambda d: d.backward),
    ("balanced gain", lambda d: d.balanced),
    ("torch's gain", lambda d: d.torch),
    ("torch / forward", lambda d: d.torch_ratio),
    ("mirrored slope", lambda d: d.mirrored_slope),
    ("E[φ]", lambda d: d.moments.mean),
    ("E[φ²]", lambda d: d.moments.second_moment),
    ("Var[φ]", lambda d: d.moments.variance),
    ("kurtosis of φ", lambda d: d.moments.kurtosis),
    ("E[φ′]", lambda d: d.moments.slope_mean),
    ("E[φ′²]", lambda d: d.moments.slope_second_moment),
    *((f"Hermite coefficient {order}", lambda d, order=order: d.hermite[order]) for order in range(5)),
    ("χ₁ at forward gain", lambda d: d.chi),
    ("cosine 0 becomes", lambda d: d.merging[0] if d.merging else None),
    ("cosine ½ becomes", lambda d: d.merging[1] if d.merging else None),
    ("deep E[x²]", lambda d: d.settled.length if d.settled else None),
    ("deep cosine", lambda d: d.settled.correlation if d.settled else None),
    ("critical σ_w", lambda d: d.critical.weight_std if d.critical else None),
)


def gain_table(descriptions: Sequence[Description]) -> Table:
    """Lay descriptions of activations side by side.

    Quantities that none of them has are left out; the notes stand below, each with its activation.

    Args:
        descriptions: from `isometry.gain.describe`, at least one.

    Returns:
        The table.

    Example:
        >>> from isometry.gain import describe
        >>> print(gain_table([describe("relu"), describe("tanh")]))
        For z ~ N(0, 1)
        ...
        forward gain             1.41421   1.59254
        backward gain            1.41421   1.46741
        ...
    """
    first = descriptions[0]
    rows = [
        [label, *(_cell(read(one)) for one in descriptions)]
        for label, read in _ROWS
        if any(read(one) is not None for one in descriptions)
    ]
    names = [one.name + (" (gated)" if one.gated else "") for one in descriptions]
    variance = first.input_std**2
    return Table(
        ["", *names],
        rows,
        title=f"For z ~ N({first.input_mean:g}, {variance:g})",
        footer=[f"{one.name}: {note}" for one in descriptions for note in one.notes],
    )


def _cell(value: float | None) -> str:
    # What symmetry makes zero comes out of the quadrature as a few 1e-17.
    return compact(0.0 if value is not None and abs(value) < 1e-12 else value, digits=6)
