"""What may stand in the place of a latent in a `Part`: the marks that need no other piece of a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from isometry.moments.axes import Array


class Gram(NamedTuple):
    """The inner products x_k·x_k′ of one tensor's rows.

    They lie off their mean by a variance `fluctuation` (a share of |x|⁴). Rows that are images of x under
    different random matrices share these inner products. `origin` is the latent of x, `features` label the
    axes summed over. A `Part` with a Gram in the place of a latent tells how large the image is, E[y²]^½ by
    block, in `values[..., 0]`.
    """

    origin: object
    features: tuple[object, ...]
    fluctuation: float


class Fan(NamedTuple):
    """Marks a `Part` of a sum Σ w x whose independent weights w every channel has for itself.

    `weights` is their effective number, `directions` that of the directions of x: the mean square of a
    channel scatters between channels by 2/`directions`. `shared` is the number of directions of all channels
    together, more where groups of channels read different x; `tail` is the relative variance, from entry to
    entry, of the mean square over all channels, which is a mean over `reach` neighbours along each axis of
    space. `normed` entries of each channel have since been divided by their size, if not 0. `light` is by how
    much the weights' kurtosis is below that of normal ones, 3. For given weights and n entries the relative
    variance of a channel's mean square is 2/n and `extra`/n more. See `fan`.
    """

    weights: float
    directions: float
    shared: float
    tail: float
    normed: int = 0
    reach: float = 1.0
    light: float = 0.0
    extra: float = 0.0


class Keys(NamedTuple):
    """Marks a `Part` that tells how many keys a softmax's row sees, as Σu² of the row's mask.

    It stands in `values[..., 0]`.

    `mask` is what was added to the scores; where it is huge and negative the tensor is zero.
    """

    mask: object


class Normed(NamedTuple):
    """Marks a `Part` of a gradient that was divided by the sizes of sums with a `Fan` of so many weights.

    `share` is the part of what it was divided by that is theirs, in the square; the rest is a norm's ε.
    `light` is as for `Fan`. `latent` is that of the sums. By `rise` slopes of the sums had made its square
    grow with theirs; see `steep`.
    """

    weights: float
    share: float
    latent: object
    rise: float = 0.0
    light: float = 0.0


class Steep(NamedTuple):
    """Marks a `Part` of a gradient whose square grows with the mean square over the channels of its place.

    By `rise`, the derivative of the one's logarithm by the other's; see `steep`.
    """

    rise: float


class Shortened(NamedTuple):
    """Marks a `Part` of a gradient at rows by whose lengths it was divided.

    The mean squares of these rows have the relative variance `excess` by what they are images of.
    """

    excess: float


class Leaning(NamedTuple):
    """Marks a `Part` of the gradient at scores q·k of a softmax, with labels along keys (0) and queries (1).

    (Σ_k s dS)² is `rows` times that of a gradient that does not depend on the scores, and a row's dS² rises
    with the row's variance by `rise`, the derivative of the one's logarithm by the other's.
    """

    rows: float
    rise: float


class Along(NamedTuple):
    """Marks a `Part` of a gradient that lost a share of what it had along a tensor, over so many `entries`.

    `latent` is that of the tensor, which is a contraction.
    """

    latent: object
    share: float
    entries: int


class Tilted(NamedTuple):
    """Marks a `Part` of a softmax's gradient g at logits l that one matrix made from rows, along the logits.

    (Σ l g)² is `own` times what it is for independent ones. For two rows that are equal it is larger, by
    `pairs` times what the square of one is for independent ones.
    """

    own: float
    pairs: float


class Apart(NamedTuple):
    """Marks a `Part` of a gradient that is orthogonal to sums, along what a norm is taken over.

    `shares` tell, by variable, which share of the gradient's component along it is gone; see `apart`.
    """

    shares: tuple[tuple[object, float], ...]


class Length(NamedTuple):
    """Marks a `Part` of a tensor whose rows' mean squares vary by more, or less, than its table tells.

    By this relative variance; see `lengths`.
    """

    excess: float


class Uneven(NamedTuple):
    """Marks a `Part` of rows whose inner products differ from pair to pair; see `uneven`.

    `excess` is their mean square.
    """

    excess: float


@dataclass(frozen=True, eq=False)
class Repeated:
    """Marks a `Part` of rows that agree where the `ids` do, along axes whose labels count those of the ids.

    `share` is that of pairs of equal ids by pair class. `ratio` tells (S − D)/S; see `repeats`.
    """

    ids: bytes
    shape: tuple[int, ...]
    share: Array
    ratio: Array | None = None
