"""Fans from a contraction itself: which axes of a parameter it sums over, whatever module owns it."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from isometry.fans import Fans
from isometry.flow.graph import Flow, Node, Ref
from isometry.layout import Layout, grouped


def fans_of_use(flow: Flow, node: Node, leaf: Node) -> Fans | None:
    """Return the fans of a parameter in one contraction.

    forward counts the terms of one output, backward those of one input gradient, both exact but for borders
    (zero padding) and strides that do not divide the kernel.

    Args:
        flow: The graph.
        node: The contraction.
        leaf: The parameter.

    Returns:
        The fans, or None where the parameter's axes cannot be told from the contraction's.
    """
    operand = flow.weight(node)
    if operand is None:
        return None
    if "convolution" in node.op:
        return _convolution(node, leaf.shape) if operand.shape == leaf.shape else None
    if len(operand.shape) not in (2, 3) or len(leaf.shape) < 2:
        return None
    left = flow.operands(node)[0] is operand
    rows, cols = (-2, -1) if left else (-1, -2)  # the weight's outputs, inputs
    axes = _axes(flow, leaf, operand)
    if axes is None:
        return None
    out, inp = axes[rows], axes[cols]
    batch = axes[0] if len(operand.shape) == 3 else ()
    if out is None or inp is None or batch is None or len({*out, *inp, *batch}) != len(leaf.shape):
        return None
    layout = Layout(leaf.shape, batch=batch, out=out, inp=inp)
    return Fans(forward=float(layout.inputs), backward=float(layout.outputs), layout=layout)


def _convolution(node: Node, shape: tuple[int, ...]) -> Fans:
    stride, transposed, groups = node.args[3], bool(node.args[6]), int(node.args[8])
    taps, steps = prod(shape[2:]), prod(stride) if len(stride) == len(shape) - 2 else stride[0]
    layout = grouped(shape, groups)
    own, other = float(shape[1] * taps), float(shape[0] // groups * taps)
    if transposed:  # (in, out/groups, *taps)
        split = layout.shape
        turned = (
            Layout(split, batch=(0,), out=(2,), inp=(1,), taps=tuple(range(3, len(split))))
            if groups > 1
            else Layout(shape, out=(1,), inp=(0,), taps=tuple(range(2, len(shape))))
        )
        return Fans(forward=other / steps, backward=own, layout=turned)
    return Fans(forward=own, backward=other / steps, layout=layout)


def _axes(flow: Flow, leaf: Node, operand: Node) -> list[tuple[int, ...] | None] | None:
    """Return which axes of a parameter each dim of a view of it runs along."""
    view = viewed(flow, leaf, operand)
    if view is None:
        return None
    strides = torch.empty(leaf.shape, device="meta").stride()
    found: list[tuple[int, ...] | None] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        axes: list[int] = []
        rest = size
        for axis in reversed(range(len(leaf.shape))):
            if rest > 1 and leaf.shape[axis] > 1 and strides[axis] == stride and rest % leaf.shape[axis] == 0:
                axes.append(axis)
                rest //= leaf.shape[axis]
                stride *= leaf.shape[axis]
        found.append(tuple(reversed(axes)) if rest == 1 and axes else () if size == 1 else None)
    return found


def viewed(flow: Flow, leaf: Node, operand: Node, values: Tensor | None = None) -> Tensor | None:
    """Return the view of a parameter that an operation reads; None where it is more than a view.

    Args:
        flow: The graph.
        leaf: The parameter.
        operand: What the operation reads.
        values: What the parameter holds; None: nothing, on meta.

    Returns:
        The view.
    """
    path = []
    node = operand
    while node is not leaf:
        before = [flow.nodes[i] for i in node.inputs if flow.nodes[i].parameters]
        if len(before) != 1:
            return None
        path.append(node)
        node = before[0]
    view = torch.empty(leaf.shape, device="meta") if values is None else values
    for node in reversed(path):
        if node.op in ("clone", "_to_copy", "contiguous", "detach", "alias", "lift_fresh"):
            continue
        if not getattr(node.func, "is_view", False) and node.op != "_unsafe_view":
            return None
        try:
            args = [view if isinstance(a, Ref) else a for a in node.args]
            view = (torch.ops.aten.view.default if node.op == "_unsafe_view" else node.func)(*args)
        except RuntimeError:
            return None
        if not isinstance(view, Tensor):
            view = view[node.slot]
    return view
