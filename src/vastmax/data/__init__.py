"""Readers for the formats people have."""

from vastmax.data.batches import TokenBatches
from vastmax.data.stdlib import standard_library
from vastmax.data.text import Corpus, looks_tokenised, read_corpus
from vastmax.data.vocabulary import Vocabulary, build_vocabulary

__all__ = [
    "Corpus",
    "TokenBatches",
    "Vocabulary",
    "build_vocabulary",
    "looks_tokenised",
    "read_corpus",
    "standard_library",
]
