"""The data flow of one forward pass: every operation a node, every tensor that it read an edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isometry.hooks import tensors_in as returned
from isometry.moments.aliasing import Key, disjoint, key_of
from isometry.moments.calls import Call, Numbering, functional, mapped, tensors_in

# Views and copies that hand every entry on as it is: a residual stream runs through these.
IDENTITY = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "transpose",
        "permute",
        "t",
        "expand",
        "unsqueeze",
        "squeeze",
        "clone",
        "contiguous",
        "_to_copy",
        "detach",
        "alias",
        "lift_fresh",
        "roll",
        "native_dropout",
        "dropout",
    ]
)
# One tensor in, one out, each entry of which is a number times an entry of the input, or a sum of such.
LINEAR = IDENTITY | frozenset(
    [
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "unsafe_split",
        "chunk",
        "flip",
        "constant_pad_nd",
        "repeat",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "im2col",
        "col2im",
        "unfold",
        "as_strided",
        "index",
        "gather",
        "index_select",
        "neg",
        "mean",
        "sum",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "adaptive_avg_pool1d",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "upsample_linear1d",
        "upsample_trilinear3d",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "view_as_real",
        "view_as_complex",
        "masked_fill",
        "where",
        "tril",
        "triu",
        "copy",
        "narrow",
        "diagonal",
        "slice_scatter",
        "select_scatter",
        "index_put",
    ]
)
MULTIPLY = frozenset(["mul", "div"])
ADD = frozenset(["add", "sub", "rsub"])
CONTRACTION = frozenset(
    [
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "addbmm",
        "mv",
        "addmv",
        "dot",
        "convolution",
        "_convolution",
        "linear",
        "matmul",
        "_grouped_mm",
        "mkldnn_convolution",
        "cudnn_convolution",
        "_trilinear",
    ]
)
NORM = frozenset(
    [
        "native_layer_norm",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional",
        "_batch_norm_with_update",
        "native_group_norm",
        "_fused_rms_norm",
        "cudnn_batch_norm",
    ]
)
# What these make depends on the shape of what they read, never on its values.
BLANK = frozenset(
    [
        "empty_like",
        "zeros_like",
        "ones_like",
        "full_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "new_empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty_strided",
        "bernoulli",
        "zero",
        "fill",
        "uniform",
        "normal",
    ]
)
# Pointwise functions without PyTorch's tag.
UNTAGGED = frozenset(["hardswish", "log_sigmoid_forward"])
# What these read beside a signal tells which of its entries they take, or where they put them.
CHOOSING = frozenset(["index", "gather", "index_select", "index_put", "index_add", "scatter_add", "scatter"])
SOFTMAX = frozenset(["_softmax", "_safe_softmax", "softmax"])
REDUCTION = frozenset(["mean", "sum", "var", "std", "var_mean", "linalg_vector_norm", "norm", "amax"])


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands in a node's arguments for the tensor that another node made."""

    node: int


@dataclass(eq=False, slots=True)
class Node:
    """One output of one operation, or a leaf: "parameter", "input" or "constant".

    Attributes:
        index: Its place in `Flow.nodes`; what it reads has smaller ones.
        op: The ATen operation's name, without the underscore of in-place twins.
        shape: The output's shape.
        module: Path of the module that ran it.
        call: The operation's number in the run, the same in any run of the same code; None for a leaf.
        slot: Which output of the operation.
        func: The operation, to run it again; in-place ones as their functional twins.
        args: Its arguments, tensors as `Ref`.
        kwargs: Likewise, by name.
        inputs: The nodes it read, in order.
        signal: Whether it holds floats that depend on the inputs' values, or on rows looked up in a table.
        follows: Whether it is computed from signals by way of integers or truth values alone: a comparison,
            a choice of entries.
        ids: Whether it is computed from integers that the model is given.
        parameters: Indices of the parameter leaves that it is computed from, where it is no signal.
        name: A parameter's canonical name.
        floating: Whether it holds floats.
        value: The number that a constant holds, where it is known and one.
    """

    index: int
    op: str
    shape: tuple[int, ...]
    module: str = ""
    call: Call | None = None
    slot: int = 0
    func: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()
    signal: bool = False
    follows: bool = False
    ids: bool = False
    parameters: frozenset[int] = frozenset()
    name: str = ""
    floating: bool = True
    value: float | None = None

    @property
    def pointwise(self) -> bool:
        """Whether PyTorch tags the operation as pointwise, or forgot to."""
        return self.func is not None and (torch.Tag.pointwise in self.func.tags or self.op in UNTAGGED)


@dataclass
class Flow:
    """The graph of one forward pass.

    Attributes:
        nodes: All nodes in the order of execution.
        parameters: The leaf of each parameter by canonical first name.
        outputs: The nodes of the floating-point tensors that the model returned.
        consumers: Of each node, the nodes that read it.
        norms: Whether a node is a norm, as far as it was asked.
    """

    nodes: list[Node]
    parameters: dict[str, int]
    outputs: tuple[int, ...] = ()
    consumers: list[list[int]] = field(default_factory=list)
    norms: dict[int, bool] = field(default_factory=dict, repr=False)

    def signals(self, node: Node) -> list[Node]:
        """Return the inputs of a node that are signals, each once."""
        return [self.nodes[i] for i in dict.fromkeys(node.inputs) if self.nodes[i].signal]

    def sources(self, node: Node) -> list[Node]:
        """Return the inputs of a node that are signals or follow from signals, each once."""
        read = (self.nodes[i] for i in dict.fromkeys(node.inputs))
        return [n for n in read if n.signal or n.follows]

    def weight(self, node: Node) -> Node | None:
        """Return the input of a contraction that is computed from parameters alone; None for a product."""
        if node.op not in CONTRACTION or not node.signal:
            return None
        places = self.operands(node)
        found = [n for n in places if n.parameters and not n.signal]
        return found[-1] if found else None

    def operands(self, node: Node) -> list[Node]:
        """Return the two factors of a contraction, without its bias."""
        first = 1 if node.op in ("addmm", "baddbmm", "addbmm", "addmv") else 0
        refs = [a for a in node.args[first:] if isinstance(a, Ref)][:2]
        return [self.nodes[r.node] for r in refs]

    def transparent(self, node: Node) -> bool:
        """Return whether a node hands its one signal on but for views, sums over entries, scales, offsets."""
        if not node.signal or len(self.signals(node)) != 1:
            return False
        if node.op not in CHOOSING and any(self.nodes[i].follows for i in node.inputs):
            return False
        if node.op in LINEAR or node.op in ADD or node.op == "cat":
            return True
        if node.op in ("mul", "addcmul"):
            return sum(self.nodes[i].signal for i in node.inputs) == 1
        return (
            node.op == "div"
            and self.nodes[node.inputs[0]].signal
            and len(set(node.inputs)) == len(node.inputs)
        )

    def upstream(self, node: Node) -> Iterator[Node]:
        """Yield a node and what lies before it through transparent nodes, nearest first."""
        while True:
            yield node
            if not self.transparent(node):
                return
            node = self.signals(node)[0]


class Tracer:
    """An interpreter's observer that records the graph.

    Args:
        parameters: The twin's parameters by canonical first name.
        inputs: What the twin is called with.
        running: Tells the path of the module now running.
        known: Tells the number that a tensor of one entry holds, if anybody knows.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Any,
        running: Callable[[], str],
        known: Callable[[Tensor], float | None] = lambda _: None,
    ) -> None:
        self.flow = Flow([], {})
        self._running, self._value = running, known
        self._numbering = Numbering()
        self._known: dict[int, dict[Key, int]] = {}
        self._last: dict[int, int] = {}
        self._kept: list[Any] = []  # storages, so that no address is used again
        for name, parameter in parameters.items():
            node = self._leaf("parameter", parameter)
            node.name = name
            self.flow.parameters[name] = node.index
        for tensor in tensors_in(inputs):
            self._leaf("input", tensor)

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Record one operation."""
        call = self._numbering.next(func)
        name = func._schema.name.split("::")[1]
        written = func._schema.is_mutable and name.endswith("_") and isinstance(args[0], Tensor)
        if written:
            func, name = functional(func) or func, name[:-1]
        refs = mapped((tuple(args), dict(kwargs)), lambda t: Ref(self._find(t)))
        inputs = tuple(r.node for r in _refs(refs))
        for slot, tensor in enumerate([args[0]] if written else list(tensors_in(out))):
            read = inputs
            if written and (name == "copy" or name in BLANK):
                read = inputs[1:]  # what was there before is gone
            last = self._last.get(key_of(tensor)[0])
            node = Node(
                index=len(self.flow.nodes),
                op=name,
                shape=tuple(tensor.shape),
                module=self._running(),
                call=call,
                slot=slot,
                func=func,
                args=refs[0],
                kwargs=refs[1],
                inputs=read,
                floating=_floats(tensor),
            )
            self.flow.nodes.append(node)
            self._remember(tensor, node.index, written or "out" in kwargs)
            if written and last is not None and self._partial(tensor):
                self._merge(tensor, last, node)

    def finish(self, output: Any) -> Flow:
        """Return the graph once the model has run.

        Args:
            output: What the model returned.

        Returns:
            The graph with its outputs and consumers; `origin.tell` says what its nodes are computed from.
        """
        flow = self.flow
        flow.outputs = tuple(dict.fromkeys(self._find(t) for t in returned(output) if _floats(t)))
        flow.consumers = [[] for _ in flow.nodes]
        for node in flow.nodes:
            for i in dict.fromkeys(node.inputs):
                flow.consumers[i].append(node.index)
        return flow

    def _merge(self, tensor: Tensor, last: int, written: Node) -> None:
        """Add the whole tensor of which a part was written."""
        whole = Node(
            index=len(self.flow.nodes),
            op="slice_scatter",
            shape=self.flow.nodes[last].shape,
            module=written.module,
            call=written.call,
            slot=written.slot,
            inputs=(last, written.index),
            floating=written.floating,
        )
        self.flow.nodes.append(whole)
        self._last[key_of(tensor)[0]] = whole.index

    def _partial(self, tensor: Tensor) -> bool:
        """Return whether a written tensor is a part of its storage, the rest of which lives on."""
        size = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
        return tensor.numel() != size

    def _leaf(self, op: str, tensor: Tensor) -> Node:
        node = Node(
            len(self.flow.nodes), op, tuple(tensor.shape), self._running() if op == "constant" else ""
        )
        node.floating = _floats(tensor)
        node.value = self._value(tensor) if op == "constant" and tensor.numel() == 1 else None
        self.flow.nodes.append(node)
        self._remember(tensor, node.index, False)
        return node

    def _find(self, tensor: Tensor) -> int:
        key = key_of(tensor)
        known = self._known.get(key[0])
        if known is None:
            return self._leaf("constant", tensor).index
        found = known.get(key)
        return self._last[key[0]] if found is None else found

    def _remember(self, tensor: Tensor, index: int, written: bool) -> None:
        key = key_of(tensor)
        if key[0] not in self._known:
            self._known[key[0]] = {}
            self._kept.append(tensor.detach())
        known = self._known[key[0]]
        if written:
            for other in [k for k in known if not disjoint(k, key)]:
                del known[other]
        known[key] = index
        if written or key[0] not in self._last:
            self._last[key[0]] = index


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _refs(tree: Any) -> Iterator[Ref]:
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _refs(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _refs(item)
