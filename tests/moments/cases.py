"""The simulation cases, by family of rules; a rule without a case fails `test_rules.py`."""

from __future__ import annotations

import torch
from simulation import Case, Input
from torch.nn import functional as F
from vision_cases import VISION

_X = Input((6, 40), shared=0.4)
_MATRIX = Input((40, 64), std=0.2)
_IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
_LANDING = torch.arange(32) % 8
_EVERY_OTHER = (torch.arange(40) % 2).double()
_MASK = torch.ones(7, 7, dtype=torch.bool).tril()


def _factors(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Random directions with random signs, as initialisers make them, and the sizes that were taken out."""
    q, r = torch.linalg.qr(0.3 * torch.randn(40, 24, device=x.device, dtype=x.dtype))
    turned = q * r.diagonal().sign()
    return turned, torch.linalg.qr(torch.randn(24, 40, device=x.device, dtype=x.dtype)).R.T


def _interleaved(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = torch.empty(6, 40, dtype=x.dtype, device=x.device)
    made[:, ::2] = x
    made[:, 1::2] = y
    return made


def _turned(x: torch.Tensor) -> torch.Tensor:
    """The gradient of the logarithm of a rotation's determinant: its inverse, transposed."""
    q = torch.linalg.qr(torch.randn(6, 6, device=x.device, dtype=x.dtype))[0].detach().requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(torch.linalg.slogdet(q)[1], q)
    return g.detach() * x


LINEAR = (
    Case("gradient of a determinant", _turned, (Input((6, 6)),), draws=1000),
    Case("mm", lambda x, w: x @ w, (_X, _MATRIX)),
    Case("addmm", lambda x, w, b: torch.addmm(b, x, w), (_X, _MATRIX, Input((64,)))),
    Case("bmm", lambda x, w: torch.bmm(x, w), (Input((3, 5, 40)), Input((3, 40, 8)))),
    Case(
        "baddbmm",
        lambda c, x, w: torch.baddbmm(c, x, w),
        (Input((3, 5, 8)), Input((3, 5, 40)), Input((3, 40, 8))),
    ),
    Case(
        "bilinear",
        lambda x, y, w: F.bilinear(x, y, w),
        (Input((6, 20), shared=0.4), Input((6, 30), mean=0.5), Input((7, 20, 30))),
        draws=1500,
    ),
    Case("mv", lambda x, w: torch.mv(x, w), (_X, Input((40,))), draws=2000),
    Case("dot", lambda x, w: torch.dot(x, w), (Input((50,)), Input((50,))), draws=4000),
)

POINTWISE = (
    Case("relu", lambda x: F.relu(x), (_X,), draws=1000),
    Case("gelu by hand", lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.0447 * x**3))), (_X,), draws=1000),
    Case("silu with mean", F.silu, (Input((6, 40), mean=0.5, shared=0.3),), draws=1000),
    Case("gated", lambda a, b: F.silu(a) * b, (_X, Input((6, 40))), draws=1000),
    Case(
        "sum and difference",
        lambda a, b: (a - 2 * b) * 0.5 - (1 - a),
        (_X, Input((6, 40), mean=0.3)),
        draws=1000,
    ),
    Case("where", lambda a, b: torch.where(a > 0.5, a, b), (_X, Input((6, 40))), draws=1000),
    Case("maximum", torch.maximum, (_X, Input((6, 40), mean=0.3, shared=0.2)), draws=1000, tolerance=0.01),
    Case("minimum", torch.minimum, (_X, Input((6, 40))), draws=1000, tolerance=0.01),
    Case(
        "minimum times its part",
        lambda a, b: torch.minimum(a, b) * a,
        (_X, Input((6, 40))),
        draws=1000,
        tolerance=0.02,
    ),
    Case(
        "atan2",
        lambda a, b: torch.atan2(a, b + 3),
        (_X, Input((6, 40))),
        draws=1000,
        unread=frozenset(["gradient 0 square", "gradient 1 square"]),  # without a second moment at the origin
    ),
    Case("quotient", lambda a, b: -a / (2 + b.pow(2)), (_X, Input((6, 40))), draws=1000),
    Case(
        "rrelu",
        lambda x: F.rrelu(x, training=True) + F.rrelu(2 * x) - torch.rrelu(x + 1, 0.0, 0.5, True),
        (Input((6, 400), mean=0.1),),
        draws=400,
        tolerance=0.02,
        unread=frozenset({"gradient 0 square"}),  # three slopes of one entry
    ),
    Case(
        "hats between knots",
        lambda x, k: F.relu(x[..., None] - k[:-2]) * (x[..., None] < k[1:-1]) + 0.5 * (x[..., None] > k[2:]),
        (Input((6, 40), shared=0.4),),
        (torch.tensor([-2.0, -1.0, -0.25, 0.5, 1.0, 3.0], dtype=torch.float64),),
        draws=1000,
    ),
    Case("log of a sigmoid", F.logsigmoid, (_X,), draws=1000),
    Case(
        "function with a bounded domain",
        lambda x: torch.acos(x) * (1.2 - x).sqrt(),
        (Input((6, 40), std=0.18),),
        draws=1000,
        tolerance=0.01,
    ),
    Case("hardswish", F.hardswish, (_X,), draws=1000),
    Case(
        "masked_fill",
        lambda x: x.masked_fill(torch.zeros(40, dtype=torch.bool, device=x.device), 0.5),
        (_X,),
        draws=1000,
    ),
)

SUMS = (  # what a sum or a mean remembers of its parts
    Case(
        "centring", lambda x: x - x.mean(1, keepdim=True), (Input((6, 9), mean=0.5, shared=0.4),), draws=3000
    ),
    Case(
        "centring of a relu",
        lambda x: F.relu(x) - F.relu(x).mean(1, keepdim=True),
        (Input((6, 9)),),
        draws=3000,
    ),
    Case(
        "two means",
        lambda x: x - x.mean(0) - x.mean((0, 1)),
        (Input((6, 9), shared=0.4),),
        draws=3000,
        wrong="sums of one tensor over different axes are taken as independent",
    ),
    Case(
        "residual relu",
        lambda a, b: F.relu(F.relu(a) + b),
        (_X, Input((6, 40), std=0.6)),
        draws=2000,
        tolerance=0.03,
    ),
    Case(
        "gate of a sum",
        lambda a, b: a * torch.sigmoid(2 * (a + b)),
        (_X, Input((6, 40), std=0.6)),
        draws=2000,
        tolerance=0.01,
    ),
    Case(
        "sum less its part",
        lambda a, b: (F.relu(a) + b).relu() - F.relu(a),
        (_X, Input((6, 40), std=0.6)),
        draws=2000,
        tolerance=0.02,
        unread=frozenset(
            {"output 0 pairs"}
        ),  # two samples of a sum are taken as jointly normal in its latent
    ),
)

REDUCE = (
    Case(
        "sum over what one factor lacks",
        lambda x, y: (torch.acos(torch.tanh(x))[..., None] * y).sum(-1),
        (Input((6, 40), mean=0.5, shared=0.4), Input((6, 40, 5))),
        draws=2000,
        tolerance=0.01,
    ),
    Case("sum", lambda x: x.sum(1), (Input((6, 40), shared=0.4),), draws=2000),
    Case(
        "mean",
        lambda x: x.mean(1, keepdim=True) * x.mean((0, 1)),
        (Input((6, 40), mean=0.5),),
        draws=2000,
        tolerance=0.02,
    ),
)

VIEWS = (
    Case("heads", lambda x: x.view(2, 3, 4, 10).transpose(1, 2).reshape(8, 30).permute(1, 0).t(), (_X,)),
    Case("squeeze", lambda x: x.unsqueeze(1).expand(6, 5, 40).squeeze(), (_X,)),
    Case("cat", lambda x, y: torch.cat([x, 2 * y], 1), (_X, Input((6, 7), mean=1.0))),
    Case("stack", lambda x, y: torch.stack([x, 2 * y], 1), (_X, Input((6, 40), mean=1.0))),
    Case("rotate half", lambda x: torch.cat([-x[:, 20:], x[:, :20]], 1), (_X,)),
    Case(
        "split",
        lambda x: torch.cat([3 * x.split(10, 1)[1], x.chunk(2, 1)[0], torch.split(x, [7, 33], 1)[0]], 1),
        (_X,),
    ),
    Case("select", lambda x: x[:, 3] + x[2, 5], (_X,)),
    Case("unbind", lambda x: x.view(6, 4, 10).unbind(1)[2], (_X,)),
    Case("strided slice", lambda x: x[:, ::4], (_X,)),
    Case("copies", lambda x: x.clone().to(torch.float32).contiguous().detach() + x, (_X,)),
    Case("written part", lambda x: torch.empty_like(x).copy_(x) * 2, (_X,)),
)

NORM = (
    Case(
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, (40,), w, b),
        (Input((6, 40), mean=0.5, shared=0.3), Input((40,), mean=1.0, std=0.1), Input((40,), std=0.1)),
        tolerance=0.06,
    ),
    Case(  # the inverse of so few entries' variance is larger than their variance's inverse
        "layer_norm of few features",
        lambda x: F.relu(F.layer_norm(x, (9,))),
        (Input((16, 9)),),
        draws=4000,
        tolerance=0.03,
    ),
    Case(  # both relus cut by the same variable
        "layer_norm between relus",
        lambda x: F.relu(F.layer_norm(F.relu(x), (64,))),
        (Input((16, 64), shared=0.4),),
        draws=1000,
        tolerance=0.02,
    ),
)

INDEX = (
    Case("embedding", lambda w, ids: F.embedding(ids, w), (Input((12, 30)),), (_IDS,)),
    Case(
        "embedding of one row",
        lambda w, ids: F.embedding(ids, w),
        (Input((1, 30)),),
        (torch.zeros_like(_IDS),),
    ),
)

ATTENTION = (
    Case("softmax", lambda x: torch.softmax(x, -1), (Input((6, 5, 60), std=0.7),), tolerance=0.01),
    Case("softmax of few", lambda x: torch.softmax(x, -1), (Input((6, 5, 8), std=1.0),), tolerance=0.01),
    Case("peaked softmax", lambda x: torch.softmax(x, -1), (Input((6, 5, 60), std=3.0),), tolerance=0.02),
    Case(
        "saturated softmax", lambda x: torch.softmax(x, -1), (Input((6, 5, 60), std=40**0.5),), tolerance=0.02
    ),
    Case(
        "peaked softmax of alike rows",
        lambda x: torch.softmax(x, -1),
        (Input((6, 5, 60), std=3.0, shared=0.5),),
        tolerance=0.03,
    ),
    Case(
        "causal",
        lambda x, m: torch.softmax(x.masked_fill(~m, float("-inf")), -1),
        (Input((6, 7, 7), std=0.3),),
        (_MASK,),
        tolerance=0.01,
    ),
)

_ONE_X = (Input((4, 24, 48), shared=0.0), *[Input((48, 64), std=48**-0.5)] * 2, Input((48, 8), std=0.1))


def _attended(
    x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gain: float
) -> torch.Tensor:
    """Queries, keys and values of one x: their rows' inner products are the same."""
    x = F.layer_norm(x, (48,))
    return torch.softmax(gain * (x @ q) @ (x @ k).transpose(1, 2) / 8, -1) @ (x @ v)


def _in_groups(x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """As `_attended`, two query heads for one key."""
    x = F.layer_norm(x, (48,))
    heads = (x @ q).unflatten(-1, (2, 32)).transpose(1, 2)
    keys = (x @ k[:, :32]).unsqueeze(1).expand(4, 2, 24, 32)
    return torch.softmax(heads @ keys.transpose(2, 3) * 32**-0.5, -1) @ (x @ v).unsqueeze(1).expand(
        4, 2, 24, 8
    )


ONE_X = (
    Case("attention of one x", lambda *a: _attended(*a, 1.0), _ONE_X, tolerance=0.04),
    Case(  # far from uniform, weights depend on the norms of queries and keys
        "peaked attention of one x",
        lambda *a: _attended(*a, 2.5),
        _ONE_X,
        tolerance=0.1,
    ),
    Case("grouped attention of one x", _in_groups, _ONE_X, tolerance=0.06),
)

LOSS = (
    Case(  # far from uniform: the sum's logarithm, and probabilities near 1
        "cross entropy of few classes",
        lambda x, t: F.cross_entropy(x, t),
        (Input((12, 10), std=2.0),),
        (torch.arange(12) % 10,),
        draws=1000,
        tolerance=0.01,
    ),
    Case(
        "cross entropy",
        lambda x, t: F.cross_entropy(x, t),
        (Input((12, 50), std=0.5),),
        (torch.arange(12) % 5,),
        tolerance=0.02,
    ),
    Case("mse", lambda x, y: F.mse_loss(x, y), (_X, Input((6, 40))), tolerance=0.03),
)

RANDOM = (
    Case("dropout", lambda x: F.dropout(x, 0.3), (_X,), draws=1000),
    Case(
        "one or the other by a known mask",
        lambda x, y, mask: x * mask + (x + y) * (1 - mask),
        (_X, Input((6, 40), std=0.3)),
        (_EVERY_OTHER,),
        draws=1000,
    ),
    Case(
        "masks that take turns",
        lambda x, w, mask: ((x * mask) @ w * (1 - mask) + x * mask) * (1 - mask),
        (_X, Input((40, 40), std=0.16)),
        (_EVERY_OTHER,),
    ),
    Case(
        "divided by a product of positives",
        lambda a, b, c: c / (torch.exp(a) @ torch.exp(b)),
        (Input((6, 20)), Input((20, 9), std=0.5), Input((6, 9))),
        draws=1500,
        tolerance=0.05,  # lognormal for a sum of twenty
        unread=frozenset(
            {"gradient 0 square", "gradient 1 square", "gradient 1 pairs"}
        ),  # a sum forgets its parts
    ),
    Case(
        "divided by a running sum of positives",
        lambda a, c: c / F.softplus(a).cumsum(1)[:, 8:],
        (Input((6, 40)), Input((6, 32))),
        draws=1500,
        tolerance=0.05,  # lognormal for a sum of eight
        unread=frozenset({"gradient 0 square"}),  # a sum forgets what it is a sum of
    ),
    Case(
        "divided by positives that were added up",
        lambda a, c: c / torch.zeros(8, 40, device=a.device, dtype=a.dtype).index_add(0, _LANDING, a.exp()),
        (Input((32, 40), std=0.6), Input((8, 40))),
        draws=1500,
        tolerance=0.05,  # lognormal for a sum of four
        unread=frozenset({"gradient 0 square"}),  # a sum forgets what it is a sum of
    ),
    Case(
        "random places",
        lambda w: F.embedding(torch.randint(50, (4, 8), device=w.device), w)[:, torch.randperm(8)],
        (Input((50, 20)),),
        unread=frozenset({"output 0 pairs"}),  # how many places are equal is that of one draw
    ),
    Case(
        "places that are dropped at random",
        lambda w, i: F.embedding(torch.where(torch.rand(2, 5, device=w.device) < 0.5, 11, i), w),
        (Input((12, 20)),),
        (_IDS,),
        unread=frozenset({"output 0 pairs", "gradient 0 pairs"}),  # which are equal is that of one draw
    ),
    Case(
        "factors of a random matrix", lambda x: torch.cat([x @ a for a in _factors(x)], 1), (_X,), draws=1000
    ),
    Case("noise", lambda x: x + torch.randn_like(x) + torch.rand_like(x), (_X,), draws=1000),
)

_TOKENS = Input((4, 12, 32))
_HIDDEN = Input((32, 40), std=0.2)

BEHIND = (  # gradient and input of a layer both depend on its pre-activation
    Case("weight behind a relu", lambda x, w: F.relu(x @ w), (Input((24, 32)), _HIDDEN)),
    Case("weight behind a summed relu", lambda x, w: F.relu(x @ w).sum(0), (Input((24, 32)), _HIDDEN)),
    Case("weight behind relus of tokens", lambda x, w: F.relu(x @ w), (_TOKENS, _HIDDEN)),
    Case("weight behind summed tokens", lambda x, w: F.relu(x @ w).sum(1), (_TOKENS, _HIDDEN)),
    Case(
        "weight behind a summed gelu",
        lambda x, w: F.gelu(x @ w).sum((0, 1)),
        (Input((4, 12, 32), shared=0.3), _HIDDEN),
    ),
)

TINY = (  # signals whose variance is less than the norm's eps
    Case("layer norm of little", lambda x: F.layer_norm(x, (40,), eps=1e-4), (Input((6, 40), std=0.005),)),
    Case(
        "group norm of little",
        lambda x: F.group_norm(x, 4, eps=1e-4),
        (Input((5, 32, 6), std=0.02),),
        tolerance=0.03,
    ),
)


def _rolled(x: torch.Tensor, w: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Scores of a rolled image's rows, which are rolled back."""
    rolled = torch.roll(x, 2, 1)
    scores = (rolled @ w) @ (rolled @ u).transpose(1, 2)
    return F.relu(torch.roll(scores, -2, 1) + x[..., :7])


def _windows(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """A softmax over keys whose queries are two dims in one, as after a window partition."""
    return torch.softmax(x.transpose(2, 3).reshape(4, 6, 6) + m, -1)


_SPLIT = torch.zeros(4, 6, 6, dtype=torch.float64)
_SPLIT[2:, :3, 3:] = _SPLIT[2:, 3:, :3] = -100.0


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


ROOTS = (  # a root mean square written out depends on what it divides; gradients are off by 2/n
    Case("divided by its root mean square", _rms, (_X,), tolerance=0.06),
    Case("relu divided by its root mean square", lambda x: _rms(F.relu(x)), (_X,), tolerance=0.06),
)

_BAND = (torch.ones(24, 24).tril() * torch.ones(24, 24).triu(-7)).bool()

WINDOWS = (
    Case(
        "attention in a sliding window",
        lambda x, v, m: torch.softmax(x.masked_fill(~m, float("-inf")), -1) @ v,
        (Input((4, 24, 24), std=0.5), Input((4, 24, 20), shared=0.3)),
        (_BAND,),
        tolerance=0.02,
    ),
    Case(
        "scores of rolled rows",
        _rolled,
        (Input((5, 7, 40)), Input((40, 16), std=0.16), Input((40, 16), std=0.16)),
        tolerance=0.03,
    ),
    Case(
        "softmax within windows",
        _windows,
        (Input((4, 2, 6, 3), std=0.3),),
        (_SPLIT,),
        tolerance=0.02,
        unread=frozenset(["output 0 pairs"]),  # of windows with different masks
    ),
    Case(
        "scores with a known slope",
        lambda x, y, s: torch.softmax(torch.baddbmm(s, x, y), -1),
        (Input((4, 6, 30), std=0.2), Input((4, 30, 6), std=0.2)),
        (-0.5 * torch.arange(6, dtype=torch.float64).expand(4, 1, 6),),
        tolerance=0.02,
    ),
)

_BAGS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4]])
_ROWS = Input((3, 6, 40))

LOOKED_UP = (
    Case("bags of rows", lambda w, i: F.embedding_bag(i, w, mode="mean"), (Input((12, 9)),), (_BAGS,)),
    Case(
        "sums of uneven bags",
        lambda w, i, o: F.embedding_bag(i.reshape(-1), w, o, mode="sum"),
        (Input((12, 9)),),
        (_BAGS, torch.tensor([0, 4, 9, 15])),
    ),
    Case("distances", torch.cdist, (_ROWS, Input((3, 5, 40))), tolerance=0.06),  # 2/n, n features
    Case(
        "distances of many rows",
        lambda x, y: torch.cdist(x, y),
        (Input((30, 40), shared=0.3), Input((26, 40))),
        tolerance=0.06,
    ),
    Case(
        "middle of all",
        lambda x: x / x.abs().median(),
        (Input((6, 90)),),
        draws=600,
        tolerance=0.02,
        unread=frozenset({"gradient 0 square", "gradient 0 pairs"}),
    ),  # most of it falls on one entry
    Case(
        "between edges",
        lambda x, y, e: x * (torch.bucketize(y, e) + torch.searchsorted(e, y + 0.5)).to(x.dtype),
        (Input((60, 90)), Input((60, 90))),
        (torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64),),
        draws=100,
        tolerance=0.03,  # places are one draw
    ),
    Case(
        "some and all", lambda x: x * (x > -9).all() * (1 + (x > 0).any(1, keepdim=True).to(x.dtype)), (_X,)
    ),
    Case("distances of rows", lambda x: torch.cdist(x, x), (_ROWS,), tolerance=0.06),
    Case("median", lambda x: x.median(1)[0], (_X,), draws=1000, tolerance=0.02),
    Case("third smallest", lambda x: x.kthvalue(3, 1)[0], (_X,), draws=1000, tolerance=0.02),
    Case("truths", lambda x: torch.where((x > 0.5) & ~(x > 1.0), x, torch.zeros_like(x)), (_X,), draws=1000),
)

SCATTER = (
    Case(
        "parts overwritten",
        lambda x, y, z: torch.slice_scatter(torch.select_scatter(x, z, 0, 2), y, 1, 5, 9),
        (_X, Input((6, 4), mean=1.0), Input((40,), std=2.0)),
    ),
    Case(
        "every third overwritten",
        lambda x, y: torch.slice_scatter(x, y, 1, 4, 38, 3),
        (_X, Input((6, 12), std=2.0, shared=0.8)),
    ),
    Case(
        "two interleaved",
        lambda x, y: _interleaved(x, y) * 2,
        (Input((6, 20), shared=0.4), Input((6, 20), std=2.0, shared=0.8)),
    ),
    Case(
        "every other one read",
        lambda x: torch.cat([x[:, 1::2], 3 * x[:, :39][:, ::2], x[:, 1:20:5]], 1),
        (Input((6, 40), mean=0.5),),
    ),
)

DRAWN = (
    Case(
        "drawn inside",
        lambda x: x + torch.empty_like(x).exponential_(2.0) * torch.full_like(x, 0.5).fill_(2.0),
        (_X,),
        draws=2000,
    ),
    Case("log-normal inside", lambda x: x * torch.empty_like(x).log_normal_(0.1, 0.3), (_X,), draws=2000),
)

CASES = (
    *SCATTER,
    *BEHIND,
    *LOOKED_UP,
    *ROOTS,
    *WINDOWS,
    *TINY,
    *DRAWN,
    *LINEAR,
    *POINTWISE,
    *SUMS,
    *REDUCE,
    *VIEWS,
    *NORM,
    *INDEX,
    *ATTENTION,
    *ONE_X,
    *LOSS,
    *RANDOM,
    *VISION,
)
