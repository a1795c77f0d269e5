"""Every registered rule is held to a simulation."""

from collections import Counter

import pytest
from cases import CASES
from sequence_cases import SEQUENCE
from simulation import Case, check, predicted

from isometry.moments.rules.base import RULES

_USED: Counter[str] = Counter()


@pytest.mark.parametrize("case", [*CASES, *SEQUENCE], ids=lambda case: case.name)
def test_rule_agrees_with_simulation(case: Case) -> None:
    if case.wrong:
        _USED.update(predicted(case)[1].used)
        with pytest.raises(AssertionError, match="told"):
            check(case)
    else:
        _USED.update(check(case))


def test_every_rule_has_a_case() -> None:
    if len(_USED) == 0:
        pytest.skip("needs the simulations of this file to have run")
    untested = sorted({rule.ops[0] for rule in RULES.values() if not any(op in _USED for op in rule.ops)})
    assert not untested
