"""What a run of the measurements is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Options that all measures share.

    Attributes:
        threads: of every library.
        rounds: counted rounds at least.
        seconds: go on with more rounds until so much time has gone by.
        full: the larger sizes and the slower peers too.
        scale: factor on the numbers of rows and classes, for a trial run.
        language_model: folder of a run of `vastmax train lm` to take a batch and weights from.
    """

    threads: int
    rounds: int
    seconds: float
    full: bool = False
    scale: float = 1.0
    language_model: str | None = None

    def scaled(self, number: int, least: int = 16) -> int:
        """Return so many rows or classes, or fewer in a trial run."""
        return max(min(least, number), round(number * self.scale))

    def published(self) -> dict[str, Any]:
        """All options as results say them: a run by its name, without the folders of this machine."""
        run = self.language_model and Path(self.language_model).name
        return self.as_json() | {"language_model": run}

    def as_json(self) -> dict[str, Any]:
        """All options."""
        return asdict(self)
