"""From a path to token streams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vastmax.data import Corpus, Vocabulary, build_vocabulary, read_corpus, standard_library
from vastmax.data.scripts import describe_split, split_for
from vastmax.data.vocabulary import UNK
from vastmax.tasks.files import check_unread
from vastmax.tasks.lm.config import LMConfig
from vastmax.validation import shown

MIN_TOKENS = 3  # of training text, and how few no model learns from
MANY_UNKNOWN = 0.1  # of the tokens that are scored; above it, perplexity says little


@dataclass(frozen=True)
class TokenStreams:
    """A text as three streams of token ids, and the vocabulary they are written in."""

    name: str
    source: str
    notes: list[str]
    vocabulary: Vocabulary
    train: Tensor
    valid: Tensor
    test: Tensor

    def summary(self) -> dict[str, object]:
        """What a reader of results needs to know of the text."""
        return {
            "name": self.name,
            "source": self.source,
            "notes": self.notes,
            "num_classes": self.vocabulary.size,
            "train_tokens": len(self.train),
            "valid_tokens": len(self.valid),
            "test_tokens": len(self.test),
            "unknown": self.unknown(),
        }

    def unknown(self) -> dict[str, float] | None:
        """Return the share of `<unk>` in validation and test; None if the vocabulary has none, as byte pairs."""
        unk = self.vocabulary.tokenizer.token_to_id(UNK)
        if unk is None:
            return None
        streams = {"valid": self.valid, "test": self.test}
        return {name: (stream == unk).double().mean().item() for name, stream in streams.items()}


def read_streams(config: LMConfig, vocabulary: Vocabulary | None = None) -> TokenStreams:
    """Read the text a run asks for and encode it, in `vocabulary` or in one built from its training part.

    Raises:
        FileNotFoundError, ValueError: a text that is missing, empty, not text, or too short for the run.
    """
    corpus = read_text_of(config)
    notes = list(corpus.notes)
    if vocabulary is None:
        split = split_for(corpus.train) if config.split == "auto" else config.split
        vocabulary = build_vocabulary(
            corpus.train,
            tokens=config.tokens,
            vocab_size=config.vocab_size,
            min_count=config.min_count,
            split=split,
        )
        pairs = f"{vocabulary.size:,} byte pairs"
        notes.append(describe_split(corpus.train, split) if config.tokens == "word" else f"split into {pairs}")
    train, valid, test = (vocabulary.encode(lines) for lines in (corpus.train, corpus.valid, corpus.test))
    if (found := int((train != vocabulary.eos_id).sum())) < MIN_TOKENS:
        text = next(line for line in corpus.train if line.strip())
        raise ValueError(
            f"{shown(Path(corpus.source))}: expected at least {MIN_TOKENS} tokens to train on, got {found}: "
            f"{shown(text[:100])}; --split {config.split} found no more, --tokens bpe takes any text"
        )
    for name, stream in (("validation", valid), ("test", test)):
        if len(stream) < 2:
            raise ValueError(
                f"{shown(Path(corpus.source))}: expected at least 2 tokens of {name} text, got {len(stream)}"
            )
    return TokenStreams(corpus.name, corpus.source, notes, vocabulary, train, valid, test)


def read_text_of(config: LMConfig) -> Corpus:
    """Read the text a run asks for."""
    if config.data is not None:
        return read_corpus(
            config.data,
            encoding=config.encoding,
            text_column=config.text_column,
            within_words=config.tokens == "bpe",
        )
    check_unread(LMConfig, encoding=config.encoding, text_column=config.text_column)
    return standard_library()


def describe(streams: TokenStreams) -> str:
    """Say in lines what a text is, what was read of it and how, and whether its scores will mean something."""
    lines = [
        f"{streams.source}: {len(streams.train):,} / {len(streams.valid):,} / {len(streams.test):,} tokens "
        f"to train, validate and test, {streams.vocabulary.size:,} classes",
        *(f"  {note}" for note in streams.notes),
    ]
    return "\n".join([*lines, *describe_unknown(streams.unknown())])


def describe_unknown(unknown: dict[str, float] | None) -> list[str]:
    """Say in lines which share of the scored tokens is `<unk>`, and warn of many."""
    if unknown is None:
        return []
    lines = [f"  {UNK}: {unknown['valid']:.1%} of the validation tokens, {unknown['test']:.1%} of the test tokens"]
    if max(unknown.values()) > MANY_UNKNOWN:
        lines.append(
            f"warning: more than {MANY_UNKNOWN:.0%} are {UNK}, which is easily guessed: perplexity says little; "
            "--tokens bpe has none, --split says where words end"
        )
    return lines
