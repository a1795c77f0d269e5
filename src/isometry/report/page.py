"""From sections to one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from isometry.errors import MissingExtraError
from isometry.plots import svg
from isometry.report.sections import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG = 30  # rows; longer tables are folded away


def render(sections: Sequence[Section], title: str) -> str:
    """Lay sections out as a page.

    Args:
        sections: In the order in which they are read.
        title: The page's title.

    Returns:
        The HTML document.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", "report") from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, picture=picture, long=LONG) + "\n"


def picture(figure: Figure) -> str:
    """A picture as an address that holds it, which keeps the identifiers of several apart.

    Args:
        figure: The picture.

    Returns:
        A `data:` address.
    """
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure).encode()).decode()
