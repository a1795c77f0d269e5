"""Every registered rule is held to a simulation."""

from collections import Counter

import pytest
from cases import CASES
from sequence_cases import SEQUENCE
from simulation import Case, check, predicted

from isometry.moments.rules.base import RULES

EVERY = [*CASES, *SEQUENCE]


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.name)
def test_rule_agrees_with_simulation(case: Case) -> None:
    if case.wrong:
        with pytest.raises(AssertionError, match="told"):
            check(case)
    else:
        check(case)


def test_every_rule_has_a_case() -> None:
    used: Counter[str] = Counter()
    for case in EVERY:  # predictions alone are quick; the simulations may have run in other processes
        used.update(predicted(case)[1].used)
    untested = sorted({rule.ops[0] for rule in RULES.values() if not any(op in used for op in rule.ops)})
    assert not untested
