"""Scripts: which are written without spaces between words, and whether a text comes split into tokens."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from vastmax.validation import check_positive_int

UNSPACED = "".join(
    (
        "\u0e00-\u0eff",  # Thai, Lao
        "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",  # Burmese
        "\u1780-\u17ff\u19e0-\u19ff",  # Khmer
        "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf",  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
        "\u1b00-\u1b7f\ua980-\ua9df",  # Balinese, Javanese
        "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff",  # Han
        "\uf900-\ufaff\U00020000-\U0003ffff",
        "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f",  # kana
        "\u3105-\u312f\u31a0-\u31bf\ua000-\ua4cf",  # Bopomofo, Yi
    )
)
"""Ranges of a character class: Unicode's blocks of these scripts, the same to every library of expressions."""

CHARACTER = rf"(?=[{UNSPACED}])\X"
"""One of them with the marks on it (a grapheme cluster), to the expressions of `tokenizers`."""

AFTER_CLAUSE = r"(?<=[，；：？！。、])(?=[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff])"
"""Where a clause of Chinese or Japanese ends and a letter follows, with no space between."""

MOST_LOOKED_AT = 200_000  # characters of a text that say what it is
MANY_LETTERS = 0.3  # of a text's letters in such scripts: then it is not a text in another, with names in these
LONGEST_WORDS = 5  # letters of a token on average: words of these scripts have 2 to 4, clauses 7 and more

BYTE_PAIRS = 16_384
LETTERS_OF_A_PAIR = 32  # of text for each entry: some 20 times that an average one is met
MOST_PAIRS = 32_768

_LETTER = re.compile(f"[{UNSPACED}]")
_PUNCTUATION = frozenset(',;?!()"，；？！（）。、「」『』')


def unspaced_share(lines: Iterable[str]) -> float:
    """Return the share of a text's letters that are of scripts without spaces, as its beginning has it.

    Example:
        >>> unspaced_share(["今日は good day"])
        0.3
    """
    text = _beginning(lines, MOST_LOOKED_AT)
    letters = sum(map(str.isalpha, text))
    return _count(text) / letters if letters else 0.0


def looks_tokenised(lines: Iterable[str], *, max_chars: int = MOST_LOOKED_AT) -> bool:
    """Tell whether text is already split into tokens by spaces, as PTB and WikiText are.

    It is when at least 98% of its commas, semicolons, question and exclamation marks, brackets and double
    quotes at the edge of a whitespace-separated token are a token of their own; `<unk>` counts as one. A text in
    a script without spaces has to have tokens as short as words, too.

    Args:
        lines: the text; only the first `max_chars` characters are judged.
        max_chars: how much to look at.

    Example:
        >>> looks_tokenised(["no , it was n't <unk> ."]), looks_tokenised(["No, it wasn't (she said)."])
        (True, False)
        >>> looks_tokenised(["我们 去 过 北京 。"]), looks_tokenised(["我们去年夏天去过北京 。"])
        (True, False)
    """
    text = _beginning(lines, check_positive_int("max_chars", max_chars))
    tokens = text.split()
    alone = glued = 0
    for token in tokens:
        if token == "<unk>" or token in _PUNCTUATION:
            alone += 1
        elif token[0] in _PUNCTUATION or token[-1] in _PUNCTUATION:
            glued += 1
    if not alone or alone < 0.98 * (alone + glued):
        return False
    if unspaced_share([text]) < MANY_LETTERS:
        return True
    lengths = [length for length in map(_count, tokens) if length]
    return sum(lengths) < LONGEST_WORDS * len(lengths)


def split_for(lines: Sequence[str]) -> str:
    """Return how a text becomes words: "whitespace" if it comes tokenised, else "words"."""
    return "whitespace" if looks_tokenised(lines) else "words"


def describe_split(lines: Sequence[str], split: str) -> str:
    """Say in a sentence how a text became words."""
    if split == "whitespace":
        return "split at spaces"
    if share := unspaced_share(lines):
        return f"split into words, marks, and characters of scripts without spaces, {share:.1%} of all letters"
    return "split into words and marks"


def byte_pairs_for(lines: Iterable[str]) -> int:
    """Return how many byte pairs suit a text.

    Where words have spaces between, pairs merge to words and no further. Where they have none, pairs merge to
    clauses that are met once, unless the length of the text bounds their number; and Han needs more of them than an
    alphabet.
    """
    if unspaced_share(lines) < MANY_LETTERS:
        return BYTE_PAIRS
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
    letters = sum(count for letter, count in counts.items() if letter.isalpha())
    return max(len(counts), min(letters // LETTERS_OF_A_PAIR, MOST_PAIRS))


def _count(text: str) -> int:
    """Count the letters of scripts without spaces; marks on them are none."""
    return sum(map(str.isalpha, _LETTER.findall(text)))


def _beginning(lines: Iterable[str], max_chars: int) -> str:
    """Join lines until they have that many characters."""
    pieces: list[str] = []
    for line in lines:
        pieces.append(line[:max_chars])
        max_chars -= len(line)
        if max_chars <= 0:
            break
    return "\n".join(pieces)
