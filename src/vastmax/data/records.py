"""Rows that come as records: JSON, JSON lines, Parquet, and lines with fastText's labels."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vastmax.data.files import SPLIT_WORDS, check_fits
from vastmax.validation import cut, shown


@dataclass(frozen=True)
class Table:
    """Columns of a file, each read when it is asked for.

    Attributes:
        path: the file.
        names: of the columns; "1", "2", ... where nothing names them.
        named: whether something does.
        place: what a row of a number is called, as "line {}".
        places: the number of each row.
        column: the values of the column at an index.
    """

    path: Path
    names: tuple[str, ...]
    named: bool
    place: str
    places: Sequence[int] | pl.Series
    column: Callable[[int], pl.Series]

    def where(self, index: int) -> str:
        """Say where a row stands."""
        return f"{shown(self.path)}: {self.place.format(self.places[index])}"


def read_parquet(path: Path) -> Table:
    """Read the columns of a Parquet file.

    Raises:
        ValueError: a file that is none, is damaged, has no rows, or is too large for memory.
    """
    check_fits(path)

    def read(columns: pl.Expr) -> pl.DataFrame:
        try:
            return pl.scan_parquet(path.resolve(), glob=False, hive_partitioning=False).select(columns).collect()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise ValueError(
                f"{shown(path)}: expected a whole Parquet file, got another: {shown(str(error))}"
            ) from error

    names = tuple(read(pl.all().head(0)).columns)
    rows = read(pl.len()).item() if names else 0
    if not rows:
        raise ValueError(f"{shown(path)}: expected rows, got none")
    return Table(path, names, True, "row {:,}", range(1, rows + 1), lambda index: read(pl.nth(index)).to_series())


def read_lines(path: Path, text: str) -> Table:
    """Read JSON lines.

    Raises:
        ValueError: a line that is no JSON object, with its number.
    """
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_parse(path, line, number))
            places.append(number)
    return table_of(path, rows, "line {:,}", places)


def read_json(path: Path, text: str) -> tuple[dict[str, Table], list[str]]:
    """Read a JSON file: a list of rows, an object with a list for each part, or in truth JSON lines.

    Returns:
        The table of each part, or of one named all; and the names of what the object holds beside its parts.

    Raises:
        ValueError: a file that is none of these.
    """
    first, _, rest = text.strip().partition("\n")
    if rest.strip() and _is_object(first):
        return {"all": read_lines(path, text)}, []
    content = _parse(path, text, 0)
    if isinstance(content, list):
        return {"all": table_of(path, content, "[{}]", range(len(content)))}, []
    if not isinstance(content, dict):
        raise ValueError(
            f"{shown(path)}: expected a list of rows or an object with train, val and test, got {shown(content)}"
        )
    parts: dict[str, Table] = {}
    for key, value in content.items():
        if (part := SPLIT_WORDS.get(key)) is None:
            continue
        if part in parts:
            raise ValueError(f"{shown(path)}: expected one list for {part}, got {shown(key)} beside another")
        if not isinstance(value, list):
            raise ValueError(f"{shown(path)}: {key}: expected a list of rows, got {shown(value)}")
        parts[part] = table_of(path, value, f"{key}[{{}}]", range(len(value)))
    if not parts:
        raise ValueError(
            f"{shown(path)}: expected rows, or lists of them named train, val and test, got an object with "
            f"{shown(list(content))}"
        )
    return parts, [key for key in content if key not in SPLIT_WORDS]


def read_labelled_lines(path: Path, text: str, mark: str) -> Table:
    """Read fastText's lines: words, those that begin with `mark` being labels, which stand joined by commas.

    Raises:
        ValueError: a line without a label or without another word, with its number.
    """
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        labels = [word.removeprefix(mark) for word in words if word.startswith(mark)]
        rest = " ".join(word for word in words if not word.startswith(mark))
        if not rest or not all(labels) or not labels:
            raise ValueError(
                f"{shown(path)}: line {number:,}: expected {mark} and a label, then a text, got {shown(line)}"
            )
        rows.append({"text": rest, "label": ",".join(labels)})
        places.append(number)
    return table_of(path, rows, "line {:,}", places)


def table_of(path: Path, rows: list[Any], place: str, places: Sequence[int]) -> Table:
    """Make a table of JSON objects, or of lists of one length.

    Raises:
        ValueError: no rows, or rows that are neither.
    """
    if not rows:
        raise ValueError(
            f"{shown(path)}: expected rows, got none" + (f" in {place[:-4]}" if place[:-4].isalpha() else "")
        )
    named = isinstance(rows[0], dict)
    if named:
        names = tuple(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    else:
        names = tuple(str(index + 1) for index in range(len(rows[0]) if isinstance(rows[0], list) else 0))

    def column(index: int) -> pl.Series:
        values = [row.get(names[index]) if named else row[index] for row in rows]
        return _series(table, names[index], values)

    table = Table(path, names, named, place, places, column)
    for index, row in enumerate(rows):
        if not (isinstance(row, dict) if named else isinstance(row, list) and len(row) == len(names) > 0):
            expected = "an object" if named or not names else f"a list of {len(names)} cells"
            raise ValueError(f"{table.where(index)}: expected {expected}, got {shown(row)}")
    return table


def _series(table: Table, name: str, values: list[Any]) -> pl.Series:
    """Return values of one kind; lists and objects as they are."""
    kinds: dict[type, int] = {}
    for index, value in enumerate(values):
        kinds.setdefault(type(value), index)
    kinds.pop(type(None), None)
    if len(kinds) > 1 and not kinds.keys() <= {int, float}:
        (one, _), (other, place) = list(kinds.items())[:2]
        raise ValueError(
            f"{table.where(place)}: expected values of one kind in column {shown(name)}, got {one.__name__} above "
            f"and {other.__name__} here: {shown(values[place])}"
        )
    if kinds.keys() & {list, dict}:
        return pl.Series(name, values, dtype=pl.Object)
    try:
        series = pl.Series(name, values, strict=False)
        if series.null_count() > values.count(None):
            raise OverflowError("it holds no number of more than 128 bits")
        return series
    except UnicodeEncodeError as error:  # half of a pair of surrogates, which JSON can spell
        place = values.index(error.object)
        raise ValueError(
            f"{table.where(place)}: expected text in column {shown(name)}, got half a character: "
            f"{shown(error.object)}"
        ) from error
    except (OverflowError, pl.exceptions.PolarsError) as error:
        raise ValueError(
            f"{shown(table.path)}: expected numbers of at most 64 bits in column {shown(name)}, got others"
        ) from error


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _parse(path: Path, text: str, line: int) -> Any:
    """Read JSON; `line` is the only one that `text` is, or 0."""
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{shown(path)}: line {line or error.lineno:,}: expected JSON, got text that is not: {error.msg}: "
            f"{shown(error.doc[max(0, error.pos - 20) : error.pos + 40])}"
        ) from error
    except (ValueError, RecursionError) as error:
        where = f"{shown(path)}: line {line:,}" if line else f"{shown(path)}"
        raise ValueError(f"{where}: expected JSON, got {cut(str(error))}") from error


def _distinct(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the name {shown(twice)} twice in one object")
    return content
