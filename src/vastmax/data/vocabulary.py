"""Vocabularies of words or byte pairs, whose ids run by falling count."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from vastmax.data.scripts import AFTER_CLAUSE, CHARACTER, byte_pairs_for, split_for
from vastmax.validation import check_choice, check_ids, check_positive_int, shown

UNK, EOS = "<unk>", "<eos>"
MIN_SIZE = 3  # <unk>, <eos> and something to tell from them
NUM_BYTES = 256
FORMAT = "vastmax vocabulary 1"

CHUNK_PIECES = 1024  # encoded at once: a token takes some 100 bytes until its chunk is done
PIECE_CHARS = 4096  # of a line encoded at once, to its next gap: text8 is one line of 10^8
SPACE = re.compile(r"(?<=\S)[ \t]")  # tokens of any kind never reach over it
GAP = re.compile(rf"{SPACE.pattern}|{AFTER_CLAUSE}")  # words and byte pairs never reach over it


class Vocabulary:
    r"""A tokenizer and how often each of its ids occurs in the text it was built from.

    Ids run by falling count, ties in alphabetical order, so that `samplers.LogUniform` applies.

    Args:
        tokenizer: of V entries with ids 0 to V - 1, among them `<eos>`.
        counts: (V,) int64 occurrences of each id.

    Attributes:
        counts: (V,) int64 occurrences of each id in the training text, `<eos>` and `<unk>` included. The
            count of `<unk>` is 0 where every training token is in the vocabulary.
        eos_id: id of `<eos>`, which ends each line.

    Raises:
        ValueError: no `<eos>`, ids with gaps, or `counts` that do not fit the tokenizer.

    Example:
        >>> vocabulary = build_vocabulary(["to be or", "not to be"])
        >>> ids = vocabulary.encode(["be or become"])
        >>> ids.tolist(), vocabulary.counts[ids].tolist()
        ([1, 4, 5, 0], [2, 1, 0, 2])
        >>> vocabulary.decode(ids)
        'be or <unk>\n'
    """

    def __init__(self, tokenizer: Tokenizer, counts: Tensor) -> None:
        size = tokenizer.get_vocab_size()
        if counts.dtype != torch.int64 or counts.shape != (size,) or (counts < 0).any():
            raise ValueError(
                f"counts: expected int64 of shape ({size},), 0 or greater, one per entry of the tokenizer, got "
                f"{counts.dtype} of shape {tuple(counts.shape)}"
            )
        if max(tokenizer.get_vocab().values()) != size - 1:
            raise ValueError(f"tokenizer: expected ids 0 to {size - 1}, got ids with gaps")
        eos_id = tokenizer.token_to_id(EOS)
        if eos_id is None:
            raise ValueError(f"tokenizer: expected an entry {EOS}, got none")
        self.tokenizer = tokenizer
        self.counts = counts
        self.eos_id: int = eos_id

    @property
    def size(self) -> int:
        """V, the number of entries."""
        return len(self.counts)

    def encode(self, lines: Iterable[str]) -> Tensor:
        """Return the ids (T,) int64 of all lines in one stream, `<eos>` after each line, blank ones too."""
        _check_lines(lines)
        chunks = [torch.from_numpy(ids) for ids in _encode(self.tokenizer, lines)]
        return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        r"""Return the text of ids (T,), words with a space between them, each `<eos>` as \n.

        Byte pairs give back exactly what was encoded.

        Raises:
            ValueError: an id outside [0, V).
        """
        check_ids("ids", ids, self.size)
        ends = (ids == self.eos_id).nonzero().flatten().tolist()
        starts = [0, *(end + 1 for end in ends)]
        lines = [ids[start:end].tolist() for start, end in zip(starts, [*ends, len(ids)], strict=True)]
        return "\n".join(self.tokenizer.decode_batch(lines, skip_special_tokens=False))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tokenizer and counts to one JSON file, whole or not at all."""
        path = Path(path)
        content = {
            "format": FORMAT,
            "tokenizer": json.loads(self.tokenizer.to_str()),
            "counts": self.counts.tolist(),
        }
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is cut short, or that `save` did not write.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            raise ValueError(
                f"{shown(Path(path))}: expected a vocabulary in JSON, got a file that is not: {error}"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"{shown(Path(path))}: expected a JSON file of format {FORMAT!r}, got another")
        try:
            tokenizer = Tokenizer.from_str(json.dumps(content["tokenizer"]))
            counts = torch.tensor(content["counts"])
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{shown(Path(path))}: expected a tokenizer and its counts: {shown(error)}") from error
        try:
            return cls(tokenizer, counts)
        except ValueError as error:
            raise ValueError(f"{shown(Path(path))}: {error}") from error


def build_vocabulary(
    lines: Sequence[str],
    *,
    tokens: str = "word",
    vocab_size: int | None = None,
    min_count: int = 1,
    split: str = "auto",
) -> Vocabulary:
    r"""Build a vocabulary of the words, or of byte pairs, of training text.

    - `tokens="word"`: the words seen at least `min_count` times, of these the `vocab_size` - 2 most frequent,
      `<unk>` for all others, and `<eos>`. `<unk>` and `<eos>` in the text are these entries.
    - `tokens="bpe"`: byte-level byte pairs (any text is encoded, and decoded to the same) and `<eos>`.

    Args:
        lines: the training text.
        tokens: `"word"` or `"bpe"`.
        vocab_size: number of entries V. `None`: all words, or at most 16,384 byte pairs; in scripts without
            spaces one for each 32 letters, at most 32,768, but no fewer than there are distinct characters.
        min_count: leave out words, or merges of byte pairs, seen less often.
        split: where words end: `"whitespace"`; `"words"` splits runs of word characters and of punctuation, and
            characters of scripts without spaces (Han, kana, Thai, Lao, Khmer, Burmese, ...) with the marks on them;
            `"auto"` is `"whitespace"` for text that `looks_tokenised`, else `"words"`. Byte pairs take no notice.

    Raises:
        TypeError: `lines` is one string.
        ValueError: a `vocab_size` below 3 (257 for byte pairs) or above what the text yields; no text; a
            `min_count` that no word reaches; an unknown `tokens` or `split`.

    Source:
        Sennrich et al. (2016), Neural Machine Translation of Rare Words with Subword Units.

    Example:
        >>> vocabulary = build_vocabulary(["a rose is a rose", "is a rose"], vocab_size=4)
        >>> vocabulary.size, vocabulary.decode(torch.arange(4)), vocabulary.counts.tolist()
        (4, 'a rose\n<unk>', [3, 3, 2, 2])
    """
    _check_lines(lines)
    check_choice("tokens", tokens, ("word", "bpe"))
    check_choice("split", split, ("auto", "whitespace", "words"))
    min_count = check_positive_int("min_count", min_count)
    least = MIN_SIZE if tokens == "word" else NUM_BYTES + 1
    if vocab_size is not None:
        vocab_size = check_positive_int("vocab_size", vocab_size)
    if vocab_size is not None and vocab_size < least:
        raise ValueError(f"vocab_size: expected at least {least} for tokens={tokens!r}, got {vocab_size}")
    if all(not line or line.isspace() for line in lines):
        raise ValueError(f"lines: expected text to build a vocabulary from, got {len(lines)} blank lines")
    if tokens == "bpe":
        return _build_bpe(lines, vocab_size, min_count)
    return _build_words(lines, vocab_size, min_count, split_for(lines) if split == "auto" else split)


def _build_words(lines: Sequence[str], vocab_size: int | None, min_count: int, split: str) -> Vocabulary:
    draft = _word_tokenizer({UNK: 0, EOS: 1}, split)
    every_word = trainers.WordLevelTrainer(vocab_size=2**62, special_tokens=[UNK, EOS], show_progress=False)
    draft.train_from_iterator(_texts(draft, lines), every_word)
    every_id = {word: index for index, word in enumerate(draft.get_vocab())}  # the trainer's have gaps
    counts = _count(_word_tokenizer(every_id, split), lines)

    words = [word for word in _by_falling_count(counts) if counts[word] and word not in (UNK, EOS)]
    if not words:
        raise ValueError(f"lines: expected words to build a vocabulary from, got only {UNK} and {EOS}")
    kept = [word for word in words if counts[word] >= min_count]
    if not kept:
        raise ValueError(
            f"min_count: expected at most {counts[words[0]]}, the highest count of a word, got {min_count}"
        )
    _check_yield(vocab_size, len(kept) + 2, f"distinct tokens at {min_count=} with {UNK} and {EOS}")
    kept_counts = {word: counts[word] for word in (EOS, *kept[: vocab_size and vocab_size - 2])}
    kept_counts[UNK] = sum(counts.values()) - sum(kept_counts.values())
    return _ranked(kept_counts, partial(_word_tokenizer, split=split))


def _word_tokenizer(ids: dict[str, int], split: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    if split == "whitespace":
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        characters = pre_tokenizers.Split(Regex(CHARACTER), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([characters, pre_tokenizers.Whitespace()])
        tokenizer.add_special_tokens([UNK, EOS])  # kept whole, where the rule would split off their brackets
    return tokenizer


def _build_bpe(lines: Sequence[str], vocab_size: int | None, min_count: int) -> Vocabulary:
    draft = _bpe_tokenizer({EOS: 0}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BYTES + 1 + byte_pairs_for(lines) if vocab_size is None else vocab_size,
        min_frequency=min_count,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    draft.train_from_iterator(_texts(draft, lines), trainer)
    _check_yield(vocab_size, draft.get_vocab_size(), f"byte pairs at {min_count=} with single bytes and {EOS}")
    merges = [(left, right) for left, right in json.loads(draft.to_str())["model"]["merges"]]
    return _ranked(_count(draft, lines), partial(_bpe_tokenizer, merges=merges))


def _bpe_tokenizer(ids: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def _check_yield(vocab_size: int | None, num_entries: int, entries: str) -> None:
    if vocab_size is not None and vocab_size > num_entries:
        raise ValueError(f"vocab_size: expected at most {num_entries}, the number of {entries}, got {vocab_size}")


def _ranked(counts: dict[str, int], tokenizer_of: Callable[[dict[str, int]], Tokenizer]) -> Vocabulary:
    """Number the entries by falling count."""
    entries = _by_falling_count(counts)
    tokenizer = tokenizer_of({entry: rank for rank, entry in enumerate(entries)})
    return Vocabulary(tokenizer, torch.tensor([counts[entry] for entry in entries], dtype=torch.int64))


def _by_falling_count(counts: dict[str, int]) -> list[str]:
    return sorted(counts, key=lambda entry: (-counts[entry], entry))


def _count(tokenizer: Tokenizer, lines: Sequence[str]) -> dict[str, int]:
    """Count the entries of a tokenizer in lines, exactly as `encode` meets them."""
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for ids in _encode(tokenizer, lines):
        counts += np.bincount(ids, minlength=len(counts))
    return {entry: int(counts[index]) for entry, index in tokenizer.get_vocab().items()}


def _encode(tokenizer: Tokenizer, lines: Iterable[str]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the ids of lines chunk by chunk, so that memory stays bounded."""
    eos = [tokenizer.token_to_id(EOS)]
    pieces = chain.from_iterable(map(partial(_pieces, _gap(tokenizer)), lines))
    while chunk := list(islice(pieces, CHUNK_PIECES)):
        encodings = tokenizer.encode_batch_fast([text for text, _ in chunk], add_special_tokens=False)
        ids = (
            encoding.ids + eos if last else encoding.ids
            for encoding, (_, last) in zip(encodings, chunk, strict=True)
        )
        yield np.fromiter(chain.from_iterable(ids), dtype=np.int64)


def _texts(tokenizer: Tokenizer, lines: Iterable[str]) -> Iterator[str]:
    gaps = _gap(tokenizer)  # before training: until it is done, a tokenizer answers nothing
    return (text for line in lines for text, _ in _pieces(gaps, line))


def _gap(tokenizer: Tokenizer) -> re.Pattern[str]:
    return SPACE if isinstance(tokenizer.pre_tokenizer, pre_tokenizers.WhitespaceSplit) else GAP


def _pieces(gaps: re.Pattern[str], line: str) -> Iterator[tuple[str, bool]]:
    """Cut a long line at gaps; each piece comes with whether it is the last of its line."""
    start = 0
    while gap := gaps.search(line, start + PIECE_CHARS):
        yield line[start : gap.start()], False
        start = gap.start()
    yield line[start:], True


def _check_lines(lines: Iterable[str]) -> None:
    if isinstance(lines, str):
        raise TypeError(f"lines: expected lines of text, got one string of {len(lines)} characters")
