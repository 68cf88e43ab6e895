"""Tensors of a module that are no parameters, and that no wrapper has to keep alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn


class WithTables(nn.Module):
    """A module with tables: they follow it to its device, with their values and in their own dtype.

    They are not among the buffers of the model that the module is part of. `DistributedDataParallel` sends all
    those to every process before each forward: with V numbers a step would no longer be sublinear. Who asks this
    module alone, with `recurse=False`, finds them among its buffers: so FSDP does, to move them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._saved: dict[str, bool] = {}

    def _register_table(self, name: str, table: Tensor | None, *, saved: bool = False) -> None:
        """Keep a table, by default no part of the state dict: a head's is that of `nn.Linear`."""
        self._saved[name] = saved
        setattr(self, name, table)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers; with `recurse=False` the tables too."""
        yield from super().named_buffers(prefix, recurse, remove_duplicate)
        if not recurse:
            for name in self._saved:
                if (table := getattr(self, name)) is not None:
                    yield f"{prefix}{'.' if prefix else ''}{name}", table

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A cast of the model is about its parameters: a rounded table would be another.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._saved:
            if (table := getattr(self, name)) is not None:
                setattr(self, name, table.to(fn(table).device))
        return self

    def _save_to_state_dict(self, *args: Any) -> None:
        with self._saved_as_buffers():
            super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        with self._saved_as_buffers():
            super()._load_from_state_dict(*args)

    @contextmanager
    def _saved_as_buffers(self) -> Iterator[None]:
        names = [name for name, saved in self._saved.items() if saved]
        self._buffers.update((name, self.__dict__.pop(name)) for name in names)
        try:
            yield
        finally:
            self.__dict__.update((name, self._buffers.pop(name)) for name in names)
