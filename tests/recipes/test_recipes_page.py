"""The page of recipes has a row for each, as the registry tells."""

import runpy
from pathlib import Path


def test_the_table_is_current():
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "recipes.py"))
    page = script["PAGE"].read_text(encoding="utf-8")
    assert script["with_table"](page) == page, "run: python benchmarks/recipes.py --write"
