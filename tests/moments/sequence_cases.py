"""Simulation cases of look-ups, scatters, orders, recurrences, spectra and losses."""

from __future__ import annotations

from itertools import pairwise

import torch
from simulation import Case, Input
from torch import Tensor, nn
from torch.nn import functional as F

_X = Input((6, 40), mean=0.5, shared=0.4)
_ROWS = torch.tensor([4, 0, 4, 1, 5, 5, 5])
_PLACES = torch.randint(0, 40, (6, 17), generator=torch.Generator().manual_seed(2))
_EACH = torch.arange(6)
_MASK = torch.rand(6, 40, generator=torch.Generator().manual_seed(3)) < 0.3
_GROUPS = (torch.arange(40) // 10 - torch.arange(6)[:, None]) % 4 < 2  # each row is left two of four groups
_COLUMNS = torch.tensor([3, 17, 30])

INDEX = (
    Case("rows by index", lambda x, i: x[i], (_X,), (_ROWS,)),
    Case("columns by index", lambda x, i: torch.index_select(x, 1, i), (_X,), (_ROWS,)),
    Case("grid of indices", lambda x, i: x[i.view(1, 7).expand(3, 7)], (_X,), (_ROWS,)),
    Case(
        "last of each",
        lambda x, i, j: x[i, j],
        (Input((6, 9, 20), mean=0.5, shared=0.4),),
        (_EACH, _EACH + 2),
    ),
    Case("every other dim", lambda x, i: x[i, :, i + 1], (Input((6, 9, 20), shared=0.4),), (_EACH,)),
    Case("rows by mask", lambda x, m: x[m], (_X,), (torch.tensor([True, False, True, True, False, True]),)),
    Case("entries by mask", lambda x, m: x[m], (_X,), (_MASK,)),
    Case("masked_select", lambda x, m: torch.masked_select(x, m), (_X,), (_MASK,)),
    Case("gather", lambda x, i: torch.gather(x, 1, i), (_X,), (_PLACES,)),
    Case(
        "gather repeated",
        lambda x, i: torch.gather(x, 1, i.view(1, 5, 1).expand(6, 5, 20)),
        (Input((6, 9, 20), mean=0.5, shared=0.4),),
        (torch.tensor([3, 1, 1, 8, 2]),),
    ),
    Case(
        "permuted twice",
        lambda x, i: x[:, i] * torch.sigmoid(x)[:, i],
        (_X,),
        (torch.randperm(40, generator=torch.Generator().manual_seed(1)),),
    ),
    Case(
        "index of blocks",
        lambda x, y, i: torch.cat([x, 3 * y], 1)[:, i],
        (_X, Input((6, 10))),
        (torch.arange(35, 45),),
    ),
    Case(
        "uneven products in another order",
        lambda x, y, z, i: (torch.cat([5 * x, z], 1) * torch.cat([5 * y, z], 1))[:, i] * torch.cat([z, y], 1),
        (Input((6, 4)), Input((6, 4)), Input((6, 36))),
        (torch.randperm(40, generator=torch.Generator().manual_seed(1)),),
        draws=2000,
    ),
)

SCATTER = (
    Case(
        "index_add",
        lambda x, y, i: x.index_add(0, i, y),
        (_X, Input((7, 40), mean=0.5, shared=0.4)),
        (_ROWS,),
    ),
    Case(
        "index_put",
        lambda x, y, i: x.index_put((i,), y),
        (_X, Input((3, 40), mean=1.0)),
        (torch.tensor([1, 4, 2]),),
    ),
    Case(
        "index_put of columns",
        lambda x, y, i: torch.index_put(x, (torch.arange(6, device=x.device).view(6, 1), i.view(1, 3)), y),
        (_X, Input((6, 3), mean=1.0)),
        (_COLUMNS,),
        unread=frozenset(["output 0 pairs"]),
    ),
    Case("overwritten by a number", lambda x: x + x.detach().clone().fill_(2.0), (_X,)),
    Case("index_copy", lambda x, y, i: x.index_copy(1, i, y), (_X, Input((6, 3), mean=1.0)), (_COLUMNS,)),
    Case("index_fill", lambda x, i: x.index_fill(1, i, 2.0), (_X,), (_COLUMNS,)),
    Case("scatter_add", lambda x, y, i: x.scatter_add(1, i, y), (_X, Input((6, 17), shared=0.4)), (_PLACES,)),
    Case(
        "scatter",
        lambda y, i: torch.zeros(6, 40, dtype=y.dtype, device=y.device).scatter(
            1, i.view(1, 3).expand(6, 3), y
        ),
        (Input((6, 3), shared=0.4),),
        (_COLUMNS,),
    ),
    Case(
        "scatter_reduce",
        lambda x, y, i: x.scatter_reduce(1, i, y, "sum"),
        (_X, Input((6, 17), shared=0.4)),
        (_PLACES,),
    ),
    Case(
        "scattered mean without the base",
        lambda x, y, i: x.scatter_reduce(1, i, y, "mean", include_self=False),
        (_X, Input((6, 17), shared=0.4)),
        (_PLACES,),
        unread=frozenset({"gradient 0 square"}),  # counts and what is hit are taken as independent
    ),
    *(
        Case(
            f"scattered {kind}, base {own}",
            lambda x, y, i, kind=kind, own=own: x.scatter_reduce(
                0, i[:, None].expand(17, 40), y, kind, include_self=own
            ),
            (_X, Input((17, 40), std=0.7)),
            (torch.arange(17) % 4,),
            draws=600,
            tolerance=0.03,
            unread=frozenset(
                {"gradient 1 pairs"} if own else {"gradient 0 square", "gradient 1 pairs"}
            ),  # marks and masks are taken as independent
        )
        for kind, own in (("amax", True), ("amin", False))
    ),
    Case(
        "packed steps",
        lambda x: nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True).data[1:],
        (Input((3, 5, 8), shared=0.4),),
        draws=1000,
    ),
    Case(
        "masked_scatter",
        lambda x, y, m: x.masked_scatter(m.view(6, 1).expand(6, 40), y),
        (_X, Input((3, 40), mean=1.0)),
        (torch.tensor([True, False, False, True, False, True]),),
    ),
    Case(
        "permuted back",
        lambda x, i: torch.empty_like(x).index_put((i,), x) * x,
        (Input((6, 40), mean=0.5),),
        (torch.tensor([2, 0, 1, 5, 3, 4]),),
        unread=frozenset(["output 0 pairs", "gradient 0 pairs"]),  # rows that the permutation relates
    ),
)


def _experts(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
    """Grouped product; float64 is not supported by its kernel."""
    if x.is_meta:
        return torch._grouped_mm(x, w, offs=offs)
    ends = [0, *offs.tolist()]
    return torch.cat([x[a:b] @ w[k] for k, (a, b) in enumerate(pairwise(ends))])


MASKED = (
    Case(
        "scores and a masked bias",
        lambda s, bias, mask: torch.softmax((s + (bias + mask).clone()).view(180, 30).view(6, 30, 30), -1),
        (Input((6, 30, 30), std=0.5), Input((6, 1, 30), std=0.3)),
        (torch.full((30, 30), -1e9, dtype=torch.float64).triu(1),),
        tolerance=0.06,
        unread=frozenset(["output 0 pairs", "gradient 0 pairs", "gradient 1 square", "gradient 1 pairs"]),
    ),
)

_CAUSAL = torch.full((30, 30), float("-inf"), dtype=torch.float64).triu(1)
_FLOOR = torch.finfo(torch.float32).min
_SCORES = Input((6, 30, 30), std=0.5)


def _with_sink(scores: Tensor, sink: Tensor, mask: Tensor) -> Tensor:
    """Weights where every row may also see a sink, which is dropped."""
    both = torch.cat([scores + mask, sink.expand(6, 30, 1)], -1)
    return torch.softmax(both - both.max(-1, keepdim=True).values, -1)[..., :-1]


def _written(scores: Tensor, mask: Tensor) -> Tensor:
    """Weights after a corner of the scores was masked in place."""
    scores = 1.0 * scores
    corner = scores[:, :10, :10]
    scores[:, :10, :10] = torch.full_like(corner, float("-inf")).where(mask < 0, corner)
    return torch.softmax(scores, -1)


MASKED = (
    *MASKED,
    Case(
        "masked scores divided by a number",
        lambda s, m: torch.softmax((s + m) / 2.0, -1),
        (Input((6, 30, 30)),),
        (_CAUSAL.clamp(min=_FLOOR),),
        tolerance=0.02,
    ),
    Case(
        "masked scores held above the least number",
        lambda s, m: torch.softmax(torch.maximum(s + m, torch.full_like(s[0, 0, 0], _FLOOR)), -1),
        (_SCORES,),
        (_CAUSAL.clamp(min=_FLOOR),),
        tolerance=0.02,
    ),
    Case(
        "exponential of a masked tensor",
        lambda s, m: torch.exp(s + m - 0.5),
        (_SCORES,),
        (_CAUSAL,),
        draws=1000,
    ),
    Case(
        "a mask written to a part",
        lambda s, m: _written(s, m),
        (_SCORES,),
        (_CAUSAL[:10, :10],),
        tolerance=0.03,
    ),
    Case(
        "weights of all but some",
        lambda s, i: torch.softmax(s.scatter(-1, i, float("-inf")), -1),
        (Input((30, 8), std=0.5),),
        (torch.arange(30)[:, None] % 8,),
        tolerance=0.04,
    ),
    Case(
        "sigmoid of a few among hidden ones",
        lambda s, i: torch.sigmoid(
            torch.full((30, 8), float("-inf"), dtype=s.dtype).to(s.device).scatter(1, i, s)
        ),
        (Input((30, 2), mean=0.5),),
        (torch.stack([torch.arange(30) % 8, (torch.arange(30) + 3) % 8], 1),),
        draws=1000,
        unread=frozenset(["output 0 pairs", "gradient 0 pairs", "gradient 0 square"]),  # where it is not zero
    ),
    Case(
        "weights of those above a threshold",
        lambda s, o: torch.softmax(s.masked_fill(o > 0.5, float("-inf")), -1),
        (Input((30, 40), std=0.5), Input((30, 40))),
        tolerance=0.04,
        unread=frozenset(["gradient 1 square", "gradient 1 pairs"]),
    ),
    Case(
        "place of the largest that is not hidden",
        lambda s, m: s * F.one_hot((s + m).argmax(1), 40).to(s.dtype).sum(0)[0].clamp(max=0.0),
        (Input((30, 40)),),
        (torch.tensor([float("-inf")] + [0.0] * 39, dtype=torch.float64),),
    ),
    Case(
        "weights beside a sink",
        _with_sink,
        (_SCORES, Input((6, 30, 1), std=0.5)),
        (_CAUSAL.clamp(min=_FLOOR),),
        tolerance=0.03,
        unread=frozenset(["gradient 1 square", "gradient 1 pairs"]),
    ),
)

ORDER = (
    Case("topk", lambda x: x.topk(3, 1)[0], (_X,), draws=2000, tolerance=0.02),
    Case(
        "topk of softmax",
        lambda x: torch.softmax(x, -1).topk(2)[0],
        (Input((30, 8), std=0.5),),
        draws=1000,
        tolerance=0.04,
        unread=frozenset(["gradient 0 square", "gradient 0 pairs"]),
    ),
    Case(
        "gates at the largest scores",
        lambda x: torch.sigmoid(x).gather(1, x.topk(3, 1)[1]),
        (_X,),
        draws=2000,
        tolerance=0.02,
        unread=frozenset(["gradient 0 square", "gradient 0 pairs"]),  # sigmoid is flatter at large scores
    ),
    Case(
        "falling gates at the largest scores",
        lambda x: torch.exp(-x).gather(1, x.topk(3, 1)[1]),
        (_X,),
        draws=2000,
        tolerance=0.03,
        unread=frozenset(["gradient 0 square", "gradient 0 pairs"]),
    ),
    Case(
        "largest that a mask leaves",
        lambda x, m: x.masked_fill(m, -torch.inf).topk(3, 1)[0],
        (Input((6, 40)),),
        (_GROUPS,),
        draws=2000,
        tolerance=0.02,
        unread=frozenset(
            ["gradient 0 square", "gradient 0 pairs"]
        ),  # never hidden, which the mask does not know
    ),
    Case("smallest", lambda x: x.topk(2, 1, largest=False)[0], (_X,), draws=2000, tolerance=0.02),
    Case("max over a dim", lambda x: x.max(1)[0], (_X,), draws=2000, tolerance=0.02),
    Case(
        "min over a dim",
        lambda x: x.min(0, keepdim=True)[0],
        (Input((6, 40), mean=0.5),),
        draws=2000,
        tolerance=0.02,
    ),
    Case(
        "amax", lambda x: x.amax(1), (_X,), draws=2000, tolerance=0.02, unread=frozenset(["gradient 0 pairs"])
    ),
    Case("sort", lambda x: x.sort(1)[0][:, -5:], (_X,), draws=2000, tolerance=0.05),
    Case(
        "aminmax",
        lambda x: x.aminmax()[1] - x.aminmax()[0],
        (Input((6, 40)),),
        draws=2000,
        tolerance=0.03,
        unread=frozenset(["output 0 square"]),
    ),
    Case(
        "place of the largest",
        lambda x: x * F.one_hot(x.argmax(1), 40).to(x.dtype),
        (Input((6, 40), mean=0.5),),
        tolerance=0.02,
        unread=frozenset(["output 0 square", "output 0 pairs"]),
    ),
    Case(
        "logarithms of shares without one's own",
        lambda x, m: F.log_softmax(x.masked_fill(m, -9e15), 1)[:, 1:] * ~m[:, 1:],
        (Input((30, 30)),),
        (torch.eye(30, dtype=torch.bool),),
        draws=400,
        tolerance=0.08,  # of what is hidden, as of the others
    ),
    Case(
        "running products",
        lambda x: torch.cumprod(torch.sigmoid(x + 3), 1),
        (Input((6, 40), shared=0.4),),
        draws=1000,
        tolerance=0.04,
        unread=frozenset({"gradient 0 square", "gradient 0 pairs"}),  # what it divides by is a factor
    ),
    Case("running maxima", lambda x: x.cummax(1)[0], (_X,), draws=1000, tolerance=0.05),
    Case(
        "running sums of exponentials",
        lambda x: x.logcumsumexp(1).detach() * x,
        (_X,),
        draws=1000,
        tolerance=0.06,
        unread=frozenset({"output 0 pairs"}),  # sums forget what they are sums of
    ),
    Case(
        "alignments",
        lambda x, i: F.ctc_loss(x.log_softmax(2), i, [9, 8, 9], [3, 2, 3], reduction="none"),
        (Input((9, 3, 7)),),
        (torch.tensor([[1, 2, 2], [3, 4, 0], [5, 6, 1]]),),
        draws=1500,
        tolerance=0.03,
    ),
    Case(
        "alignments of all",
        lambda x, i, n, m: nn.CTCLoss(zero_infinity=True)(x.log_softmax(2), i, n, m),
        (Input((9, 3, 7)),),
        (torch.tensor([[1, 2, 2], [3, 4, 0], [5, 6, 1]]), torch.tensor([9, 8, 9]), torch.tensor([3, 2, 3])),
        draws=1500,
        tolerance=0.04,
    ),
    Case("cumsum", lambda x: x.cumsum(1), (_X,), draws=2000),
    Case(
        "cumsum of blocks",
        lambda x, y: torch.cat([x, y], 1).cumsum(1),
        (_X, Input((6, 9), std=2.0)),
        draws=2000,
        tolerance=0.09,
    ),
    Case(
        "running sum to the end",
        lambda a: (lambda c: torch.exp(c[:, -1:] - c) + 0.1 * (c[:, -1:] - c))(-F.softplus(a).cumsum(1)),
        (Input((6, 40), shared=0.2),),
        draws=1000,
        tolerance=0.05,
        unread=frozenset({"gradient 0 square", "gradient 0 pairs"}),  # a sum forgets what it is a sum of
    ),
    *(
        Case(
            f"decays between places, {kind}",
            decays,
            (Input((6, 16), std=0.5),),
            (torch.ones(16, 16, dtype=torch.bool).tril(),),
            draws=1000,
            tolerance=0.45,  # of a block, all places are one distribution
            unread=frozenset({"gradient 0 square", "gradient 0 pairs"}),
        )
        for kind, decays in (
            (
                "masked before",
                lambda a, m: (lambda c: (c[:, :, None] - c[:, None]).masked_fill(~m, float("-inf")).exp())(
                    -F.softplus(a).cumsum(1)
                ),
            ),
            (
                "masked after",
                lambda a, m: (lambda c: (c[:, None] - c[:, :, None]).exp() * m)(F.softplus(a).cumsum(1)),
            ),
        )
    ),
    Case(
        "decay by a running sum",
        lambda a: torch.exp(-0.1 * F.softplus(3 * a).cumsum(1)[:, 3:]),
        (Input((6, 40)),),
        draws=1000,
        tolerance=0.03,
        unread=frozenset({"gradient 0 square"}),  # a sum forgets what it is a sum of
    ),
    Case(
        "chosen by weight",
        lambda x: x.scatter(
            1, torch.multinomial(torch.softmax(x.detach(), -1), 3), torch.zeros_like(x[:, :3])
        ),
        (Input((6, 40), std=0.1),),
        draws=1000,
        tolerance=0.02,
    ),
    Case(
        "counted integers",
        lambda x, i: x * torch.histc(i if x.is_meta else i.double(), 4, 0, 3)[2],
        (_X,),
        (torch.tensor([2, 0, 2, 1], dtype=torch.int32),),
    ),
    Case("counted", lambda x: x * torch.histc(x.detach(), 4, -1e3, 1e3).sum() / 240, (_X,)),
)

STATISTICS = (
    Case("variance", lambda x: x.var(1), (_X,), draws=2000, tolerance=0.02),
    Case(
        "standard deviation",
        lambda x: x.std(1, unbiased=False, keepdim=True),
        (_X,),
        draws=2000,
        tolerance=0.03,
    ),
    Case("variance and mean", lambda x: torch.var_mean(x, 1), (_X,), draws=2000, tolerance=0.02),
    Case(
        "unit vectors",
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
        (Input((6, 40), shared=0.4),),
        draws=1000,
        tolerance=0.06,
    ),
    Case("sum of sizes", lambda x: torch.linalg.vector_norm(x, 1, dim=1), (_X,), draws=1000, tolerance=0.02),
    Case(
        "logsumexp",
        lambda x: torch.logsumexp(x, 1),
        (Input((6, 40), std=0.6, shared=0.3),),
        draws=1000,
        tolerance=0.03,
    ),
    Case(
        "product",
        lambda x: x.detach().prod(1) + 0 * x[:, 0],
        (Input((6, 4), mean=1.0, std=0.3),),
        draws=4000,
        tolerance=0.02,
    ),
)

EXPERTS = (
    Case(
        "grouped_mm",
        _experts,
        (Input((17, 24), shared=0.3), Input((3, 24, 10), std=0.2)),
        (torch.tensor([4, 9, 17], dtype=torch.int32),),
        draws=1000,
    ),
)

LAYOUT = (
    Case("repeat", lambda x: x.repeat(2, 1, 3), (_X,)),
    Case(
        "repeat_interleave",
        lambda x: x.repeat_interleave(3, 1),
        (Input((6, 40)),),
        draws=1000,
        tolerance=0.02,
    ),
    Case("as_strided", lambda x: x.as_strided((3, 20), (80, 2), 1), (_X,)),
    Case("strided windows", lambda x: x.as_strided((6, 4, 16), (40, 8, 1)) * 1.0, (_X,)),
    Case(
        "as_strided_scatter",
        lambda x, y: torch.as_strided_scatter(x, y, (6, 20), (40, 2), 1),
        (_X, Input((6, 20), mean=1.0, std=2.0)),
        unread=frozenset(["output 0 pairs", "gradient 0 pairs"]),
    ),
    Case(
        "as_strided_scatter into a turned box",
        lambda x, y: torch.as_strided_scatter(x, y, (6, 4), (1, 40), 3),
        (_X, Input((6, 4), mean=1.0, std=2.0)),
        unread=frozenset(["output 0 pairs", "gradient 0 pairs"]),
    ),
    Case("unfold", lambda x: x.unfold(1, 5, 3), (_X,)),
    Case("diagonal", lambda x: torch.diagonal(x, 1), (Input((6, 9), mean=0.5, shared=0.4),), draws=3000),
    Case("triangle", lambda x: x.tril(3), (Input((6, 9), mean=0.5, shared=0.4),), draws=3000),
    Case("glu", lambda x: F.glu(x, -1), (_X,), draws=1000),
)

_TARGET = torch.rand(6, 40, generator=torch.Generator().manual_seed(5))

LOSSES = (
    Case(
        "bce",
        lambda x, y: F.binary_cross_entropy(torch.sigmoid(x), y.to(x.dtype)),
        (_X,),
        (_TARGET,),
        draws=2000,
        tolerance=0.02,
    ),
    Case(
        "bce of logits",
        lambda x, y: F.binary_cross_entropy_with_logits(x, y),
        (_X,),
        (_TARGET,),
        draws=2000,
        tolerance=0.02,
    ),
    Case("smooth_l1", lambda x, y: F.smooth_l1_loss(x, y), (_X, Input((6, 40))), draws=1000, tolerance=0.03),
    Case(
        "huber", lambda x, y: F.huber_loss(x, y, delta=0.5), (_X, Input((6, 40))), draws=1000, tolerance=0.03
    ),
    Case("l1", lambda x, y: F.l1_loss(x, y), (_X, Input((6, 40))), draws=1000, tolerance=0.03),
    Case(
        "kl_div",
        lambda x, y: F.kl_div(x.log_softmax(-1), y, reduction="sum"),
        (Input((6, 40), std=0.5),),
        (_TARGET,),
        draws=1000,
        tolerance=0.04,
    ),
    Case(
        "soft_margin",
        lambda x, y: F.soft_margin_loss(x, y),
        (_X,),
        (torch.sign(_TARGET - 0.5),),
        draws=1000,
        tolerance=0.03,
    ),
    Case(
        "pixel classes",
        lambda x, t: F.cross_entropy(x, t),
        (Input((4, 10, 6, 5), std=0.5),),
        (torch.arange(120).view(4, 6, 5) % 10,),
        draws=400,
        tolerance=0.03,
        unread=frozenset(["gradient 0 pairs"]),  # classes are taken as exchangeable
    ),
    Case(
        "soft classes",
        lambda x, y: F.cross_entropy(x, y),
        (Input((6, 40), std=0.5),),
        (torch.softmax(3 * _TARGET, -1),),
        draws=1000,
        tolerance=0.04,
    ),
)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding by complex products."""
    turned = torch.view_as_complex(x.view(6, 20, 2)) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(1)


COMPLEX = (
    Case(
        "complex of parts",
        lambda x, y, w: torch.view_as_real(1j * torch.complex(x, y) @ w.to(torch.complex128)).flatten(1),
        (Input((6, 40), shared=0.4), Input((6, 40)), Input((40, 30), std=0.2)),
    ),
    Case("complex rotary", _turned, (Input((6, 40), shared=0.4),), (torch.linspace(0, 3, 20).double(),)),
)

COMPLEX = (
    *COMPLEX,
    Case(
        "fft2",
        lambda x: torch.view_as_real(torch.fft.fft2(x)).flatten(1),
        (Input((6, 40), shared=0.4),),
        draws=2000,
        unread=frozenset(["output 0 pairs", "gradient 0 pairs"]),
    ),
    Case(
        "filter",
        lambda x: torch.fft.irfft(torch.fft.rfft(x, norm="ortho"), n=40, norm="ortho"),
        (Input((6, 40), mean=0.5, shared=0.4),),
        draws=1000,
        tolerance=0.04,  # frequency 0 of a gradient is real, not circular
    ),
)

SEQUENCE = (*INDEX, *SCATTER, *MASKED, *ORDER, *STATISTICS, *EXPERTS, *LAYOUT, *LOSSES, *COMPLEX)
