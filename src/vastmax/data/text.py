"""Text as people keep it: a file, a WikiText or PTB folder, or any folder of text, as train, valid and test."""

import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vastmax.data.splits import cut_text, split_files
from vastmax.validation import check_positive_int, cut, shown

DATA_SUFFIXES = frozenset({".csv", ".raw", ".text", ".tokens", ".tsv", ".txt"})
"""Suffixes under which a file that says train, valid or test is taken at its word: `train.py` is not data."""

TEXT_SUFFIXES = DATA_SUFFIXES | {
    *(".adoc", ".bib", ".htm", ".html", ".json", ".jsonl", ".log", ".md", ".org", ".rst", ".srt", ".tex", ".xml"),
    *(".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".go", ".h", ".hpp", ".hs", ".java", ".js", ".jl", ".kt", ".lua"),
    *(".php", ".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".toml", ".ts"),
    *(".yaml", ".yml"),
}
SPLIT_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "val", "validation", "dev"), "valid")
MIN_TOKENS = 3  # one for each split
MAX_FOREIGN_SHARE = 0.05  # of a folder's bytes not UTF-8; above it, what is left is not what was meant


class NotTextError(ValueError):
    """A file that holds something other than UTF-8 text."""


@dataclass(frozen=True)
class Corpus:
    """Lines of text for training, validation and test, without their line ends; blank lines are kept.

    Attributes:
        name: short name, for tables.
        train: lines to train on.
        valid: lines to choose by.
        test: lines to report.
        source: where the text came from.
        notes: how the text was split and what was left out, one sentence each.
    """

    name: str
    train: list[str]
    valid: list[str]
    test: list[str]
    source: str
    notes: list[str] = field(default_factory=list)


def read_corpus(path: str | os.PathLike[str]) -> Corpus:
    r"""Read a text file or a folder of them as train, valid and test lines.

    Text is UTF-8, with or without a byte order mark, plain or gzipped (told by its first bytes). Lines end
    with \n or \r\n.

    - *A file* is cut in order, 90% / 5% / 5% of its characters: at line ends or, where lines are too long for
      that, at whitespace.
    - *A folder whose files say train, valid (val, validation, dev) or test in their names*, as WikiText and
      PTB do, is read as they say. A split that is missing is cut from the end of train.
    - *Any other folder*: every text file below it except hidden ones, split about 90 / 5 / 5 by whole files
      in an order fixed by a hash of their names; by lines where files are too few or too uneven. Files that
      are not UTF-8 are left out and noted, unless they hold more than 5% of the bytes.

    Args:
        path: the file or folder.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: a file that is empty, binary, not UTF-8 or a damaged gzip; fewer than 3 tokens or only one
            distinct; a folder without text files.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "song.txt"
        >>> _ = file.write_text("la la la\nda da da\n" * 50)
        >>> corpus = read_corpus(file)
        >>> corpus.name, len(corpus.train), len(corpus.valid), len(corpus.test)
        ('song', 90, 5, 5)
    """
    path = Path(path)
    if not os.path.exists(path):  # and a name that is too long for one does not
        raise FileNotFoundError(f"{shown(path)}: no such file or folder; expected text to read")
    if path.is_dir():
        return _read_layout(path) or _read_folder(path)
    if not path.is_file():
        raise ValueError(
            f"{shown(path)}: a special file (device, pipe or socket); expected a regular file or a folder"
        )
    text = read_text(path)
    _check_tokens(text, path)
    train, valid, test = (part.split("\n") for part in cut_text(text, (0.90, 0.95)))
    return Corpus(_stem(path), train, valid, test, str(path), ["cut in order, 90 / 5 / 5"])


def looks_tokenised(lines: Iterable[str], *, max_chars: int = 200_000) -> bool:
    """Tell whether text is already split into tokens by spaces, as PTB and WikiText are.

    It is when at least 98% of its commas, semicolons, question and exclamation marks, brackets and double
    quotes at the edge of a whitespace-separated token are a token of their own; `<unk>` counts as one.

    Args:
        lines: the text; only the first `max_chars` characters are judged.
        max_chars: how much to look at.

    Example:
        >>> looks_tokenised(["no , it was n't <unk> ."]), looks_tokenised(["No, it wasn't (she said)."])
        (True, False)
    """
    max_chars = check_positive_int("max_chars", max_chars)
    alone = glued = seen = 0
    for line in lines:
        for token in line[: max_chars - seen].split():
            if token == "<unk>" or token in _PUNCTUATION:
                alone += 1
            elif token[0] in _PUNCTUATION or token[-1] in _PUNCTUATION:
                glued += 1
        seen += len(line)
        if seen >= max_chars:
            break
    return alone > 0 and alone >= 0.98 * (alone + glued)


_PUNCTUATION = frozenset(',;?!()"')


def read_text(path: Path) -> str:
    r"""Return the text of a plain or gzipped UTF-8 file, with \r\n as \n and without its last line end.

    Raises:
        NotTextError: NUL bytes or invalid UTF-8, with the offset of the first.
        ValueError: a truncated or corrupt gzip file.
    """
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{shown(path)}: expected a whole gzip file, got a damaged one: {error}") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise NotTextError(
            f"{shown(path)}: expected UTF-8 text, got byte 0x{byte:02x} at offset {error.start}"
        ) from error
    if (nul := content.find(0)) >= 0:
        raise NotTextError(f"{shown(path)}: expected UTF-8 text, got byte 0x00 at offset {nul}: a binary file")
    return text.removeprefix("\ufeff").removesuffix("\n").replace("\r\n", "\n").removesuffix("\r")


def find_files(folder: Path, suffixes: Collection[str], *, skip: Collection[str] = ()) -> list[Path]:
    """List the regular files below `folder` with one of `suffixes`, plain or with .gz after it, by name.

    Hidden files and folders are left out, as are folders named in `skip`.
    """
    return sorted(path for path in _walk(folder, skip) if _suffix(path) in suffixes)


def _walk(folder: Path, skip: Collection[str] = ()) -> Iterable[Path]:
    def refuse(error: OSError) -> None:  # os.walk would pass over an unreadable folder in silence
        raise error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        paths = (Path(root, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _read_layout(folder: Path) -> Corpus | None:
    """Read a folder whose file names say which split they hold; None where they do not."""
    data = [path for path in find_files(folder, DATA_SUFFIXES) if path.parent == folder]
    files: dict[str, list[Path]] = {}
    for path in data:
        said = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in SPLIT_WORDS}
        if len(said) == 1:
            files.setdefault(said.pop(), []).append(path)
    if "train" not in files or (len(files) == 1 and len(data) > 1):
        return None

    texts = {split: _read_parts(paths) for split, paths in files.items()}
    _check_tokens(texts["train"], files["train"][0])
    missing = [split for split in ("valid", "test") if split not in texts]
    if missing:
        ends = (0.90, 0.95) if len(missing) == 2 else (0.95,)
        texts |= zip(("train", *missing), cut_text(texts["train"], ends), strict=True)

    notes = [f"{split}: {', '.join(path.name for path in paths)}" for split, paths in sorted(files.items())]
    notes += [f"{split}: no file says so; cut from the end of train" for split in missing]
    taken = {path for paths in files.values() for path in paths}
    if left := [path for path in find_files(folder, TEXT_SUFFIXES) if path not in taken]:
        notes.append(f"left out: {_some(folder, left)}")
    train, valid, test = (texts[split].split("\n") for split in ("train", "valid", "test"))
    return Corpus(folder.resolve().name, train, valid, test, str(folder), notes)


def _read_parts(paths: list[Path]) -> str:
    """Join the files of one split; refuse one text in two forms, which would be read twice."""
    twins = [stem for stem, times in Counter(map(_stem, paths)).items() if times > 1]
    if twins:
        names = ", ".join(path.name for path in paths if _stem(path) == twins[0])
        raise ValueError(
            f"{shown(paths[0].parent)}: expected one file for {cut(twins[0])}, got {cut(names)}; keep one of them"
        )
    texts = [read_text(path) for path in paths]
    for path, text in zip(paths, texts, strict=True):
        if not text or text.isspace():
            raise ValueError(f"{shown(path)}: expected text, got {'only whitespace' if text else 'an empty file'}")
    return "\n".join(texts)


def _read_folder(folder: Path) -> Corpus:
    """Read every text file below a folder."""
    paths = find_files(folder, TEXT_SUFFIXES)
    if not paths:
        found = Counter(_suffix(path) or "no suffix" for path in _walk(folder))
        seen = ", ".join(f"{suffix} ({times})" for suffix, times in found.most_common(10)) or "no files"
        raise ValueError(f"{shown(folder)}: expected text files such as .txt, .md or .py below it, got {cut(seen)}")
    texts: dict[str, str] = {}
    foreign: dict[Path, NotTextError] = {}
    for path in paths:
        try:
            texts[path.relative_to(folder).as_posix()] = read_text(path)
        except NotTextError as error:
            foreign[path] = error
    if _num_bytes(foreign) > MAX_FOREIGN_SHARE * _num_bytes(paths):
        raise next(iter(foreign.values()))
    blank = [path for path, text in texts.items() if not text or text.isspace()]
    for name in blank:
        del texts[name]
    if not texts:
        raise ValueError(f"{shown(folder)}: expected text, got {len(blank)} empty files")
    _check_tokens("\n".join(texts.values()), folder)
    parts, note = split_files(texts)
    notes = [f"{len(texts)} files", note]
    if blank:
        notes.append(f"left out: {len(blank)} empty files")
    if foreign:
        notes.append(f"left out as not UTF-8: {_some(folder, list(foreign))}")
    train, valid, test = (part.split("\n") for part in parts)
    return Corpus(folder.resolve().name, train, valid, test, str(folder), notes)


def _check_tokens(text: str, path: Path) -> None:
    """Raise unless `text` has at least 3 whitespace-separated tokens, and two distinct ones."""
    if not text or text.isspace():
        raise ValueError(f"{shown(path)}: expected text, got {'only whitespace' if text else 'an empty file'}")
    tokens = text.split(maxsplit=MIN_TOKENS)[:MIN_TOKENS]
    if len(tokens) < MIN_TOKENS:
        raise ValueError(
            f"{shown(path)}: expected at least {MIN_TOKENS} tokens to split, got {len(tokens)}: {shown(tokens)}"
        )
    if all(match[0] == tokens[0] for match in re.finditer(r"\S+", text)):
        raise ValueError(
            f"{shown(path)}: expected at least 2 distinct tokens, got only {shown(tokens[0])}, again and again"
        )


def _num_bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _suffix(path: Path) -> str:
    """Return the suffix before .gz, or of the name."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _stem(path: Path) -> str:
    """Return the name without its suffix and .gz."""
    return Path(path.name.removesuffix(".gz")).stem


def _some(folder: Path, paths: list[Path]) -> str:
    """Name up to three of `paths` and count the rest."""
    names = ", ".join(path.relative_to(folder).as_posix() for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"
