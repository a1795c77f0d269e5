"""The dispatch mode that carries moments along a model's own forward code and autograd's own backward.

Every ATen operation is first run as it is on its carrier (meta or real tensors), then its rule makes the
records of its outputs from those of its inputs. Records are found by what a tensor aliases: storage, offset,
shape and stride; so the tensors that autograd saved, which come back as other Python objects, are found
again. A write in place replaces the record, drops those of other views of the storage, and is passed on to
the tensor that a view was taken from.

Operations whose inputs are all known values are run on those values. An operation without a rule gives
`Unknown`, which spreads to whatever depends on it, and is listed in `Interpreter.unknown`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from isometry.moments import factories, masked, origins, running, symbolic
from isometry.moments import regrouping as reg
from isometry.moments.aliasing import disjoint, key_of
from isometry.moments.calls import (
    Mode,
    functional,
    identity,
    listed,
    mapped,
    name_of,
    part_of_split,
    tensors_in,
)
from isometry.moments.concrete import LIMIT, Concrete
from isometry.moments.record import Moments
from isometry.moments.rules.base import (
    Context,
    NoRule,
    Rule,
    Shifted,
    Unknown,
    Value,
    check_numbers,
    rule_of,
)
from isometry.moments.rules.pointwise import as_moments, check_complex, is_pointwise, pointwise
from isometry.moments.rules.views import of_numbers
from isometry.moments.spread import Spread
from isometry.moments.storages import Storage, StorageView
from isometry.moments.symbolic import Lazy

_RESHAPING = ("transpose_", "t_", "squeeze_", "unsqueeze_", "swapdims_", "swapaxes_", "as_strided_")


class Observer(Protocol):
    """Whoever wants to see every operation of a run."""

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Take note of an operation that has run on its carrier; its records are not made yet."""


class Interpreter(Mode):  # type: ignore[no-untyped-call]
    """Carry records along all operations inside the `with` block.

    Attributes:
        unknown: How often each (operation, module, reason) had no rule; what merely depends on them is not
            counted.
        notes: How often each approximation was used.
        module: Path of the module now running, for messages; set it from module hooks.
        count: Operations seen.
        used: How often each rule was used, by its operation's name.
        spread: How far one draw is expected to lie from the records.
        observer: Sees every operation, None for nobody.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: Counter[Unknown] = Counter()
        self.notes: Counter[str] = Counter()
        self.module = ""
        self.count = 0
        self.used: Counter[str] = Counter()
        self.spread = Spread()
        self.observer: Observer | None = None
        self._ran = running.Ran()
        self._storages: dict[int, Storage] = {}
        self._known: dict[object, tuple[list[Value | None], list[Value | None] | None]] = {}
        origins.begin()

    # --- records of tensors ---------------------------------------------------------------------------------

    def value(self, tensor: Tensor) -> Value | None:
        """Return the record of a tensor, or None where it has none."""
        key = key_of(tensor)
        entry = self._storages.get(key[0])
        if entry is None:
            return None
        found = entry.values.get(key)
        if found is None and key in entry.views:
            view = entry.views[key]
            base = self.value(view.base)
            if base is not None:
                found = self._evaluate(view.func, (view.base, *view.args[1:]), {}, tensor)[0]
                if found is not None:
                    entry.values[key] = found
        return found

    def _told(self, tensor: Tensor) -> Value | None:
        """Return the record of a tensor; a real number without one is known."""
        value = self.value(tensor)
        if value is None and not tensor.is_meta and tensor.dim() == 0:
            value = Concrete(tensor.detach().clone())
            self.assign(tensor, value)
        return value

    def moments(self, tensor: Tensor) -> Moments | None:
        """Return the moments of a tensor, or None where they are unknown."""
        with torch._C.DisableTorchFunction():  # the caller may be a hook, inside the modes
            key = key_of(tensor)
        entry = self._storages.get(key[0])
        value = None if entry is None else entry.values.get(key)
        if isinstance(value, Moments):
            return value
        with _disable_current_modes():
            value = self.value(tensor)
            try:
                return None if value is None or isinstance(value, Unknown) else as_moments(value)
            except NoRule:
                return None

    def assign(self, tensor: Tensor, value: Value) -> None:
        """Give a tensor its record."""
        key = key_of(tensor)
        entry = self._storages.get(key[0])
        if entry is None:
            entry = self._storages[key[0]] = Storage(tensor.untyped_storage())
        entry.values[key] = value

    def write(self, tensor: Tensor, value: Value) -> None:
        """Replace a tensor's record after a write in place.

        Other views of its storage follow, its base included.
        """
        entry = self._storages.get(key_of(tensor)[0])
        if entry is None:
            self.assign(tensor, value)
            return
        chain: list[tuple[Tensor, Value]] = [(tensor, value)]
        current, known, seen = tensor, value, {key_of(tensor)}
        while (view := entry.views.get(key_of(current))) is not None:
            if key_of(view.base) in seen:
                break  # views that lead back to where they began, as einsum's permutations do
            seen.add(key_of(view.base))
            known = self._into_base(view, current, known)
            current = view.base
            chain.append((current, known))
        stale = [k for k in entry.values if not disjoint(k, key_of(tensor))]
        for key in stale:
            del entry.values[key]
        for target, its in chain:
            self.assign(target, its)

    def _into_base(self, view: StorageView, part: Tensor, value: Value) -> Value:
        """Return the base's record after its view was overwritten."""
        name = name_of(view.func)
        base = self.value(view.base)
        if isinstance(value, Unknown):
            return value
        if base is None or isinstance(base, Unknown):
            return Unknown(name, self.module, "a write to a part of an unknown tensor")
        if isinstance(value, Concrete) and isinstance(base, Concrete):
            return Concrete(view.written(base.tensor, value.tensor))
        if isinstance(value, Shifted) or isinstance(base, Shifted):
            made = self._into_random(view, part, *(masked.random_of(v) for v in (base, value)))
            return masked.with_mask_written(made, base, value, lambda t: view.func(t, *view.args[1:]))
        return self._into_random(view, part, base, value)

    def _into_random(self, view: StorageView, part: Tensor, base: Value, value: Value) -> Value:
        name = name_of(view.func)
        if name in reg.UNVIEWED and part.numel() == view.base.numel():
            return reg.unviewed(name, view.args, as_moments(value), tuple(view.base.shape))
        maker = rule_of(f"{name}_scatter")
        if maker is None:
            return self._no_rule(f"{name} (written in place)", "a write through this kind of view")
        context = Context(f"{name}_scatter", (tuple(view.base.shape),))
        try:
            made = maker.fn(context, as_moments(base), as_moments(value), *view.args[1:])
        except NoRule as reason:
            return self._no_rule(f"{name}_scatter", str(reason))
        return made if isinstance(made, Moments) else Unknown(name, self.module, "no record")

    # --- dispatch -------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count += 1
        name = name_of(func)
        if name == "_local_scalar_dense":
            return self._scalar(args[0])
        if name == "set_":
            return func(*args, **kwargs)  # its first argument now has the second's storage, and its record
        if name in _RESHAPING:
            return self._reshape(func, args, kwargs)
        if rule_of(name) is None and not is_pointwise(func, name):
            with self:
                out = running.decomposed(func, args, kwargs)
            if out is not NotImplemented:
                return out
        args, kwargs, out = self._run(func, args, kwargs)
        if self.observer is not None:
            self.observer(func, args, kwargs, out)
        outputs = list(tensors_in(out))
        if not outputs:
            return out
        inplace = func._schema.is_mutable and name.endswith("_") and isinstance(args[0], Tensor)
        if func.is_view and isinstance(out, Tensor) and self._has(out):
            return out  # the same view was taken before, or it is all of what it is a view of
        values = self._evaluate(func, args, kwargs, out)
        if inplace:
            if values[0] is not None:
                self.write(args[0], values[0])
            return out
        self._assign_all(outputs, values)
        if args and isinstance(args[0], Tensor):
            self._remember_view(func, args, outputs)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Run an operation on its carrier; return its arguments, all on one device, and its outputs."""
        try:
            return args, kwargs, self._ran.run(func, args, kwargs, self._values_of)
        except RuntimeError:
            if not self._mixed(func, args, kwargs):
                raise
        args, kwargs = (mapped(x, self._on_meta) for x in (args, kwargs))
        return args, kwargs, self._ran.run(func, args, kwargs, self._values_of)

    def _mixed(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether meta tensors meet real ones, which a model's code made without naming a device."""
        tensors = list(tensors_in((args, kwargs)))
        written = func._schema.is_mutable and not tensors[0].is_meta
        return not written and any(t.is_meta for t in tensors) and not all(t.is_meta for t in tensors)

    def _on_meta(self, tensor: Tensor) -> Tensor:
        """Return a twin of a real tensor on meta, which has its values as its record."""
        if tensor.is_meta:
            return tensor
        with _disable_current_modes():
            twin, known = torch.empty_like(tensor, device="meta"), tensor.detach().clone()
        value = self.value(tensor)
        self.assign(twin, Concrete(known) if value is None else value)
        return twin

    def _assign_all(self, outputs: list[Tensor], values: list[Value | None]) -> None:
        """Give the outputs of an operation their records."""
        for tensor, value in zip(outputs, values, strict=True):
            if not (tensor.is_meta or tensor.is_floating_point() or tensor.is_complex()):
                value = Concrete(tensor.detach().clone())  # the real carrier: integers and masks have values
            if value is not None:
                self.assign(tensor, value)

    def _reshape(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a tensor become another view of its storage."""
        before, func_of = args[0].detach(), functional(func)
        out = func(*args, **kwargs)
        if self.observer is not None:
            self.observer(func_of, (before, *args[1:]), kwargs, out)
        (value,) = self._evaluate(func_of, (before, *args[1:]), kwargs, out)
        if value is not None:
            self.assign(out, value)
        self._remember_view(func_of, (before, *args[1:]), [out])
        return out

    def _values_of(self, tensor: Tensor) -> Tensor | None:
        value = self.value(tensor)
        return value.tensor if isinstance(value, Concrete) else None

    def _has(self, tensor: Tensor) -> bool:
        key = key_of(tensor)
        entry = self._storages.get(key[0])
        return entry is not None and key in entry.values

    def _remember_view(self, func: Any, args: tuple[Any, ...], outputs: list[Tensor]) -> None:
        base = args[0]
        storage = base.untyped_storage()._cdata
        if storage not in self._storages or func._schema.name == "aten::unsafe_split":
            return
        start = 0
        for k, tensor in enumerate(outputs):
            if tensor.untyped_storage()._cdata != storage:
                continue
            key, how = key_of(tensor), (func, args)
            if len(outputs) > 1:
                how = part_of_split(func, args, tensor, k, start)
                start += tensor.shape[how[1][1]] if how[0] is torch.ops.aten.slice.Tensor else 0
            if key != key_of(base):
                alone = base.detach()  # without a history, as for `Storage`
                self._storages[storage].views.setdefault(
                    key, StorageView(alone, how[0], (alone, *how[1][1:]))
                )

    def _scalar(self, tensor: Tensor) -> Any:
        value = self.value(tensor)
        if isinstance(value, Concrete):
            return value.tensor.item()
        if not tensor.is_meta:
            return tensor.item()
        m = self.moments(tensor)
        if m is not None and float(m.variance.max()) <= 1e-12 * max(1.0, float(m.square.max())):
            return float(m.mean.reshape(-1)[0])
        raise NoRule(
            "the model reads the value of a tensor that only real tensors have (.item() or a branch on data)"
        )

    # --- evaluating -----------------------------------------------------------------------------------------

    def _evaluate(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> list[Value | None]:
        """Return the records of an operation's outputs."""
        name = name_of(func)
        outputs = list(tensors_in(out))
        inputs = [self._told(t) for t in tensors_in((args, kwargs))]
        if name in factories.LIKE or not inputs:
            key = (identity((func, args, kwargs), lambda _: 0), tuple(outputs[0].shape))
            if key not in self._known:
                self._known[key] = ([], factories.made(func, args, kwargs, outputs))
            made = self._known[key][1]
            if made is not None:
                return made
        known = [v for v in inputs if v is not None]
        if inputs and len(known) == len(inputs) and all(isinstance(v, Concrete | Lazy) for v in known):
            made = self._remembered(func, args, kwargs, outputs)
            if made is not None:
                return made
        for value in known:
            if isinstance(value, Unknown):
                return [value] * len(outputs)
        made = self._by_rule(func, name, args, kwargs, outputs)
        if isinstance(out, tuple | list) and len(made) == len(out):  # masked gradients are None
            return [v for v, o in zip(made, out, strict=True) if isinstance(o, Tensor)]
        return made[: len(outputs)]

    def _remembered(
        self, func: Any, args: Any, kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> list[Value | None] | None:
        """Run an operation on known values once: layers repeat what they do with masks and positions."""
        key = identity((func, args, kwargs), lambda t: id(self.value(t)))
        if key not in self._known:
            inputs = [
                self.value(t) for t in tensors_in((args, kwargs))
            ]  # kept, so that an id is not used again
            self._known[key] = (inputs, self._on_values(func, args, kwargs, outputs))
        return self._known[key][1]

    def _on_values(
        self, func: Any, args: Any, kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> list[Value | None] | None:
        """Run an operation on known values, where they are small enough to hold."""
        name = name_of(func)
        held = all(isinstance(self.value(t), Concrete) for t in tensors_in((args, kwargs)))
        if not held or (max(t.numel() for t in outputs) > LIMIT and not func.is_view):
            if len(outputs) != 1 or func._schema.is_mutable:
                return None
            known, options = mapped((args, kwargs), self.value)
            made = symbolic.evaluate(func, known, options, tuple(outputs[0].shape))
            return None if made is None else [made]
        if name.endswith("_") and func._schema.is_mutable:
            found = functional(func)
            if found is None:
                return None
            func = found
        if torch.Tag.nondeterministic_seeded in func.tags:
            return None  # a draw is told by its distribution
        real = mapped((args, kwargs), lambda t: self._real(t))
        if name.startswith(("as_strided", "_reshape_alias")):  # strides are those of the carrier
            real = ((real[0][0].contiguous(), *real[0][1:]), real[1])
        if "device" in real[1]:
            real[1]["device"] = "cpu"
        result = running.on_cpu(func, *real)
        return [*of_numbers(name, args, self.value, tensors_in(result))]

    def _real(self, tensor: Tensor) -> Tensor:
        value = self.value(tensor)
        assert isinstance(value, Concrete)
        return value.tensor

    def _by_rule(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> list[Value | None]:
        found = rule_of(name)
        context = Context(
            name if found is None or name in found.ops else name[:-1], tuple(tuple(t.shape) for t in outputs)
        )
        try:
            both = None if found is None else self._masked(func, found, context, args, kwargs)
            if both is not None:
                return [both]
            raw = found.raw if found else ()
            kept = (Shifted, Concrete, Lazy) if found is None else ()
            ready = [self._argument(a, k in raw, kept) for k, a in enumerate(args)]
            named = {k: self._argument(v, False) for k, v in kwargs.items()}
            if found is None and is_pointwise(func, name):
                check_complex(name, tensors_in((args, kwargs)))
                if name.endswith("_"):
                    context.op = name[:-1]
                    func = functional(func) or func
                result = pointwise(context, func, tuple(ready), named)
            elif found is None:
                raise NoRule("no rule")
            else:
                result = found.fn(context, *ready, **named)
            check_numbers(result)
        except NoRule as reason:
            return [self._no_rule(name, str(reason))] * len(outputs)
        except Exception as fault:  # told as loudly, and costs no more than the results of this rule
            why = f"its rule failed with {type(fault).__name__}: {fault}".splitlines()[0][:200]
            return [self._no_rule(name, why)] * len(outputs)
        self.notes.update(context.notes)
        if found is not None:
            self.used[context.op] += 1
        results = listed(result)
        self.spread.follow(context.op, (ready, named), results)
        return results + [None] * (len(outputs) - len(results))

    def _masked(self, func: Any, rule: Rule, context: Context, args: Any, kwargs: Any) -> Shifted | None:
        """Regroup a tensor that has a known part beside it; None for any other operation."""
        value = self.value(args[0]) if args and isinstance(args[0], Tensor) else None
        if not isinstance(value, Shifted) or not masked.regroups(func):
            return None
        return masked.regrouped(
            func, value, args[1:], kwargs, context.shape, lambda m: rule.fn(context, m, *args[1:], **kwargs)
        )

    def _argument(self, x: Any, raw: bool, kept: tuple[type, ...] = ()) -> Any:
        if isinstance(x, Tensor):
            value = self.value(x)
            if value is None and (x.numel() == 0 or not x.is_meta):
                value = Concrete(torch.empty(x.shape, dtype=x.dtype) if x.is_meta else x.detach().clone())
            if value is None:
                raise NoRule(f"an input of shape {tuple(x.shape)} that nothing is known about")
            return value if raw or isinstance(value, kept) else as_moments(value)
        if isinstance(x, list | tuple) and any(isinstance(y, Tensor) for y in x):
            return [self._argument(y, raw, kept) for y in x]
        return x

    def _no_rule(self, name: str, reason: str) -> Unknown:
        made = Unknown(name, self.module, reason)
        self.unknown[made] += 1
        return made
