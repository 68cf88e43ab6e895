"""Files of text: which there are, which part of the data their names say, and what they hold."""

import codecs
import gzip
import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vastmax.validation import cut, shown

PARTS = ("train", "valid", "test")
SPLIT_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "val", "validation", "dev"), "valid")
ENCODING = "utf-8"
SUSPECT_UTF16 = 0.2  # of the bytes 0, as UTF-16 has them for every letter of most scripts
CHUNK = 1 << 20
LOOKED_AT = 1 << 16  # bytes of a file that say whether it is text


class NotTextError(ValueError):
    """A file that holds something other than text in the encoding expected."""


def read_text(path: Path, encoding: str = ENCODING) -> str:
    r"""Return the text of a plain or gzipped file, with \r\n as \n and without its last line end.

    Raises:
        NotTextError: NUL characters or bytes that the encoding lacks, with the offset of the first.
        ValueError: a truncated or corrupt gzip file, one too large for memory, an unknown encoding.
    """
    check_encoding(encoding)
    content = read_bytes(path)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotTextError(_foreign(path, encoding, content, error.start)) from error
    except UnicodeError as error:  # UTF-16 without its mark, for one
        raise NotTextError(
            f"{shown(path)}: expected {title(encoding)} text, got other bytes: {cut(str(error))}"
        ) from error
    if (nul := text.find("\0")) >= 0:
        offset = len(text[:nul].encode(encoding))
        raise NotTextError(_foreign(path, encoding, content, min(offset, len(content) - 1)))
    return text.removeprefix("\ufeff").removesuffix("\n").replace("\r\n", "\n").removesuffix("\r")


def check_encoding(encoding: str) -> None:
    """Raise ValueError unless `encoding` is the name of one that Python has for text."""
    try:
        with suppress(UnicodeError):  # of UTF-16, a byte is half a character
            b"a".decode(encoding)
    except (LookupError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise ValueError(
            f"encoding: expected the name of a text encoding, such as utf-8, utf-16, latin-1 or gb18030, got "
            f"{shown(encoding)}"
        ) from error


def is_text(path: Path, encoding: str) -> bool:
    """Tell whether a file begins as text does."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            head = codecs.getincrementaldecoder(encoding)().decode(file.read(LOOKED_AT))
    except (UnicodeError, EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return "\0" not in head


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if it is gzipped, as its first bytes tell."""
    check_fits(path)
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            return file.read()
    pieces, size, most = [], 0, memory()
    try:
        with gzip.open(path) as packed:
            while piece := packed.read(CHUNK):
                pieces.append(piece)
                if (size := size + len(piece)) > most:
                    raise _too_large(path, size, most)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{shown(path)}: expected a whole gzip file, got a damaged one: {error}") from error
    return b"".join(pieces)


def check_fits(path: Path) -> None:
    """Raise ValueError unless a file is smaller than the machine's memory."""
    if (size := path.stat().st_size) > (most := memory()):
        raise _too_large(path, size, most)


def memory() -> float:
    """Return the machine's bytes of memory; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _too_large(path: Path, size: int, most: float) -> ValueError:
    return ValueError(
        f"{shown(path)}: expected a file that fits into the {most / 1e9:,.1f} GB of memory, got one of more than "
        f"{size / 1e9:,.1f} GB"
    )


def _foreign(path: Path, encoding: str, content: bytes, offset: int) -> str:
    """Say which byte is no text, and what the file may be."""
    message = f"{shown(path)}: expected {title(encoding)} text, got byte 0x{content[offset]:02x} at offset {offset}"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{message}: it begins as UTF-16 does, which --encoding utf-16 reads"
    nuls = [content[start:CHUNK:2].count(0) for start in (0, 1)]
    if max(nuls) > SUSPECT_UTF16 * min(len(content), CHUNK) and min(nuls) < 0.1 * max(nuls):
        order = "be" if nuls[0] > nuls[1] else "le"
        return f"{message}: it looks like UTF-16 without a mark, which --encoding utf-16-{order} reads"
    if any(nuls):
        return f"{message}: a binary file"
    return f"{message}; --encoding names another, such as latin-1 or gb18030"


def title(encoding: str) -> str:
    """Return an encoding's name as a message has it."""
    return "UTF-8" if encoding.lower() in ("utf-8", "utf8") else cut(encoding)


def check_exists(path: Path, expected: str) -> None:
    """Raise unless there is a regular file or a folder at `path`; `expected` says what it should hold."""
    if not os.path.exists(path):  # and a name that is too long for one does not
        raise FileNotFoundError(f"{shown(path)}: no such file or folder; expected {expected}")
    if not path.is_dir() and not path.is_file():
        raise ValueError(
            f"{shown(path)}: a special file (device, pipe or socket); expected a regular file or a folder"
        )


def find_files(folder: Path, suffixes: Collection[str], *, skip: Collection[str] = ()) -> list[Path]:
    """List the regular files below `folder` with one of `suffixes`, plain or with .gz after it, by name.

    Hidden files and folders are left out, as are folders named in `skip`.
    """
    return sorted(path for path in walk(folder, skip) if suffix_of(path) in suffixes)


def walk(folder: Path, skip: Collection[str] = ()) -> Iterable[Path]:
    """Yield the regular files below `folder` that are not hidden, in folders that are not, nor named in `skip`."""

    def refuse(error: OSError) -> None:  # os.walk would pass over an unreadable folder in silence
        raise error

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        paths = (Path(root, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def files_by_part(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the files whose names say train, valid (val, validation, dev) or test, and only one of them."""
    found: dict[str, list[Path]] = {}
    for path in files:
        words = re.split(r"[^a-z]+", path.name.lower())
        if len(said := {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}) == 1:
            found.setdefault(said.pop(), []).append(path)
    return {part: found[part] for part in PARTS if part in found}


def layout_of(folder: Path, suffixes: Collection[str], below: Collection[str]) -> dict[str, list[Path]]:
    """Find the files of each part of a folder: those in it, or those with a suffix of `below` in one under it.

    Raises:
        ValueError: several folders under it with a part named train.
    """
    every = find_files(folder, {*suffixes, *below})
    here = files_by_part(path for path in every if path.parent == folder and suffix_of(path) in suffixes)
    if "train" in here:
        return here
    under: dict[Path, list[Path]] = {}
    for path in every:
        if path.parent != folder and suffix_of(path) in below:
            under.setdefault(path.parent, []).append(path)
    sets = {place: parts for place, paths in under.items() if "train" in (parts := files_by_part(paths))}
    if len(sets) > 1:
        raise ValueError(
            f"{shown(folder)}: expected one data set, got {few(folder, list(sets))}: name the folder of one"
        )
    return next(iter(sets.values()), here)


def check_twins(parts: Mapping[str, Sequence[Path]]) -> None:
    """Raise ValueError if one text is there in two forms, which would be read twice."""
    groups: dict[str, list[Path]] = {}
    for path in (path for paths in parts.values() for path in paths):
        words = re.split(r"([^a-z]+)", stem_of(path).lower())
        groups.setdefault("".join(SPLIT_WORDS.get(word, word) for word in words), []).append(path)
    for paths in groups.values():
        if len(paths) > 1:
            folder, name = paths[0].parent, shown_name(stem_of(paths[0]))
            raise ValueError(
                f"{shown(folder)}: expected one file for {name}, got {few(folder, paths)}; keep one of them"
            )


def suffix_of(path: Path) -> str:
    """Return the suffix before .gz, or of the name."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def stem_of(path: Path) -> str:
    """Return the name without its suffix and .gz."""
    return Path(path.name.removesuffix(".gz")).stem


def left_out(folder: Path, taken: Iterable[Sequence[Path]]) -> list[str]:
    """Say in a sentence, if there are some, which files below `folder` are not among those taken."""
    read = {path for paths in taken for path in paths}
    left = [path for path in sorted(walk(folder)) if path not in read]
    return [f"left out: {few(folder, left)}"] if left else []


def few(folder: Path, paths: Sequence[Path]) -> str:
    """Name up to three of `paths` below `folder` and count the rest."""
    first = ", ".join(shown_name(path.relative_to(folder).as_posix()) for path in paths[:3])
    return first if len(paths) <= 3 else f"{first} and {len(paths) - 3:,} more"


def shown_name(name: str) -> str:
    """Return a name as a message has it, without quotes and cut to a line."""
    return cut(repr(name)[1:-1])


def num_bytes(paths: Iterable[Path]) -> int:
    """Return the size of files."""
    return sum(path.stat().st_size for path in paths)
