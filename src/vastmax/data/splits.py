"""Cutting text into train, valid and test: in order by characters, or by whole files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

from vastmax.data.scripts import UNSPACED

VALID_SHARE = TEST_SHARE = 0.05
MIN_TRAIN_SHARE = 0.80  # of whole files; below it files are too few or too uneven, and lines are split instead

SARA_AM = "\u0e33\u0eb3"  # letters of Thai and Lao that belong to the letter before, as marks do
_CHARACTER = re.compile(r"\S")
_TOKEN = re.compile(rf"[{UNSPACED}](?:(?!\w)[{UNSPACED}]|[{SARA_AM}])*|[^\s{UNSPACED}]+")
_GAP = re.compile(rf"\s|(?=[{UNSPACED}])(?=\w)(?![{SARA_AM}])")


def cut_text(text: str, ends: Sequence[float], *, within_words: bool = False) -> list[str]:
    r"""Cut a text in order at given shares of its characters, every part with at least one token.

    A cut falls on the first line end in the 2.5% of the text after its place or, without one, on the first
    whitespace or before the first letter of a script without spaces. Where that leaves a part blank, as it may in a
    text of a few tokens, tokens are counted out one by one instead.

    Args:
        text: the text, with at least `len(ends) + 1` tokens.
        ends: increasing shares in (0, 1) at which all parts but the last end.
        within_words: a cut may fall inside a word, and a token is a character: for byte pairs.

    Returns:
        `len(ends) + 1` parts, without the line end or space they were cut at.

    Example:
        >>> cut_text("to be or not to be", (0.5, 0.8))
        ['to be or not', 'to', 'be']
    """
    length = len(text.rstrip())  # blank lines at the end are kept, but make no part
    parts, start = [], 0
    for end in ends:
        stop, after = _cut_after(text, max(start, int(end * length)), length // 40, within_words)
        parts.append(text[start:stop])
        start = after
    parts.append(text[start:])
    if any(not part or part.isspace() for part in parts):
        return _deal_tokens(text, ends, within_words)
    return parts


def tokens_of(text: str, *, within_words: bool = False) -> Iterator[re.Match[str]]:
    """Find what a text can be dealt out by: words, characters of scripts without spaces, or every character."""
    return (_CHARACTER if within_words else _TOKEN).finditer(text)


def _cut_after(text: str, place: int, slack: int, within_words: bool) -> tuple[int, int]:
    """Return where a part ends and the next begins: about a line end in `slack` characters, or a gap of words."""
    line_end = text.find("\n", place, place + slack)
    if line_end >= 0:
        return line_end, line_end + 1
    if within_words:
        return place, place
    gap = _GAP.search(text, place)
    if gap is None:
        return len(text), len(text) + 1
    return gap.start(), gap.end()


def _deal_tokens(text: str, ends: Sequence[float], within_words: bool) -> list[str]:
    """Cut a text at given shares of its tokens, at least one token to each part."""
    starts = [match.start() for match in tokens_of(text, within_words=within_words)]
    parts, first = [], 0
    for index, end in enumerate(ends):
        after = len(ends) - index  # parts still to come
        stop = min(max(round(end * len(starts)), first + 1), len(starts) - after)
        parts.append(text[starts[first] : starts[stop]].rstrip())
        first = stop
    return [*parts, text[starts[first] :].rstrip()]


def split_files(texts: Mapping[str, str], *, within_words: bool = False) -> tuple[list[str], str]:
    """Split texts into train, valid and test by whole files, about 90 / 5 / 5 by characters.

    Files are taken in the order of a hash of their names, which is the same everywhere and hardly moves when
    files are added: to test until it has its share, then to valid, the rest to train. Where that leaves less
    than 80% for train, the files are joined by name and cut in order instead.

    Args:
        texts: text by file name, none blank, at least 3 tokens altogether.
        within_words: as in `cut_text`.

    Returns:
        The three texts, and a sentence that says which way they were split.
    """
    total = sum(map(len, texts.values()))
    wanted = {"test": TEST_SHARE * total, "valid": VALID_SHARE * total, "train": float("inf")}
    names: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    sizes = dict.fromkeys(names, 0)
    for name in sorted(texts, key=lambda name: blake2b(name.encode()).digest()):
        split = next(split for split in wanted if sizes[split] < wanted[split])
        names[split].append(name)
        sizes[split] += len(texts[name])
    if sizes["train"] < MIN_TRAIN_SHARE * total:
        joined = "\n".join(texts[name] for name in sorted(texts))
        parts = cut_text(joined, (0.90, 0.95), within_words=within_words)
        return parts, "files too few or too uneven to split whole: joined, cut 90 / 5 / 5"
    shares = " / ".join(f"{size / total:.1%}" for size in sizes.values())
    return ["\n".join(texts[name] for name in sorted(part)) for part in names.values()], f"whole files, {shares}"
