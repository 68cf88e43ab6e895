"""The folder of results: a file per measure, written whole, and the report over all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measures import MEASURES
from benchmarks.rows import Row
from benchmarks.settings import Settings
from vastmax.tasks.files import write_json

SAME_MACHINE = ("processor", "cores", "threads", "gpu", "python", "packages")
"""What must agree of two machines for their figures to stand beside each other."""


class Results:
    """What has been measured so far.

    Args:
        folder: where; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.measures = folder / "measures"
        self.measures.mkdir(parents=True, exist_ok=True)

    def path(self, measure: str) -> Path:
        """The file of a measure."""
        return self.measures / f"{measure}.json"

    def keep(self, measure: str, settings: Settings, machine: dict[str, Any], found: dict[str, Any]) -> None:
        """Write what a measure found."""
        write_json(self.path(measure), {"settings": settings.published(), "machine": machine, **found})

    def read(self, measure: str) -> dict[str, Any] | None:
        """Return what a measure found, None if it has not been made.

        Raises:
            ValueError: a file that is damaged.
        """
        path = self.path(measure)
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: expected the result of a measure in JSON; delete it to go on") from error
        return content

    def done(self, measure: str, settings: Settings, machine: dict[str, Any]) -> bool:
        """Whether a measure has been made with these settings, on this machine and with these packages."""
        content = self.read(measure)
        if content is None or content["settings"] != settings.published():
            return False
        return all(content["machine"][name] == machine[name] for name in SAME_MACHINE)

    def all(self) -> dict[str, dict[str, Any]]:
        """What has been found, by measure."""
        found = {measure: self.read(measure) for measure in MEASURES}
        return {measure: content for measure, content in found.items() if content is not None}


def rows_in(content: dict[str, Any]) -> list[Row]:
    """The rows of a measure."""
    return [Row.from_json(row) for row in content["rows"]]
