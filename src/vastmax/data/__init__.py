"""Readers for the formats people have."""

try:
    from vastmax.data.batches import TokenBatches
    from vastmax.data.scripts import looks_tokenised
    from vastmax.data.stdlib import standard_library
    from vastmax.data.text import Corpus, read_corpus
    from vastmax.data.vocabulary import Vocabulary, build_vocabulary
except ModuleNotFoundError as missing:  # polars or tokenizers
    raise ImportError(f"vastmax.data needs the package {missing.name}: pip install 'vastmax[train]'") from missing

__all__ = [
    "Corpus",
    "TokenBatches",
    "Vocabulary",
    "build_vocabulary",
    "looks_tokenised",
    "read_corpus",
    "standard_library",
]
