"""Cells between commas, tabs and the like: which mark is between them, whether quotes hold them, and the header."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import polars as pl

from vastmax.data.files import suffix_of
from vastmax.validation import shown

MARKS = (",", ";", "\t", "|")  # of a .csv file, as the spreadsheets of some countries write it
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
LOOKED_AT = 50  # rows that say which mark is between cells
NAME = re.compile(r"[^\W\d]\w{0,30}([ ./:-]{1,2}\w{1,20}){0,3}")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a file, all of them text, an empty one None.

    Attributes:
        path: the file.
        frame: a column for each, named "1", "2", ...; blank rows are left out.
        places: the number of each row in the file, from 1.
    """

    path: Path
    frame: pl.DataFrame
    places: pl.Series


def read_cells(path: Path, text: str) -> Cells:
    """Split a text into rows of cells: at commas or their like in a .csv file, else at tabs.

    Quotes hold cells as RFC 4180 says; where tabs are between cells, only if all rows then are whole and of one
    length, for texts may begin with a quote.

    Raises:
        ValueError: rows with more cells than the first, or a quote that is not closed, with the row.
    """
    if suffix_of(path) == ".csv":
        return _parse(path, text, mark_of(text), quoted=True)
    if '"' in text:
        with suppress(csv.Error):
            if len({len(row) for row in _rows(text, "\t", quoted=True) if row}) == 1:
                return _parse(path, text, "\t", quoted=True)
    return _parse(path, text, "\t", quoted=False)


def mark_of(text: str) -> str:
    """Return the mark that gives the first rows the same number of cells, of at least 2; a comma if none does."""
    for mark in MARKS:
        with suppress(csv.Error):
            widths = {len(row) for row in islice(_rows(text, mark, quoted=True), LOOKED_AT) if row}
            if len(widths) == 1 and widths.pop() > 1:
                return mark
    return ","


def _parse(path: Path, text: str, mark: str, *, quoted: bool) -> Cells:
    try:
        width = len(next((row for row in _rows(text, mark, quoted=quoted) if row), [""]))
        names = [str(index + 1) for index in range(width)]
        # polars is many times faster, but loses count of the rows where a quote stands inside a cell
        frame = _by_csv(text, mark, names) if quoted and '"' in text else _by_polars(text, mark, names)
    except (csv.Error, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{shown(path)}: {_fault(text, mark, error, quoted=quoted)}") from error
    frame = frame.with_row_index("row", 1).filter(pl.any_horizontal(pl.exclude("row").str.contains(r"\S")))
    return Cells(path, frame.drop("row"), frame["row"])


def _by_polars(text: str, mark: str, names: list[str]) -> pl.DataFrame:
    return pl.read_csv(
        io.BytesIO(text.encode()),
        has_header=False,
        separator=mark,
        quote_char=None,
        schema=dict.fromkeys(names, pl.String),
    )


def _by_csv(text: str, mark: str, names: list[str]) -> pl.DataFrame:
    columns: list[list[str | None]] = [[] for _ in names]
    for row in _rows(text, mark, quoted=True):
        if len(row) > len(names):
            raise csv.Error("too many cells")
        for column, cell in zip_longest(columns, row):
            column.append(cell or None)
    return pl.DataFrame(dict(zip(names, columns, strict=True)), schema=dict.fromkeys(names, pl.String))


def _rows(text: str, mark: str, *, quoted: bool) -> Iterator[list[str]]:
    lines = (line[0] for line in re.finditer(r"[^\n]*\n|[^\n]+$", text))
    limit = csv.field_size_limit(len(text) + 1)  # of the whole process
    try:
        if quoted:
            yield from csv.reader(lines, delimiter=mark, strict=True)
        else:
            yield from csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE)
    finally:
        csv.field_size_limit(limit)


def _fault(text: str, mark: str, error: Exception, *, quoted: bool) -> str:
    """Say in which row a table ends to be one."""
    number = width = 0
    try:
        for number, row in enumerate(_rows(text, mark, quoted=quoted), start=1):
            width = width or len(row)
            if len(row) > width:
                hint = "" if mark == "\t" else "; a cell that holds one goes between double quotes"
                return (
                    f"row {number:,}: expected {width} cells with a {NAMES[mark]} between, as in the first row, "
                    f"got {len(row)}: {shown(mark.join(row))}{hint}"
                )
    except csv.Error as wrong:
        return f"row {number + 1:,}: expected whole double quotes around a cell, got others: {shown(str(wrong))}"
    return f"expected cells with a {NAMES[mark]} between, got others: {shown(str(error))}"


def has_header(cells: Cells, known: Collection[str], others: Sequence[Cells]) -> bool:
    """Tell whether the first row names the columns.

    It does if its cells are like names or empty, none of them met again below in its column, and if one of them is
    of the `known` names, or it is the first row of another file too, or, in a file alone, it stands above a column
    of numbers or of a few values that come again and again.
    """
    if len(cells.frame) < 2:
        return False
    first = cells.frame.row(0)
    if not all(cell is None or NAME.fullmatch(cell.strip()) for cell in first):
        return False
    same = [other for other in others if len(other.frame) and other.frame.row(0) == first]
    if any(_comes_again(other) for other in (cells, *same)):
        return False
    if same or any(cell and cell.strip().lower() in known for cell in first):
        return True
    below = cells.frame.slice(1)
    return not others and any(_numbers(column) or _few_values(column) for column in below)


def _comes_again(cells: Cells) -> bool:
    """Tell whether a cell of the first row is met in its column again."""
    pairs = zip(cells.frame.row(0), cells.frame.slice(1), strict=True)
    return any(cell is not None and (column == cell).any() for cell, column in pairs)


def _numbers(column: pl.Series) -> bool:
    there = column.drop_nulls()
    return len(there) > 0 and bool(there.str.contains(rf"^\s*{NUMBER.pattern}\s*$").all())


def _few_values(column: pl.Series) -> bool:
    """Tell whether nearly every cell of a column is found in it more than once."""
    return len(column) >= 10 and column.is_duplicated().sum() >= 0.9 * len(column)
