"""What docs/sampling.md shows is run, so that it stays true."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"


def test_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    namespace = {"__name__": "__page__"}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), namespace)
