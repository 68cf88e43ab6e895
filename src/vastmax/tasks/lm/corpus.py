"""From a path to token streams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vastmax.data import Vocabulary, build_vocabulary, read_corpus, standard_library
from vastmax.tasks.lm.config import LMConfig
from vastmax.validation import shown


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
        }


def read_streams(config: LMConfig, vocabulary: Vocabulary | None = None) -> TokenStreams:
    """Read the text a run asks for and encode it, in `vocabulary` or in one built from its training part.

    Raises:
        FileNotFoundError, ValueError: a text that is missing, empty, not text, or too short for the run.
    """
    corpus = standard_library() if config.data is None else read_corpus(config.data)
    if vocabulary is None:
        vocabulary = build_vocabulary(
            corpus.train,
            tokens=config.tokens,
            vocab_size=config.vocab_size,
            min_count=config.min_count,
            split=config.split,
        )
    train, valid, test = (vocabulary.encode(lines) for lines in (corpus.train, corpus.valid, corpus.test))
    for name, stream in (("validation", valid), ("test", test)):
        if len(stream) < 2:
            raise ValueError(
                f"{shown(Path(corpus.source))}: expected at least 2 tokens of {name} text, got {len(stream)}"
            )
    return TokenStreams(corpus.name, corpus.source, list(corpus.notes), vocabulary, train, valid, test)
