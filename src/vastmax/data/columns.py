"""Columns of a table: which of them a task means, and what their cells hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from vastmax.data.records import Table
from vastmax.validation import shown

TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum, pl.Null)


@dataclass(frozen=True)
class Role:
    """What a task takes a column for.

    Attributes:
        option: the option that names the column.
        wanted: what the user gave it: a name, or a number from 1; None to find the column.
        known: names, in lower case, by which it is found, the likeliest first.
    """

    option: str
    wanted: str | None
    known: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The option as the command has it."""
        return f"--{self.option.replace('_', '-')}"


def find_columns(table: Table, roles: Sequence[Role]) -> list[int]:
    """Return the column of each role: the one named, one of a known name, or the only ones that are left.

    Raises:
        ValueError: a column that is not there, or columns that nothing tells apart.
    """
    chosen = {role: _wanted(table, role) for role in roles if role.wanted is not None}
    lower = [name.lower() for name in table.names]
    for role in roles:
        known = [name for name in role.known if name in lower and lower.index(name) not in chosen.values()]
        if role not in chosen and known and table.named:
            chosen[role] = _only(table, known[0])
    missing = [role for role in roles if role not in chosen]
    left = [index for index in range(len(lower)) if index not in chosen.values()]
    if len(left) < len(missing):
        wanted = " and ".join(role.option.replace("_column", "") for role in roles)
        raise ValueError(
            f"{shown(table.path)}: expected a column each for {wanted}, got {len(lower)} in all; {_contents(table)}"
        )
    if missing and len(left) > len(missing):
        flags = " and ".join(role.flag for role in missing)
        raise ValueError(f"{shown(table.path)}: expected {flags} to say which column, got none; {_contents(table)}")
    chosen |= dict(zip(missing, left, strict=False))
    return [chosen[role] for role in roles]


def title(table: Table, index: int) -> str:
    """Return a column as a message has it: its name in quotes, or its number."""
    return shown(table.names[index]) if table.named else table.names[index]


def texts(table: Table, index: int, role: Role, *, blank: bool = False) -> list[str]:
    """Return a column of texts, with blank ones if `blank` allows them.

    Raises:
        ValueError: a column of something else, or a cell without a text, with its row.
    """
    column = table.column(index)
    if column.dtype not in TEXT_TYPES:
        raise ValueError(
            f"{shown(table.path)}: expected {role.flag} to be a column of texts, got {title(table, index)} of "
            f"{_kind(column)}; {_contents(table)}"
        )
    _check_there(table, index, column, "a text", blank=blank)
    return column.cast(pl.String).to_list()


def labels(table: Table, index: int, role: Role) -> list[str]:
    """Return a column of labels; numbers and truth values as they are written.

    Raises:
        ValueError: a column of something else, or a cell without a label, with its row.
    """
    column = table.column(index)
    if column.dtype not in (*TEXT_TYPES, pl.Boolean) and not column.dtype.is_numeric():
        raise ValueError(
            f"{shown(table.path)}: expected {role.flag} to be a column with one label in a cell, got "
            f"{title(table, index)} of {_kind(column)}, such as {shown(column.to_list()[0])}"
        )
    if column.dtype.is_float():
        column = column.fill_nan(None)
    _check_there(table, index, column, "a label", blank=False)
    return [str(value).strip() for value in column.to_list()]


def _check_there(table: Table, index: int, column: pl.Series, expected: str, *, blank: bool) -> None:
    """Raise unless every cell of a column has a value."""
    missing = column.is_null()
    if column.dtype == pl.String and not blank:
        missing |= ~column.str.contains(r"\S")
    if missing.any():
        row = int(missing.arg_true()[0])
        raise ValueError(
            f"{table.where(row)}: expected {expected} in column {title(table, index)}, got an empty cell in "
            f"{_row(table, row)}"
        )


def _wanted(table: Table, role: Role) -> int:
    wanted = (role.wanted or "").strip()
    if table.named and wanted.lower() in [name.lower() for name in table.names]:
        return _only(table, wanted.lower())
    if wanted.isdecimal() and 1 <= int(wanted) <= len(table.names):
        return int(wanted) - 1
    raise ValueError(
        f"{shown(table.path)}: {role.option}: expected the name or the number of a column, got "
        f"{shown(role.wanted)}; {_contents(table)}"
    )


def _only(table: Table, name: str) -> int:
    places = [index for index, other in enumerate(table.names) if other.lower() == name]
    if len(places) > 1:
        numbers = ", ".join(str(place + 1) for place in places[:5])
        raise ValueError(
            f"{shown(table.path)}: expected one column named {shown(name)}, got {len(places)}: give the option its "
            f"number, one of {numbers}"
        )
    return places[0]


def _contents(table: Table) -> str:
    """Say which columns there are, in a line."""
    if table.named:
        return f"its columns are {shown(list(table.names))}"
    return f"it has no names of columns, and begins with {_row(table, 0)}"


def _row(table: Table, row: int) -> str:
    """Return the cells of a row as a message has them."""
    return shown([table.column(index)[row] for index in range(min(len(table.names), 10))])


def _kind(column: pl.Series) -> str:
    """Say what a column holds."""
    return "lists or objects" if column.dtype in (pl.List, pl.Array, pl.Struct, pl.Object) else str(column.dtype)
