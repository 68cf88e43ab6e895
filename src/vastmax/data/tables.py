"""Tables as people keep them: CSV, TSV, JSON, JSON lines, Parquet and fastText's lines, one way for all tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vastmax.data.columns import Role
from vastmax.data.delimited import Cells, has_header, read_cells
from vastmax.data.files import ENCODING, few, read_text, shown_name, suffix_of
from vastmax.data.records import Table, read_json, read_labelled_lines, read_lines, read_parquet
from vastmax.validation import shown

DELIMITED = (".csv", ".tsv", ".txt")
RECORDS = (".json", ".jsonl", ".ndjson", ".parquet")
FASTTEXT = "__label__"


@dataclass(frozen=True)
class Tables:
    """Tables by the part of the data that they are: train, valid, test; or one part named all.

    Attributes:
        parts: tables of each part.
        notes: what was read and what was left out, one sentence each.
    """

    parts: dict[str, list[Table]]
    notes: list[str]


def read_tables(
    path: Path,
    roles: Sequence[Role],
    *,
    encoding: str = ENCODING,
    parts: Mapping[str, Sequence[Path]] | None = None,
) -> Tables:
    """Read a file, or the files of each part of a folder.

    A `.csv` file has commas between cells, or semicolons, tabs or bars; `.jsonl` and `.ndjson` have an object on
    each line; `.json` may have that too, or be a list of rows, or an object with such a list for each part. Any
    other file has tabs, or lines that begin with fastText's `__label__`. All but Parquet may be gzipped. A first
    row that names the columns is found in every file alike.

    Args:
        path: the file, or the folder.
        roles: what columns are wanted for; their names tell a header.
        encoding: of all but Parquet.
        parts: the files of a folder.

    Raises:
        ValueError: a file that is empty or malformed, with the row.
    """
    read: dict[str, list[Table | Cells]] = {}
    notes = [f"{part}: {few(path, files)}" for part, files in (parts or {}).items()]
    for part, files in (parts or {"all": [path]}).items():
        for file in files:
            found, others = _read_file(file, encoding)
            if parts is not None and "all" not in found:
                raise ValueError(f"{shown(file)}: expected rows of {part}, got lists for {' and '.join(found)}")
            for name, table in found.items():
                read.setdefault(part if name == "all" else name, []).append(table)
            if others:
                notes.append(f"left out: {shown_name(', '.join(others))} of {shown_name(file.name)}")
    every = [cells for tables in read.values() for cells in tables if isinstance(cells, Cells)]
    headed = _headers(every, roles)
    if headed:
        where = "the first row" if len(headed) == len(every) == 1 else f"the first row of {len(headed)} files"
        names = ", ".join(cell or "" for cell in headed[0].frame.row(0))
        notes.append(f"{where} was taken for a header: {shown_name(names)}")
    if 0 < len(headed) < len(every):
        without = [cells.path for cells in every if cells not in headed]
        notes.append(f"no header in {few(path, without)}: columns as in {shown_name(headed[0].path.name)}")
    named = {
        part: [_named(table, header=table in headed) if isinstance(table, Cells) else table for table in tables]
        for part, tables in read.items()
    }
    return Tables(named, notes)


def _read_file(path: Path, encoding: str) -> tuple[Mapping[str, Table | Cells], list[str]]:
    """Return the tables of a file by part, and the names of what else it holds."""
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return {"all": read_parquet(path)}, []
    text = read_text(path, encoding)
    if not text or text.isspace():
        raise ValueError(f"{shown(path)}: expected a table, got {'only whitespace' if text else 'an empty file'}")
    if suffix == ".json":
        return read_json(path, text)
    if suffix in RECORDS:
        return {"all": read_lines(path, text)}, []
    if suffix != ".csv" and text.lstrip().startswith(FASTTEXT):
        return {"all": read_labelled_lines(path, text, FASTTEXT)}, []
    return {"all": read_cells(path, text)}, []


def _headers(every: Sequence[Cells], roles: Sequence[Role]) -> list[Cells]:
    """Return the files whose first row names the columns."""
    known = {name for role in roles for name in (*role.known, role.wanted.strip().lower() if role.wanted else "")}
    return [cells for cells in every if has_header(cells, known, [other for other in every if other is not cells])]


def _named(cells: Cells, *, header: bool) -> Table:
    frame, places = cells.frame, cells.places
    names = tuple(frame.columns)
    if header:
        names = tuple((cell or "").strip() for cell in frame.row(0))
        frame, places = frame.slice(1), places.slice(1)
    return Table(cells.path, names, header, "row {:,}", places, frame.to_series)
