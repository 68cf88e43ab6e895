"""A comparison as a page that needs nothing beside itself, and as a table for the terminal."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vastmax.tasks.files import whole

Terms = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Page:
    """What a page says, in its order.

    Attributes:
        heading: its title.
        verdict: a sentence on what the table shows.
        columns: headings of the table.
        rows: its cells, one row each.
        picture_title: what the picture shows.
        reading: each column and panel with what it means.
        compared: each of what was compared with what it is.
        data: where the rows came from.
    """

    heading: str
    verdict: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    picture_title: str
    reading: Terms
    compared: Terms
    data: str


def write_page(page: Page, results: dict[str, Any], figure: Figure, folder: Path) -> Path:
    """Write `picture.png` and `report.html`, each whole or not at all; return the report's path."""
    with whole(folder / "picture.png") as draft:
        figure.savefig(draft, dpi=140, format="png")
    picture = base64.b64encode((folder / "picture.png").read_bytes()).decode("ascii")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("vastmax.study") / "task.html.j2").read_text(encoding="utf-8"))
    report = folder / "report.html"
    with whole(report) as draft:
        draft.write_text(template.render(**asdict(page), results=results, picture=picture), encoding="utf-8")
    return report


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table for the terminal, numbers to the right."""
    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column.replace(" ", "\n"), justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
