"""The heads that a classifier can be given, by their names in the command, a family at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vastmax import heads, samplers, trees
from vastmax.functional import effective_number_weight, inverse_frequency_weight, log_prior
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.validation import check_choice

Builder = Callable[[ClassifyConfig, Tensor], heads.Head]
MIXTURES = 4
TOP_K = 5
PSEUDOCOUNT = 1e-9
"""Rows added to each class before the prior: every class has some to train on, so that the prior is as counted."""


@dataclass(frozen=True)
class Kind:
    """A head by its family, what builds it from options and counts (V,), and what it is in one line."""

    family: str
    build: Builder
    meaning: str


def _exact(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.Softmax(config.hidden, len(counts))


def _smoothing(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.Softmax(config.hidden, len(counts), label_smoothing=config.smoothing)


def _focal(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    alpha = inverse_frequency_weight(counts).float()
    return heads.Softmax(config.hidden, len(counts), focal_gamma=config.gamma, class_weight=alpha)


def _weighted(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.Softmax(config.hidden, len(counts), class_weight=inverse_frequency_weight(counts).float())


def _effective(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    weight = effective_number_weight(counts, beta=config.beta).float()
    return heads.Softmax(config.hidden, len(counts), class_weight=weight)


def _logit_adjusted(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    adjustment = (config.tau * log_prior(counts, pseudocount=PSEUDOCOUNT)).float()
    return heads.Softmax(config.hidden, len(counts), logit_adjustment=adjustment)


def _topk(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.TopKSoftmax(config.hidden, len(counts), k=min(TOP_K, len(counts)))


def _sparsemax(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.Entmax(config.hidden, len(counts), alpha=2.0)


def _entmax15(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.Entmax(config.hidden, len(counts), alpha=1.5)


def _mixture(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.MixtureOfSoftmaxes(config.hidden, len(counts), num_mixtures=MIXTURES)


def _sigsoftmax(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.SigSoftmax(config.hidden, len(counts))


def _one_vs_all(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.OneVsAll(config.hidden, len(counts))


def _sampled(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return _with_noise(heads.SampledSoftmax, config, counts)


def _nce(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return _with_noise(heads.NCE, config, counts)


def _negative(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return _with_noise(heads.NegativeSampling, config, counts)


def _with_noise(kind: Callable[..., heads.SampledHead], config: ClassifyConfig, counts: Tensor) -> heads.Head:
    noise = samplers.Unigram(counts, power=1.0)
    return kind(config.hidden, len(counts), sampler=noise, num_samples=config.num_samples)


def _hierarchical(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.HierarchicalSoftmax(config.hidden, trees.huffman(counts))


def _factored(config: ClassifyConfig, counts: Tensor) -> heads.Head:
    return heads.ClassFactoredSoftmax(config.hidden, heads.frequency_clusters(counts))


ADJUSTED_AFTER = "adjusted-after"
KINDS: dict[str, Kind] = {
    "exact": Kind("softmax", _exact, "Cross-entropy over every class: the yardstick."),
    "smoothing": Kind("softmax", _smoothing, "Cross-entropy with a share of the target spread over all classes."),
    "weighted": Kind(
        "imbalance", _weighted, "Cross-entropy in which every class weighs the same, by one over its rows."
    ),
    "effective": Kind("imbalance", _effective, "Cross-entropy with weights of one over its effective rows."),
    "focal": Kind("imbalance", _focal, "The same weights, and a row counts less the better it is predicted."),
    "logit-adjusted": Kind("imbalance", _logit_adjusted, "Trains with the log prior added to the logits."),
    ADJUSTED_AFTER: Kind("imbalance", _exact, "Trains as exact does and predicts with the log prior taken off."),
    "topk": Kind("sparse", _topk, f"A softmax over the {TOP_K} highest logits; the rest have probability 0."),
    "sparsemax": Kind("sparse", _sparsemax, "The projection of the logits onto the simplex: many zeros."),
    "entmax15": Kind("sparse", _entmax15, "Half-way between softmax and sparsemax: some zeros."),
    "mixture": Kind("beyond softmax", _mixture, f"A mixture of {MIXTURES} softmaxes: logits of a higher rank."),
    "sigsoftmax": Kind("beyond softmax", _sigsoftmax, "Softmax times a sigmoid: logits of a higher rank."),
    "one-vs-all": Kind("beyond softmax", _one_vs_all, "A yes-or-no question for each class."),
    "sampled": Kind("sampled", _sampled, "Softmax over the target and drawn candidates, corrected for the draw."),
    "nce": Kind("sampled", _nce, "Tells the target from noise whose probability is known."),
    "negative": Kind("sampled", _negative, "Tells the target from drawn candidates, as word2vec does."),
    "hierarchical": Kind("tree", _hierarchical, "A product of turns down Huffman's tree."),
    "factored": Kind("tree", _factored, "First the group of a class, then the class in its group."),
}


def build_head(name: str, config: ClassifyConfig, counts: Tensor) -> heads.Head:
    """Build a head by its name, over classes with these numbers of training rows (V,)."""
    check_choice("head", name, tuple(KINDS))
    return KINDS[name].build(config, counts)


def predict(name: str, head: heads.Head, hidden: Tensor, config: ClassifyConfig, counts: Tensor) -> Tensor:
    """Return the log-probabilities (N, V) that a head predicts with, after its adjustment if it has one."""
    log_prob = head.log_prob(hidden)
    if name == ADJUSTED_AFTER:
        adjustment = config.tau * log_prior(counts, pseudocount=PSEUDOCOUNT)
        log_prob = (log_prob - adjustment.to(log_prob.dtype)).log_softmax(-1)
    return log_prob
