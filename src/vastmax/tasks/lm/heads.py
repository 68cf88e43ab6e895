"""The heads that a language model can be given, by their names in the command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from vastmax import heads, samplers, trees
from vastmax.data.contexts import context_vectors
from vastmax.tasks.lm.config import LMConfig
from vastmax.validation import check_choice

Builder = Callable[[LMConfig, Tensor], heads.Head]


def build_tree(tokens: Tensor, counts: Tensor) -> trees.Tree:
    """Build the tree of the hierarchical head: tokens with the same neighbours in a text share a path.

    Args:
        tokens: (T,) the training text.
        counts: (V,) occurrences of each token in it.
    """
    vectors = context_vectors(tokens, len(counts))
    return trees.clustered(vectors[falling(counts)])


def falling(counts: Tensor) -> Tensor:
    """The tokens by falling count, which is what the classes of a head are: (V,)."""
    return counts.argsort(descending=True, stable=True)


def build_sampler(config: LMConfig, counts: Tensor) -> samplers.Sampler:
    """Build the noise distribution that a run asks for, over classes with these counts."""
    num_classes = len(counts)
    seen = counts.clamp(min=1)  # a token that the training text lacks can still be a target
    unigram = samplers.Unigram(seen, config.power)

    def half(follower: samplers.Sampler) -> samplers.Sampler:
        # Alone, a sampler that follows the model gives weights without bound to what the model underrates.
        return samplers.Mixture([follower, unigram], [0.5, 0.5])

    match config.sampler:
        case "uniform":
            return samplers.Uniform(num_classes)
        case "log-uniform":
            return samplers.LogUniform(num_classes)
        case "in-batch":
            return samplers.InBatch(num_classes, counts=seen)
        case "tree-guided":
            return half(samplers.TreeGuided(num_classes))
        case "random-features":
            return half(samplers.RandomFeatures(num_classes))
        case "hard-negatives":
            return samplers.HardNegatives(unigram, pool=min(10 * config.num_samples, 10_000_000))
        case "top-and-tail":
            tail = samplers.Unigram(seen, config.power, unique=True)
            return samplers.TopAndTail(tail, top=min(config.num_samples, num_classes))
    return unigram


def _exact(config: LMConfig, counts: Tensor) -> heads.Head:
    return heads.Softmax(config.width, len(counts))


def _mixture(config: LMConfig, counts: Tensor) -> heads.Head:
    """A mixture with as many parameters as the exact head: its class rows are narrower by what its gates take."""
    num_classes, width, mixtures = len(counts), config.width, config.mixtures
    class_features = (num_classes * width - mixtures * width) // (num_classes + mixtures * width)
    if mixtures == 1:
        class_features = width
    if class_features < 1:
        raise ValueError(
            f"mixtures: expected so few that {num_classes} classes leave room for their gates, got {mixtures}"
        )
    return heads.MixtureOfSoftmaxes(width, num_classes, mixtures, class_features=class_features)


def _sig(config: LMConfig, counts: Tensor) -> heads.Head:
    return heads.SigSoftmax(config.width, len(counts))


def _factored(config: LMConfig, counts: Tensor) -> heads.Head:
    return heads.ClassFactoredSoftmax(config.width, heads.frequency_clusters(counts), sparse=True)


def _factored_sampled(config: LMConfig, counts: Tensor) -> heads.Head:
    return heads.ClassFactoredSoftmax(
        config.width,
        heads.frequency_clusters(counts),
        within="sampled",
        num_samples=max(1, config.num_samples // 16),  # a group has about the square root of the classes
        counts=counts.clamp(min=1),
        sparse=True,
    )


def _adaptive(config: LMConfig, counts: Tensor) -> heads.Head:
    return heads.AdaptiveSoftmax(config.width, len(counts), "auto", 2.0, counts=counts, head_bias=True)


def _sampled(
    kind: Callable[..., heads.SampledHead], config: LMConfig, counts: Tensor, **options: Any
) -> heads.Head:
    return kind(
        config.width,
        len(counts),
        sampler=build_sampler(config, counts),
        num_samples=config.num_samples,
        shared=config.shared,
        sparse=True,
        **options,
    )


BUILDERS: dict[str, Builder] = {
    "exact": _exact,
    "sampled": partial(_sampled, heads.SampledSoftmax),
    "nce": partial(_sampled, heads.NCE),
    "negative": partial(_sampled, heads.NegativeSampling),
    "nce-conditional": partial(_sampled, heads.NCE, log_partition="conditional"),
    "importance": partial(_sampled, heads.ImportanceSampledSoftmax),
    "one-vs-each": partial(_sampled, heads.OneVsEach),
    "factored": _factored,
    "factored-sampled": _factored_sampled,
    "adaptive": _adaptive,
    "mixture": _mixture,
    "sigsoftmax": _sig,
}
HIERARCHICAL = "hierarchical"
HEADS = (*BUILDERS, HIERARCHICAL)
COMMON = HEADS[:4]
"""Those that a comparison takes unless it is told otherwise."""


def build_head(name: str, config: LMConfig, counts: Tensor, tree: trees.Tree | None = None) -> heads.Head:
    """Build a head by its name, over classes sorted by falling count, started at their frequencies.

    `tree` is that of the hierarchical head; Huffman's if omitted.
    """
    check_choice("head", name, HEADS)
    if name == HIERARCHICAL:
        head: heads.Head = heads.HierarchicalSoftmax(config.width, tree or trees.huffman(counts), sparse=True)
    else:
        head = BUILDERS[name](config, counts)
    smoothed = counts.double() + 1
    head.start_at((smoothed / smoothed.sum()).log())
    return head


def check_head(name: str, config: LMConfig, counts: Tensor) -> None:
    """Raise ValueError if a head cannot be built with these options, such as one that does not take the sampler."""
    try:
        build_head(name, config, counts[falling(counts)])
    except ValueError as error:
        raise ValueError(f"{name} with --sampler {config.sampler}: {error}") from error
