"""Tables that change from forward to forward, as the recomputation of an earlier one has to see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakValueDictionary

from torch import Tensor

from vastmax.recomputation import KEPT, once

Tables = Mapping[str, Tensor]
Overwritten = Mapping[str, tuple[Tensor | None, Tensor]]
"""By name the rows that were overwritten, None for the whole table, and what had been there."""


class Version:
    """A state of the tables, which can be gone back to as long as this is held."""

    def __init__(self, number: int) -> None:
        self.number = number


class Versions:
    """The versions of a module's tables: the last one in the tables, the others by what has been overwritten since.

    A forward holds the version that it read, see `recomputation`. While none is held, nothing is kept; and never
    more than the last `KEPT` changes. A copy of the module has a history of its own.
    """

    def __init__(self) -> None:
        self._number = 0
        self._held: WeakValueDictionary[int, Version] = WeakValueDictionary()
        self._overwritten: dict[int, Overwritten] = {}

    def __reduce__(self) -> tuple[type[Versions], tuple[()]]:
        return Versions, ()

    def read(self, tables: Callable[[], Tables], after: Callable[[], object] | None = None) -> Tables:
        """Return the tables, or in the recomputation of a forward those that it read.

        Args:
            tables: what returns the tables as they are now.
            after: a change to them that comes first; not in a recomputation.

        Raises:
            RuntimeError: in a recomputation, if the forward is not remembered or is too many changes ago.
        """

        def change_and_hold() -> Version:
            if after is not None:
                after()
            return self._held.setdefault(self._number, Version(self._number))

        version = once(change_and_hold, self)
        return self._as_of(version, tables())

    def before_change(self, overwritten: Callable[[], Overwritten]) -> None:
        """Take down what a change, which is to follow, will overwrite: copies of rows, or tables left behind."""
        if self._held:
            self._overwritten[self._number] = overwritten()
        self._number += 1
        oldest = max(min(self._held.keys(), default=self._number), self._number - KEPT)
        for number in [number for number in self._overwritten if number < oldest]:
            del self._overwritten[number]

    def _as_of(self, version: Version, tables: Tables) -> Tables:
        found, copied = dict(tables), set()
        for number in range(self._number - 1, version.number - 1, -1):
            if number not in self._overwritten:
                raise RuntimeError(
                    f"a recomputation: expected that of a forward at most {KEPT} changes of the state ago, got one "
                    f"{self._number - version.number} changes ago: backpropagate earlier"
                )
            for name, (rows, values) in self._overwritten[number].items():
                if rows is None:
                    found[name] = values
                    copied.discard(name)
                    continue
                if name not in copied:
                    found[name] = found[name].clone()
                    copied.add(name)
                found[name][rows] = values
        return found
