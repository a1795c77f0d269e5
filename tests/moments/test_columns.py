"""Answers that settle are told for steps at which they were not computed."""

from __future__ import annotations

import numpy as np
import pytest

from isometry.moments.columns import Column


def asked(answers: list[float], *, unsteady: tuple[int, ...] = ()) -> tuple[list[int], list[float]]:
    """Return at which steps a column asks for these answers, and what it tells at all of them."""
    column, computed, found = Column(), [], []
    for step, answer in enumerate(answers):
        told = "unknown" if step in unsteady else column.told(step)
        if isinstance(told, str):
            computed.append(step)
            told = None if abs(answer) < 1e-4 else np.full(1, answer)
            column.add(step, told, steady=step not in unsteady)
        found.append(0.0 if told is None else float(told[0]))
    return computed, found


@pytest.mark.parametrize("limit", [0.0, 0.3])
@pytest.mark.parametrize("decay", [0.5, 0.8, 0.95])
def test_what_settles_is_asked_for_at_few_steps(limit: float, decay: float) -> None:
    answers = [limit + 0.6 * decay**k for k in range(400)]
    computed, found = asked(answers)
    assert len(computed) < 40
    assert found == pytest.approx(answers, rel=5e-3, abs=3e-4)  # a tenth of what counts as unrelated


def test_what_never_settles_is_asked_for_at_every_step() -> None:
    answers = [0.5 + 0.1 * float(np.sin(k)) for k in range(60)]
    computed, found = asked(answers)
    assert len(computed) == 60
    assert found == answers


def test_steps_that_are_not_steady_are_asked_for() -> None:
    answers = [0.5] * 30 + [0.2, 0.1] + [0.5] * 8
    computed, found = asked(answers, unsteady=(30, 31))
    assert {30, 31} <= set(computed)
    assert found == pytest.approx(answers)


def test_steps_asked_for_out_of_order_are_kept() -> None:
    column, value = Column(), np.full(1, 0.4)
    for step in (9, 3):
        column.add(step, value, steady=True)
    told = column.told(6)
    assert isinstance(told, np.ndarray)
    assert told == pytest.approx(value)
    assert isinstance(column.told(12), str)
