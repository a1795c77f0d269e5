"""The record of a planned initialisation: one row per parameter, printed, compared, saved and applied."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import nn

from isometry.errors import InvalidTypeError, InvalidValueError, NotFoundError
from isometry.plans.comparing import against_model, against_rows
from isometry.plans.difference import PlanDiff
from isometry.plans.overriding import Override, overridden
from isometry.plans.row import Row, row_from_data, row_to_data
from isometry.plans.tabling import table_of
from isometry.plans.writing import groups_of, write_rows_
from isometry.sampling import Distribution
from isometry.strictjson import Record, expect, refuse_unknown
from isometry.tables import Table


@dataclass(frozen=True)
class Plan(Record):
    """What each parameter of a model is to be drawn from, and why.

    A sequence of `Row`; `plan["layers.0.weight"]` is one of them. `print(plan)` shows a table, in which
    layers that are alike share a line. A plan knows no model: it applies to every model with the same
    parameters, wrapped, sharded or on the meta device.

    Attributes:
        rows: One row per parameter, tied ones under their first name.
        recipe: What decided.
        objective: What the weights' scale keeps: "forward", "backward" or "balanced".
        notes: What the reader should know.

    Example:
        >>> from isometry.sampling import Constant, Normal
        >>> plan = Plan(
        ...     (Row("weight", (3, 4), "head", Normal(0.5), "unit second moment"),
        ...      Row("bias", (3,), "bias", Constant(0.0), "a bias starts at zero")),
        ...     recipe="lecun", objective="forward")
        >>> print(plan)
        Plan: recipe lecun, objective forward, 2 parameters
        ──────────────────────────────────────────────────────────
        Parameter  Shape  Role  Law     Std  Reason
        ──────────────────────────────────────────────────────────
        weight     3×4    head  normal  0.5  unit second moment
        bias       3      bias  = 0       0  a bias starts at zero
        ──────────────────────────────────────────────────────────
        >>> Plan.from_json(plan.to_json()) == plan
        True
        >>> plan.apply_(nn.Linear(4, 3)).bias.tolist()
        [0.0, 0.0, 0.0]
    """

    schema: ClassVar[str] = "isometry.plan"

    rows: tuple[Row, ...]
    recipe: str
    objective: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.rows, tuple) or not all(isinstance(row, Row) for row in self.rows):
            raise InvalidTypeError("rows must be a tuple of isometry.plans.Row")
        twice = [name for name, count in Counter(row.name for row in self.rows).items() if count > 1]
        if twice:
            raise InvalidValueError(f"the plan has two rows for {', '.join(map(repr, twice))}")

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows}

    def __repr__(self) -> str:
        return f"<Plan by {self.recipe!r}: {len(self.rows)} parameters>"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, key: str | int) -> Row:
        if isinstance(key, int):
            return self.rows[key]
        if key in self._by_name:
            return self._by_name[key]
        near = difflib.get_close_matches(str(key), list(self._by_name), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise NotFoundError(f"no parameter named {key!r} in this plan{hint}")

    @property
    def laws(self) -> dict[str, Distribution]:
        """What is drawn, by canonical name; parameters that are kept are left out."""
        return {row.name: row.law for row in self.rows if row.law is not None}

    def table(self) -> Table:
        """Lay the plan out as a table, one line per parameter or per run of layers that are alike.

        In such a line numbers that differ are shown as first…last in words, and as smallest…largest in the
        column of standard deviations; layers whose deviations differ by more than a factor 2 have lines of
        their own.

        Returns:
            The table; `str()` of it is plain text.
        """
        kept = sum(row.law is None for row in self.rows)
        title = f"Plan: recipe {self.recipe}, objective {self.objective}, {len(self.rows)} parameters"
        return table_of(self.rows, title + (f", {kept} kept" if kept else ""), self.notes)

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Table:
        return self.table()

    def diff(self, other: Plan | nn.Module) -> PlanDiff:
        """Compare with another plan, row by row, or with a model's present weights.

        Against weights: the mean lies within 5·σ·√(c/n) of the planned mean, and the root mean square
        deviation from it within σ·5·√((κ − 1)·c/n)/2 of the planned σ, for n entries of kurtosis κ of which
        c share one draw, and within the rounding of their dtype. That is asymptotic; weights drawn by the
        plan exceed it about once in a million. Rows of padding are left out. Of sharded weights all processes
        must ask at once.

        Args:
            other: The plan, or the model.

        Returns:
            What differs; false where nothing does.

        Raises:
            InvalidTypeError: `other` is neither.
            ModelError: A parameter of the model is lazy or on the meta device.
        """
        if isinstance(other, Plan):
            return against_rows(self.rows, other.rows)
        if isinstance(other, nn.Module):
            return against_model(self.rows, other)
        raise InvalidTypeError(
            f"a plan is compared with a Plan or a torch.nn.Module, got {type(other).__name__}"
        )

    def override(self, laws: Mapping[str, Override]) -> Plan:
        """Return a plan in which some parameters have another law.

        Args:
            laws: By name pattern (fnmatch), or by role: "role:" and a pattern for the whole role or for one
                of the parts between its commas and arrows. A number is a standard deviation: the planned law
                scaled where it is centred and not constant, otherwise normal around its mean. None keeps the
                parameter as it is. The first pattern that matches decides.

        Returns:
            The new plan.

        Raises:
            NotFoundError: A pattern matches nothing.
            InvalidTypeError: Something that is no law.
            InvalidValueError: A law that does not fit a parameter's shape.

        Example:
            >>> from isometry.sampling import Normal
            >>> plan = Plan((Row("head.weight", (3, 4), "head", Normal(0.5), ""),), "auto", "forward")
            >>> plan.override({"head.*": 0.02})["head.weight"].law
            Normal(std=0.02, mean=0.0)
        """
        return replace(self, rows=overridden(self.rows, laws))

    def apply_(
        self,
        model: nn.Module,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> nn.Module:
        """Give a model's parameters their planned values: all of them, or none.

        Everything is checked before the first write. If writing is interrupted the model is marked, see
        `isometry.sampling.incomplete`. Frozen parameters are written too; those whose law is None stay. Rows
        of padding become zero, running statistics of norms begin anew where their scale was written.

        Args:
            model: A model with the parameters of the plan, also wrapped (DDP, `fully_shard`, tensor-parallel,
                `torch.compile`) or on the meta device.
            seed: Any integer; the same seed gives the same weights, sharded or not.
            device: Where to allocate a model on the meta device; None: the CPU.
            build: Builds the model again, for the buffers of a model on the meta device, see `materialize_`.

        Returns:
            The model itself.

        Raises:
            NotFoundError: A row without a parameter, or a parameter without a row.
            InvalidTypeError: `model` is no module, `seed` no integer, or a parameter cannot hold its law.
            InvalidValueError: Another shape, a law that cannot be drawn, or a device for a model with memory.
            ModelError: A lazy parameter, one that should be kept but is on the meta device, buffers without
                values, or a parametrisation without an inverse. The model is as before.
        """
        write_rows_(self.rows, model, seed=seed, device=device, build=build)
        return model

    def parameter_groups(
        self, model: nn.Module, lr: float, *, weight_decay: float = 0.0, **options: Any
    ) -> list[dict[str, Any]]:
        """Group a model's trainable parameters by learning rate, for any optimizer of torch.

        Args:
            model: A model with the parameters of the plan.
            lr: The learning rate; each group has it times the rows' `rate`.
            weight_decay: Of every group.
            **options: Other options of every group, such as betas.

        Returns:
            The groups, to be passed as `torch.optim.AdamW(groups)`.

        Raises:
            NotFoundError: A row without a parameter, or a parameter without a row.
            InvalidValueError: Another shape, or an `lr` that is not finite.

        Example:
            >>> from isometry.sampling import Normal
            >>> rows = (Row("weight", (3, 4), "head", Normal(0.5), "", rate=0.25),)
            >>> groups = Plan(rows, "mup", "forward").parameter_groups(nn.Linear(4, 3, bias=False), 0.1)
            >>> torch.optim.SGD(groups).param_groups[0]["lr"]
            0.025
        """
        return groups_of(self.rows, model, lr, weight_decay, options)

    def contents(self) -> dict[str, Any]:
        """The entries of the JSON form besides schema and version."""
        return {
            "recipe": self.recipe,
            "objective": self.objective,
            "rows": [row_to_data(row) for row in self.rows],
            "notes": list(self.notes),
        }

    @classmethod
    def from_contents(cls, table: Mapping[str, Any]) -> Self:
        """Make a plan from what `contents` gave."""
        refuse_unknown(table, ("schema", "version", "recipe", "objective", "rows", "notes"), "the plan")
        rows = expect(table.get("rows"), list, "rows")
        return cls(
            rows=tuple(row_from_data(row, f"rows[{index}]") for index, row in enumerate(rows)),
            recipe=expect(table.get("recipe"), str, "recipe"),
            objective=expect(table.get("objective"), str, "objective"),
            notes=tuple(expect(note, str, "a note") for note in expect(table.get("notes"), list, "notes")),
        )
