"""What a measurement says: figures with their floor, their ratios, and the targets they are held to."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Seconds:
    """The seconds of several rounds."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Summarise the seconds of each round."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


@dataclass(frozen=True)
class Floor:
    """The least seconds that the mathematics allow on this machine, and by what count."""

    seconds: float
    kind: str


@dataclass(frozen=True)
class Target:
    """A figure and the bound it is held to; `value` is None where it could not be measured."""

    what: str
    value: float | None
    bound: float
    at_most: bool = True
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound."""
        if self.value is None:
            return False
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass(frozen=True)
class Row:
    """One implementation in one measure.

    Attributes:
        measure: what is measured, with everything that is fixed.
        implementation: who does it.
        classes: V, where a measure has several.
        seconds: of its rounds; None if it could not be measured.
        floor: what it is held against.
        peak_bytes: the most that tensors held at once, beyond those there before.
        resident_bytes: the most that a process of its own had of the system, beyond what it had before.
        ratios: to named peers, and other figures without a unit.
        targets: the bounds that its figures are held to.
        note: why there is no figure, or what to know of it.
    """

    measure: str
    implementation: str
    classes: int | None = None
    seconds: Seconds | None = None
    floor: Floor | None = None
    peak_bytes: int | None = None
    resident_bytes: int | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    note: str = ""

    @property
    def over_floor(self) -> float | None:
        """The median over the floor."""
        if self.seconds is None or self.floor is None:
            return None
        return self.seconds.median / self.floor.seconds

    def as_json(self) -> dict[str, Any]:
        """Everything, with what follows from it, for those who read the file without this module."""
        content = asdict(self)
        content["over_floor"] = self.over_floor
        content["targets"] = [asdict(target) | {"met": target.met} for target in self.targets]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read what `as_json` made."""
        given = dict(content)
        del given["over_floor"]
        given["seconds"] = given["seconds"] and Seconds(**given["seconds"])
        given["floor"] = given["floor"] and Floor(**given["floor"])
        given["targets"] = tuple(
            Target(**{name: value for name, value in target.items() if name != "met"})
            for target in given["targets"]
        )
        return cls(**given)


def without_folders(line: str) -> str:
    """Shorten a message, and take the folders of this machine out of it: notes are published."""
    for folder, name in ((sys.prefix, "<python>"), (str(Path.cwd()), "."), (str(Path.home()), "~")):
        line = line.replace(folder, name)
    return line[:200]
