"""Residual streams of convolutional networks written in every manner."""

import torch
import torch.nn.functional as F
from small_models import D, Of, blocks, ends, parts, pictures, roles, tokens, weight
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, width, out, stride=1):
        super().__init__()
        self.a, self.na = nn.Conv2d(width, out // 2, 1, bias=False), nn.BatchNorm2d(out // 2)
        self.b, self.nb = nn.Conv2d(out // 2, out // 2, 3, stride, 1, bias=False), nn.BatchNorm2d(out // 2)
        self.c, self.nc = nn.Conv2d(out // 2, out, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = (
            nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if width != out or stride > 1
            else None
        )

    def forward(self, x):
        y = self.nc(self.c(F.relu(self.nb(self.b(F.relu(self.na(self.a(x)), True))), True)))
        y += x if self.skip is None else self.skip(x)
        return F.relu(y, True)


def test_bottlenecks_with_projections_computed_behind_the_branch():
    model = nn.Sequential(
        nn.Conv2d(D, D, 3, padding=1),
        nn.BatchNorm2d(D),
        nn.ReLU(),
        Bottleneck(D, D),
        Bottleneck(D, 16, 2),
        Bottleneck(16, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    read = roles(model, pictures())
    assert ends(read) == {"3.nc.weight": (1, 3), "4.nc.weight": (2, 3), "5.nc.weight": (3, 3)}
    assert [read[f"{i}.nc.weight"].ends.since for i in (3, 4, 5)] == [1, 1, 2]
    assert read["4.skip.0.weight"].skips is read["4.nc.weight"].ends
    assert [read[f"3.{n}.weight"].layer for n in "abc"] == [1, 2, 3]
    assert read["3.c.weight"].residual.layers == 3
    assert parts(read, "8.weight") == {"head"}


def test_norms_before_activations_leave_the_stream_alone():
    def forward(m, x):
        x = m.stem(x)
        for n1, c1, n2, c2 in m.blocks:
            x = x + c2(F.relu(n2(c1(F.relu(n1(x))))))
        return m.head(F.relu(m.norm(x)).mean((2, 3)))

    def block():
        return nn.ModuleList(
            [
                nn.BatchNorm2d(D),
                nn.Conv2d(D, D, 3, padding=1),
                nn.BatchNorm2d(D),
                nn.Conv2d(D, D, 3, padding=1),
            ]
        )

    read = roles(
        Of(
            forward,
            stem=nn.Conv2d(D, D, 3, padding=1),
            blocks=blocks(block),
            norm=nn.BatchNorm2d(D),
            head=nn.Linear(D, 2),
        ),
        pictures(),
    )
    assert ends(read) == {"blocks.0.3.weight": (1, 2), "blocks.1.3.weight": (2, 2)}
    assert read["blocks.1.3.weight"].ends.since == 2


def test_scaled_branches_end_in_their_last_weight():
    def forward(m, x):
        for deep, norm, up, down, scale in m.blocks:
            h = norm(deep(x).permute(0, 2, 3, 1))
            x = x + (scale.g * down(F.gelu(up(h)))).permute(0, 3, 1, 2)
        return m.head(x.mean((2, 3)))

    def block():
        return nn.ModuleList(
            [
                nn.Conv2d(D, D, 7, padding=3, groups=D),
                nn.LayerNorm(D),
                nn.Linear(D, 32),
                nn.Linear(32, D),
                Of(None, g=weight(D)),
            ]
        )

    read = roles(Of(forward, blocks=blocks(block), head=nn.Linear(D, 2)), pictures())
    assert ends(read) == {"blocks.0.3.weight": (1, 2), "blocks.1.3.weight": (2, 2)}
    assert read["blocks.0.4.g"].kind == "scale"
    assert read["blocks.0.0.weight"].fans.forward == 49
    assert read["blocks.0.3.weight"].residual.layers == 3


def test_one_number_that_scales_a_branch_is_a_scale():
    def forward(m, x):
        for up, down, scale in m.blocks:
            x = x + scale.g * down(torch.relu(up(x)))
        return m.head(x)

    def block():
        return nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D), Of(None, g=nn.Parameter(torch.zeros(())))])

    read = roles(Of(forward, blocks=blocks(block, 3), head=nn.Linear(D, 2)), tokens())
    assert {read[f"blocks.{i}.2.g"].kind for i in range(3)} == {"scale"}
    assert ends(read) == {f"blocks.{i}.1.weight": (i + 1, 3) for i in range(3)}


def test_concatenated_features_are_no_residual_branches():
    def forward(m, x):
        for norm, conv in zip(m.norms, m.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return m.head(x.mean((2, 3)))

    model = Of(
        forward,
        norms=nn.ModuleList(nn.BatchNorm2d(D + 4 * i) for i in range(3)),
        convs=nn.ModuleList(nn.Conv2d(D + 4 * i, 4, 3, padding=1) for i in range(3)),
        head=nn.Linear(D + 12, 2),
    )
    assert not roles(model, pictures()).streams.residuals


def test_a_pyramid_of_scales_has_no_branch_through_the_whole_backbone():
    def forward(m, x):
        fine = m.stem(x)
        coarse = F.max_pool2d(fine, 2)
        for conv in m.blocks:
            coarse = coarse + conv(F.relu(coarse))
        merged = m.lateral(fine) + F.interpolate(m.top(coarse), scale_factor=2)
        return m.out(merged)

    model = Of(
        forward,
        stem=nn.Conv2d(D, D, 3, padding=1),
        blocks=blocks(lambda: nn.Conv2d(D, D, 3, padding=1)),
        lateral=nn.Conv2d(D, 4, 1),
        top=nn.Conv2d(D, 4, 1),
        out=nn.Conv2d(4, 2, 1),
    )
    assert ends(roles(model, pictures())) == {"blocks.0.weight": (1, 2), "blocks.1.weight": (2, 2)}


def test_sums_inside_a_long_branch_are_a_stream_of_their_own():
    def forward(m, x):
        high = m.stem(x)
        low = m.down(F.relu(high))
        for conv in m.blocks:
            low = low + conv(F.relu(low))
        high = high + m.up(F.relu(low))
        return m.out(high)

    model = Of(
        forward,
        stem=nn.Conv2d(D, D, 3, padding=1),
        down=nn.Conv2d(D, 16, 2, stride=2),
        blocks=blocks(lambda: nn.Conv2d(16, 16, 3, padding=1), 3),
        up=nn.ConvTranspose2d(16, D, 2, stride=2),
        out=nn.Conv2d(D, 2, 1),
    )
    read = roles(model, pictures())
    assert ends(read) == {**{f"blocks.{i}.weight": (i + 1, 3) for i in range(3)}, "up.weight": (1, 1)}
    assert parts(read, "out.weight") == {"head"}
