"""Text as people keep it: a file, a WikiText or PTB folder, a data set, any folder; as train, valid and test."""

import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from vastmax.data.files import (
    ENCODING,
    PARTS,
    NotTextError,
    check_encoding,
    check_exists,
    check_twins,
    few,
    find_files,
    is_text,
    layout_of,
    left_out,
    num_bytes,
    shown_name,
    stem_of,
    suffix_of,
    title,
    walk,
)
from vastmax.data.splits import cut_text, split_files, tokens_of
from vastmax.data.tables import RECORDS
from vastmax.data.text_reader import TextReader
from vastmax.validation import cut, shown

LINES_SUFFIXES = frozenset({".csv", ".raw", ".text", ".tokens", ".tsv", ".txt"})
DATA_SUFFIXES = LINES_SUFFIXES | set(RECORDS)
"""Suffixes under which a file that says train, valid or test is taken at its word: `train.py` is not data."""

TEXT_SUFFIXES = LINES_SUFFIXES | {
    *(".adoc", ".bib", ".htm", ".html", ".log", ".md", ".org", ".rst", ".srt", ".tex", ".xml"),
    *(".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".go", ".h", ".hpp", ".hs", ".java", ".js", ".jl", ".kt", ".lua"),
    *(".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".toml", ".ts"),
    *(".yaml", ".yml"),
}
TABLE_SUFFIXES = frozenset(RECORDS) - {".json"}  # which more often holds settings than rows
ABOUT = frozenset(
    {"authors", "changelog", "citation", "contents", "copying", "licence", "license", "notice", "readme"}
)
"""Names of files that tell of a folder rather than being of it."""

MIN_TOKENS = 3  # one for each split
MAX_FOREIGN_SHARE = 0.05  # of a folder's bytes not text; above it, what is left is not what was meant

ADVICE = "--split says where words end, and --tokens bpe takes any text"


@dataclass(frozen=True)
class Corpus:
    """Lines of text for training, validation and test, without their line ends; blank lines are kept.

    Attributes:
        name: short name, for tables.
        train: lines to train on.
        valid: lines to choose by.
        test: lines to report.
        source: where the text came from.
        notes: what was read, how it was split and what was left out, one sentence each.
    """

    name: str
    train: list[str]
    valid: list[str]
    test: list[str]
    source: str
    notes: list[str] = field(default_factory=list)


def read_corpus(
    path: str | os.PathLike[str],
    *,
    encoding: str = ENCODING,
    text_column: str | None = None,
    within_words: bool = False,
) -> Corpus:
    r"""Read a text file or a folder of them as train, valid and test lines.

    Text may have a byte order mark and be gzipped (told by its first bytes). Lines end with \n or \r\n. JSON,
    JSON lines and Parquet give the column of their texts; so does a `.csv` or `.tsv` file whose first row names
    one, or any such file with `text_column`. Otherwise they are lines of plain text.

    - *A file* is cut in order, 90% / 5% / 5% of its characters: at line ends or, where lines are too long for
      that, between words.
    - *A folder whose files say train, valid (val, validation, dev) or test in their names*, as WikiText and
      PTB do, is read as they say; so is one with Parquet or JSON lines named so in a folder of its own. A split
      that is missing is cut from the end of train.
    - *Any other folder*: of the files below it that are not hidden, either those with a suffix of texts, or Parquet
      and JSON lines, or texts without a suffix, whichever has the most bytes; README and the like are left out.
      They are split about 90 / 5 / 5 by whole files in an order fixed by a hash of their names; by lines where
      files are too few or too uneven. Files that are not text are left out and noted, unless they hold more
      than 5% of the bytes.

    Args:
        path: the file or folder.
        encoding: of text; Parquet has its own.
        text_column: name or number, from 1, of the column with the texts.
        within_words: whether a text without spaces may be cut anywhere, as is right for byte pairs.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: a file that is empty, binary, in another encoding or damaged; a table without such a column;
            fewer than 3 tokens or only one distinct; a folder without text files.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "song.txt"
        >>> _ = file.write_text("la la la\nda da da\n" * 50)
        >>> corpus = read_corpus(file)
        >>> corpus.name, len(corpus.train), len(corpus.valid), len(corpus.test)
        ('song', 90, 5, 5)
    """
    path = Path(path)
    check_exists(path, "text to read")
    check_encoding(encoding)
    reader = TextReader(encoding, text_column)
    if not path.is_dir():
        return _divide(path, stem_of(path), reader.parts(path), reader.notes(path.parent), within_words)
    name = path.resolve().name
    if (layout := _layout(path)) is not None:
        found = {part: "\n".join(map(reader.text, files)) for part, files in layout.items()}
        notes = [f"{part}: {few(path, layout[part])}" for part in layout]
        notes += [*reader.notes(path), *left_out(path, layout.values())]
        return _divide(path, name, found, notes, within_words)
    return _read_folder(path, reader, within_words)


def _divide(path: Path, name: str, found: dict[str, str], notes: list[str], within_words: bool) -> Corpus:
    """Make a corpus of the parts that were found, or of one text that is to be cut."""
    if "all" in found:
        _check_tokens(found["all"], path, within_words)
        found = dict(zip(PARTS, cut_text(found["all"], (0.90, 0.95), within_words=within_words), strict=True))
        notes = [*notes, "cut in order, 90 / 5 / 5"]
    elif "train" not in found:
        raise ValueError(f"{shown(path)}: expected a part for training, got {' and '.join(found)} alone")
    _check_tokens(found["train"], path, within_words)
    if missing := [part for part in PARTS if part not in found]:
        ends = (0.90, 0.95) if len(missing) == 2 else (0.95,)
        pieces = cut_text(found["train"], ends, within_words=within_words)
        found |= zip(("train", *missing), pieces, strict=True)
        notes = [*notes, *(f"{part}: no file says so; cut from the end of train" for part in missing)]
    train, valid, test = (found[part].split("\n") for part in PARTS)
    return Corpus(name, train, valid, test, str(path), notes)


def _layout(folder: Path) -> dict[str, list[Path]] | None:
    """Find the files of a folder whose names say which split they hold; None where they do not."""
    parts = layout_of(folder, DATA_SUFFIXES, TABLE_SUFFIXES)
    if "train" not in parts:
        return None
    beside = [path for path in find_files(folder, DATA_SUFFIXES - {".json"}) if path.parent == folder]
    if len(parts) == 1 and parts["train"][0].parent == folder and len(beside) > 1:
        return None  # a file about trains
    check_twins(parts)
    return parts


def _read_folder(folder: Path, reader: TextReader, within_words: bool) -> Corpus:
    """Read every file of one kind below a folder."""
    paths = _one_kind(folder, reader.encoding)
    found: dict[str, str] = {}
    foreign: dict[Path, NotTextError] = {}
    for path in paths:
        try:
            found[path.relative_to(folder).as_posix()] = reader.text(path, blank=True)
        except NotTextError as error:
            foreign[path] = error
    if num_bytes(foreign) > MAX_FOREIGN_SHARE * num_bytes(paths):
        raise next(iter(foreign.values()))
    blank = [name for name, text in found.items() if not text or text.isspace()]
    for name in blank:
        del found[name]
    if not found:
        raise ValueError(f"{shown(folder)}: expected text, got {len(blank)} empty files")
    _check_tokens("\n".join(found.values()), folder, within_words)
    parts, how = split_files(found, within_words=within_words)
    notes = [
        f"{len(found)} files: {few(folder, [folder / path for path in sorted(found)])}",
        how,
        *reader.notes(folder),
    ]
    if blank:
        notes.append(f"left out: {len(blank)} empty files")
    if foreign:
        notes.append(f"left out as not {title(reader.encoding)}: {few(folder, list(foreign))}")
    train, valid, test = (part.split("\n") for part in parts)
    return Corpus(folder.resolve().name, train, valid, test, str(folder), [*notes, *left_out(folder, [paths])])


def _one_kind(folder: Path, encoding: str) -> list[Path]:
    """Choose texts by suffix, tables, or texts without a suffix: those that most of the folder's bytes are."""
    there = sorted(walk(folder))
    rest = [path for path in there if stem_of(path).lower() not in ABOUT] or there
    kinds = [
        [path for path in rest if suffix_of(path) in TEXT_SUFFIXES],
        [path for path in rest if suffix_of(path) in TABLE_SUFFIXES],
        [path for path in rest if not suffix_of(path) and is_text(path, encoding)],
    ]
    for kind in (max(kinds, key=num_bytes), *kinds, [path for path in rest if suffix_of(path) == ".json"]):
        if kind:
            return kind
    found = Counter(suffix_of(path) or "no suffix" for path in there)
    seen = ", ".join(f"{shown_name(suffix)} ({times})" for suffix, times in found.most_common(5)) or "no files"
    raise ValueError(
        f"{shown(folder)}: expected text files such as .txt, .md or .py, JSON lines or Parquet below it, got "
        f"{cut(seen)}"
    )


def _check_tokens(text: str, path: Path, within_words: bool) -> None:
    """Raise unless `text` has at least 3 tokens, and two distinct ones."""
    if not text or text.isspace():
        raise ValueError(f"{shown(path)}: expected text, got {'only whitespace' if text else 'an empty file'}")
    tokens = [match[0] for match in islice(tokens_of(text, within_words=within_words), MIN_TOKENS)]
    if len(tokens) < MIN_TOKENS:
        raise ValueError(
            f"{shown(path)}: expected at least {MIN_TOKENS} tokens to split, got {len(tokens)}: "
            f"{shown(text[:100])}; {ADVICE}"
        )
    if all(match[0] == tokens[0] for match in tokens_of(text, within_words=within_words)):
        raise ValueError(
            f"{shown(path)}: expected at least 2 distinct tokens, got only {shown(tokens[0][:100])}, again and "
            f"again; {ADVICE}"
        )
