"""Whatever was found, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from isometry.errors import InvalidTypeError, InvalidValueError, described
from isometry.report.page import render
from isometry.report.sections import Section, section

__all__ = ["Section", "report", "section"]


def report(results: object, path: str | Path, *, title: str = "Isometry report") -> Path:
    """Write what was found as one self-contained HTML page: sentences, pictures, tables.

    A page holds its pictures and its style, asks no other server for anything and runs no script, so it can
    be mailed or kept beside a run.

    Args:
        results: What `measure`, `predict`, `audit`, `scaling`, `plan` or `compare` returned, the history of a
            watch, a `Table`, a text; or a sequence of these, or a mapping from headings to them.
        path: Where the page goes, with its folder if there is none yet.
        title: The page's title.

    Returns:
        The path.

    Raises:
        InvalidTypeError: A result is none of these.
        InvalidValueError: There is none.
        MissingExtraError: jinja2 or matplotlib is not installed.

    Example:
        >>> import tempfile, torch, isometry
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh())
        >>> profile = isometry.measure(model, torch.randn(4, 8))
        >>> page = report(profile, Path(tempfile.mkdtemp()) / "report.html")
        >>> "Measured signal" in page.read_text(encoding="utf-8")
        True
    """
    page = render([section(result, heading) for heading, result in _named(results)], title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def _named(results: object) -> list[tuple[str | None, object]]:
    """Return (heading or None, result) of everything that is to be shown."""
    named: list[tuple[str | None, object]]
    if isinstance(results, Mapping):
        named = [(str(heading), result) for heading, result in results.items()]
    elif section.dispatch(type(results)) is not section.dispatch(object):
        named = [(None, results)]  # comparisons and profiles are sequences, too
    elif isinstance(results, Sequence):
        named = [(None, result) for result in results]
    else:
        raise InvalidTypeError(
            "results must be something to report, a sequence or a mapping of such, got " + described(results)
        )
    if not named:
        raise InvalidValueError("results is empty: there is nothing to report")
    return named
