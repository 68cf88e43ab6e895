"""Cutting text into train, valid and test: in order by characters, or by whole files."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

VALID_SHARE = TEST_SHARE = 0.05
MIN_TRAIN_SHARE = 0.80  # of whole files; below it files are too few or too uneven, and lines are split instead


def cut_text(text: str, ends: Sequence[float]) -> list[str]:
    r"""Cut a text in order at given shares of its characters, every part with at least one token.

    A cut falls on the first line end in the 2.5% of the text after its place or, without one, on the first
    whitespace after it. Where that leaves a part blank, as it may in a text of a few tokens, tokens are
    counted out one by one instead and line ends inside a part are lost.

    Args:
        text: the text, with at least `len(ends) + 1` whitespace-separated tokens.
        ends: increasing shares in (0, 1) at which all parts but the last end.

    Returns:
        `len(ends) + 1` parts, without the line end or space they were cut at.

    Example:
        >>> cut_text("to be or not to be", (0.5, 0.8))
        ['to be or not', 'to', 'be']
    """
    length = len(text.rstrip())  # blank lines at the end are kept, but make no part
    parts, start = [], 0
    for end in ends:
        place = _cut_after(text, max(start, int(end * length)), slack=length // 40)
        parts.append(text[start:place])
        start = place + 1
    parts.append(text[start:])
    if any(not part or part.isspace() for part in parts):
        return _deal_tokens(text.split(), ends)
    return parts


def _cut_after(text: str, place: int, slack: int) -> int:
    """Return the place of the first line end in `slack` characters, or else of the first whitespace."""
    line_end = text.find("\n", place, place + slack)
    if line_end >= 0:
        return line_end
    space = re.compile(r"\s").search(text, place)
    return space.start() if space else len(text)


def _deal_tokens(tokens: list[str], ends: Sequence[float]) -> list[str]:
    """Join tokens to parts that end at given shares of them, at least one token each."""
    parts, start = [], 0
    for index, end in enumerate(ends):
        after = len(ends) - index  # parts still to come
        stop = min(max(round(end * len(tokens)), start + 1), len(tokens) - after)
        parts.append(" ".join(tokens[start:stop]))
        start = stop
    return [*parts, " ".join(tokens[start:])]


def split_files(texts: Mapping[str, str]) -> tuple[list[str], str]:
    """Split texts into train, valid and test by whole files, about 90 / 5 / 5 by characters.

    Files are taken in the order of a hash of their names, which is the same everywhere and hardly moves when
    files are added: to test until it has its share, then to valid, the rest to train. Where that leaves less
    than 80% for train, the files are joined by name and cut in order instead.

    Args:
        texts: text by file name, none blank, at least 3 tokens altogether.

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
        return cut_text(joined, (0.90, 0.95)), "files too few or too uneven to split whole: joined, cut 90 / 5 / 5"
    shares = " / ".join(f"{size / total:.1%}" for size in sizes.values())
    return ["\n".join(texts[name] for name in sorted(part)) for part in names.values()], f"whole files, {shares}"
