"""Labelled text as people keep it: a table with a column of texts and one of labels, or one for each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vastmax.data.columns import Role, find_columns, labels, texts, title
from vastmax.data.files import PARTS, check_encoding, check_exists, check_twins, layout_of, left_out, shown_name
from vastmax.data.records import Table
from vastmax.data.tables import DELIMITED, RECORDS, read_tables
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.validation import shown

Rows = list[tuple[str, str]]
SUFFIXES = (*DELIMITED, *RECORDS)
TEXT_NAMES = (
    *("text", "sentence", "review", "content", "comment", "tweet", "utterance", "document", "query", "question"),
    *("message", "body", "post", "headline", "title", "description", "abstract"),
)
LABEL_NAMES = (
    *("label", "class", "category", "intent", "sentiment", "target", "topic", "emotion", "tag", "genre", "labels"),
    *("rating", "stars", "score", "polarity", "y"),
)
BETWEEN_LABELS = ",;|"


@dataclass(frozen=True)
class LabelledText:
    """Rows of (text, label) by the part they belong to, one part named all if nothing says which.

    Attributes:
        parts: rows of each part.
        notes: what was read and how, and what was left out, one sentence each.
        swapped: a sentence if texts and labels look swapped, else empty.
    """

    parts: dict[str, Rows]
    notes: list[str]
    swapped: str


def read_labelled_text(path: Path, config: ClassifyConfig) -> LabelledText:
    """Read a table, or a folder with a table for each of train, valid (val, validation, dev) and test.

    Columns are those the configuration names, or else those that have a known name, or else the only two, the text
    first. What a table may be is said in `vastmax.data.tables`.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: a file that is empty, damaged or malformed, with the row; a part or a column that is missing;
            columns that look swapped, unless they were named.
    """
    check_exists(path, "labelled text to read")
    check_encoding(config.encoding)
    roles = [
        Role("text_column", config.text_column, TEXT_NAMES),
        Role("label_column", config.label_column, LABEL_NAMES),
    ]
    files = files_of(path) if path.is_dir() else None
    tables = read_tables(path, roles, encoding=config.encoding, parts=files)
    if "all" not in tables.parts:
        check_parts(path, list(tables.parts), "lists named train, val and test")
    first = tables.parts.get("train", tables.parts.get("all", []))[0]
    columns = find_columns(first, roles)
    parts = {
        part: [row for table in group for row in rows_of(table, columns_of(table, first, columns, roles), roles)]
        for part, group in tables.parts.items()
    }
    names = [title(first, column) for column in columns]
    notes = [*tables.notes, *(left_out(path, files.values()) if files else [])]
    notes += [f"texts from column {names[0]}, labels from column {names[1]}"]
    rows = parts.get("train", parts.get("all", []))
    swapped = swapped_columns(rows, names)
    known = first.named and all(
        first.names[column].lower() in role.known for column, role in zip(columns, roles, strict=True)
    )
    if swapped and not known and None in (config.text_column, config.label_column):
        raise ValueError(f"{shown(path)}: {swapped}")
    notes += [note for note in (swapped, several_labels(rows)) if note]
    return LabelledText(parts, notes, swapped)


def files_of(folder: Path) -> dict[str, list[Path]]:
    """Find the files of each part in a folder, or in the one folder below that has some."""
    parts = layout_of(folder, SUFFIXES, SUFFIXES)
    check_twins(parts)
    check_parts(folder, list(parts), f"files named train, valid and test, with suffix {', '.join(SUFFIXES)}")
    return parts


def check_parts(path: Path, parts: Sequence[str], expected: str) -> None:
    """Raise ValueError unless there are parts to train and to test on; valid can be drawn."""
    if missing := [part for part in PARTS if part not in parts]:
        if missing == ["valid"]:
            return
        raise ValueError(f"{shown(path)}: expected {expected}, found none for {' and '.join(missing)}")


def columns_of(table: Table, first: Table, columns: list[int], roles: Sequence[Role]) -> list[int]:
    """Return the columns of a table that are those chosen in the first: by name, or by place where one has none."""
    if first.named and table.named:
        return find_columns(
            table, [replace(role, wanted=first.names[column]) for role, column in zip(roles, columns, strict=True)]
        )
    if len(table.names) != len(first.names):
        raise ValueError(
            f"{shown(table.path)}: expected {len(first.names)} columns, as in {shown_name(first.path.name)}, got "
            f"{len(table.names)}"
        )
    return columns


def rows_of(table: Table, columns: list[int], roles: Sequence[Role]) -> Rows:
    """Return the rows of a table, without whitespace around."""
    text, label = texts(table, columns[0], roles[0]), labels(table, columns[1], roles[1])
    return [(one.strip(), other) for one, other in zip(text, label, strict=True)]


def swapped_columns(rows: Rows, names: list[str]) -> str:
    """Say so if hardly a label comes again, and the texts do or have far fewer words than the labels."""
    text, label = names
    num_texts, num_labels = len({text for text, _ in rows}), len({label for _, label in rows})
    words = [sum(len(cell.split()) for cell in column) for column in zip(*rows, strict=True)]
    if num_labels <= len(rows) / 2 or (num_texts > len(rows) / 2 and words[1] < 3 * words[0]):
        return ""
    return (
        f"expected texts in column {text} and labels in column {label}, got {num_texts:,} and {num_labels:,} "
        f"different ones in {len(rows):,} rows: they look swapped; if so: --text-column {label} "
        f"--label-column {text}"
    )


def several_labels(rows: Rows) -> str:
    """Say so if some cells look as if they had several labels each."""
    classes = {label for _, label in rows}
    several = {
        label for label in classes if any(_looks_like_several(label, mark, classes) for mark in BETWEEN_LABELS)
    }
    if not several:
        return ""
    count = sum(label in several for _, label in rows)
    return f"{count:,} rows seem to have several labels, such as {shown(min(several))}: each is a class of its own"


def _looks_like_several(label: str, mark: str, classes: set[str]) -> bool:
    """Tell whether a label is words with a mark between, or other labels."""
    parts = [part.strip() for part in label.split(mark)]
    if len(parts) < 2 or not all(parts):
        return False
    return not any(map(str.isspace, "".join(parts))) or all(part in classes for part in parts)
