"""One table of heads: a new head joins by one line and passes every check of `test_conformance*.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vastmax import functional, heads, samplers, trees

V, D = 7, 4


def counts(num_classes: int) -> torch.Tensor:
    return torch.arange(num_classes, 0, -1)


def class_weight(num_classes: int) -> torch.Tensor:
    return torch.linspace(0.3, 1.7, num_classes, dtype=torch.float64)


def mask_biases(head, most):
    """Mask a class, or most of them, by their biases; return which."""
    gone = [0, 2, 3, 5, 6] if most else [3]
    head.bias[gone] = -torch.inf
    return gone


@dataclass(frozen=True)
class Case:
    """A head, its options, and what its family promises."""

    build: Callable[..., heads.Head]
    options: dict = field(default_factory=dict)
    sampled: bool = True
    """It takes `sampler` and `num_samples`, and `generator` when called."""
    unique: bool = False
    """Its sampler draws sets of distinct classes."""
    noise: Callable[[int], samplers.Sampler] | None = None
    """Its sampler, for a number of classes; one of the classes' counts if omitted."""
    follows: bool = False
    """Its sampler follows the batch or the model, whose gradient goes round it."""
    draws: bool | None = None
    """Its loss depends on draws; so it does if `sampled`, unless said otherwise."""
    sparse: bool | None = None
    """It takes `sparse`; so it does if `sampled`, unless said otherwise."""
    flat: bool = True
    """Its parameters are those of `nn.Linear`."""
    starts: bool = True
    """`start_at` gives every class the probability asked for."""
    sized: bool = True
    """Its second argument is `num_classes`; else it is what knows it, such as a tree."""
    plain: bool = True
    """Its loss, where exact, is the cross-entropy of its own probabilities."""
    weighted: bool = False
    """It has class weights, `class_weight(V)`."""
    zeros: bool = False
    """It gives some classes the exact probability 0, whose nll is infinite."""
    labels: bool = False
    """Each class is a label that is true or not, by itself: several of them do not share a row."""
    mask: Callable[[heads.Head, bool], list[int]] | None = mask_biases
    """Give a class, or most of them, probability 0, and say which; None if there is no way to."""

    def __post_init__(self) -> None:
        for name in ("draws", "sparse"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.sampled)

    def row_mass(self, target: torch.Tensor) -> torch.Tensor:
        """What rows of one true class each count for in a mean."""
        return class_weight(V)[target] if self.weighted else torch.ones_like(target, dtype=torch.float64)

    def make(self, num_classes=V, dim=D, dtype=torch.float64, **options):
        torch.manual_seed(5)
        merged = {**self.options, **options}
        if self.sampled:
            unigram = samplers.Unigram(counts(num_classes), unique=self.unique)
            merged.setdefault("sampler", unigram if self.noise is None else self.noise(num_classes))
            merged.setdefault("num_samples", min(3, num_classes))
        return self.build(dim, num_classes, dtype=dtype, **merged)


def nce_with_proposal(dim, num_classes, *, unique=False, **options):
    return heads.NCE(dim, num_classes, proposal=samplers.Uniform(num_classes, unique=unique), **options)


def hierarchical(dim, num_classes, **options):
    return heads.HierarchicalSoftmax(dim, trees.huffman(counts(num_classes)), **options)


def mixture(num_classes):
    parts = [samplers.TreeGuided(num_classes), samplers.Unigram(counts(num_classes))]
    return samplers.Mixture(parts, [0.6, 0.4])


def hard_negatives(num_classes):
    return samplers.HardNegatives(samplers.Unigram(counts(num_classes)), pool=max(5, num_classes // 5))


def top_and_tail(num_classes):
    return samplers.TopAndTail(samplers.Unigram(counts(num_classes), unique=True), top=min(2, num_classes))


def in_batch(num_classes):
    return samplers.InBatch(num_classes, counts=counts(num_classes))


def factored(dim, num_classes, *, counted=False, **options):
    clusters = [(c + 1) % min(3, num_classes) for c in range(num_classes)]
    if counted:
        options["counts"] = counts(num_classes)
    return heads.ClassFactoredSoftmax(dim, clusters, **options)


def mask_groups(head, most):
    """Mask a class by its bias, or most classes by those and the biases of the two groups that are left without."""
    if most:
        head.group_bias[:2] = -torch.inf
    return mask_biases(head, most)


def mask_nodes(head, most):
    """Close the turns to a class, or one of the two at the root."""
    nodes, turns, padding = head.tree.paths(torch.arange(V))
    depth = 0 if most else int(head.tree.depth[3]) - 1
    node, turn = nodes[3, depth], turns[3, depth]
    head.bias[node] = torch.inf * (2 * int(turn) - 1)
    return ((nodes == node) & (turns == turn) & ~padding).any(-1).nonzero().squeeze(-1).tolist()


def mask_head(head, most):
    """Mask a class of the shortlist, or it and a tail, by their biases."""
    head.head.bias[[0, 3] if most else [1]] = -torch.inf
    return [0, 4, 5, 6] if most else [1]


def adaptive(dim, num_classes, **options):
    cutoffs = [c for c in (2, 4) if c < min(num_classes, 2 * dim - 1)]
    return heads.AdaptiveSoftmax(dim, num_classes, cutoffs, div_value=2.0, **options)


def mixture_of_softmaxes(dim, num_classes, **options):
    return heads.MixtureOfSoftmaxes(dim, num_classes, 3, **options)


def topk(dim, num_classes, **options):
    return heads.TopKSoftmax(dim, num_classes, min(3, num_classes), **options)


def weighted(build):
    """The head with a weight per class."""

    def build_weighted(dim, num_classes, **options):
        return build(dim, num_classes, class_weight=class_weight(num_classes), **options)

    return build_weighted


def adjusted(dim, num_classes, **options):
    adjustment = 0.5 * functional.log_prior(counts(num_classes))
    return heads.Softmax(dim, num_classes, logit_adjustment=adjustment, **options)


def exact(build, options=None, **promises):
    """A head that draws nothing and is not flat, unless it is said to."""
    return Case(build, options or {}, **{"sampled": False, "flat": False, **promises})


def tree(build, options=None, **promises):
    return exact(build, options, sparse=True, sized=False, mask=mask_nodes, **promises)


def grouped(build, options=None, **promises):
    return exact(build, options, sparse=True, sized=False, mask=mask_groups, **promises)


def shortlisted(build, options=None, **promises):
    mask = mask_head if (options or {}).get("head_bias") else None
    return exact(build, options, starts=False, mask=mask, **promises)


CASES = {
    "Softmax": exact(heads.Softmax, flat=True),
    "Softmax, no bias": exact(heads.Softmax, {"bias": False}, flat=True),
    "Softmax, temperature": exact(heads.Softmax, {"temperature": 0.6}, flat=True),
    "Softmax, learned temperature": exact(heads.Softmax, {"temperature": "learned"}),
    "Softmax, square root of classes": exact(
        heads.Softmax, {"temperature": "sqrt_classes", "bias": False}, flat=True
    ),
    "Softmax, capped": exact(heads.Softmax, {"softcap": 6.0, "temperature": 0.8}, flat=True),
    "Softmax, class weights": exact(weighted(heads.Softmax), flat=True, weighted=True, sized=False),
    "Softmax, smoothed": exact(heads.Softmax, {"label_smoothing": 0.2}, flat=True, plain=False),
    "Softmax, focal": exact(heads.Softmax, {"focal_gamma": 0.5}, flat=True, plain=False),
    "Softmax, adjusted": exact(adjusted, flat=True, plain=False, sized=False),
    "Softmax, all of it": exact(
        weighted(adjusted),
        {"label_smoothing": 0.2, "focal_gamma": 1.5, "z_loss": 0.1, "temperature": 0.8},
        flat=True,
        plain=False,
        weighted=True,
        sized=False,
    ),
    "SigSoftmax": exact(heads.SigSoftmax, flat=True),
    "SigSoftmax, smoothed, learned temperature": exact(
        heads.SigSoftmax, {"label_smoothing": 0.1, "temperature": "learned"}, plain=False
    ),
    "TopKSoftmax": exact(topk, flat=True, starts=False, zeros=True, sized=False),
    "TopKSoftmax, capped": exact(topk, {"softcap": 1.5}, flat=True, starts=False, zeros=True, sized=False),
    "TopKSoftmax, class weights, temperature": exact(
        weighted(topk), {"temperature": 0.5}, flat=True, starts=False, zeros=True, weighted=True, sized=False
    ),
    "Entmax": exact(heads.Entmax, flat=True, plain=False, zeros=True),
    "Entmax, sparsemax, no bias": exact(
        heads.Entmax, {"alpha": 2.0, "bias": False}, flat=True, plain=False, zeros=True
    ),
    "Entmax, capped": exact(heads.Entmax, {"softcap": 2.5}, flat=True, plain=False, zeros=True),
    "Entmax, learned": exact(heads.Entmax, {"learn_alpha": True, "alpha": 1.3}, plain=False, zeros=True),
    "Entmax, class weights": exact(
        weighted(heads.Entmax), {"temperature": "learned"}, plain=False, zeros=True, weighted=True, sized=False
    ),
    "MixtureOfSoftmaxes": exact(mixture_of_softmaxes),
    "MixtureOfSoftmaxes, no bias, narrow": exact(mixture_of_softmaxes, {"bias": False, "class_features": 2}),
    "MixtureOfSoftmaxes, class weights": exact(weighted(mixture_of_softmaxes), weighted=True, sized=False),
    "OneVsAll": exact(heads.OneVsAll, flat=True, labels=True),
    "OneVsAll, class weights": exact(
        weighted(heads.OneVsAll), {"temperature": 2.0}, flat=True, labels=True, sized=False
    ),
    "HierarchicalSoftmax": tree(hierarchical),
    "HierarchicalSoftmax, no bias": tree(hierarchical, {"bias": False}),
    "HierarchicalSoftmax, sparse": tree(hierarchical, {"sparse": True}),
    "HierarchicalSoftmax, class weights": tree(weighted(hierarchical), weighted=True),
    "ClassFactoredSoftmax": grouped(factored),
    "ClassFactoredSoftmax, no bias, sparse": grouped(factored, {"bias": False, "sparse": True}),
    "ClassFactoredSoftmax, sampled": grouped(
        factored, {"within": "sampled", "num_samples": 2, "counted": True}, draws=True
    ),
    "ClassFactoredSoftmax, nce, sparse": grouped(
        factored, {"within": "nce", "num_samples": 2, "sparse": True}, draws=True
    ),
    "ClassFactoredSoftmax, class weights": grouped(weighted(factored), weighted=True),
    "AdaptiveSoftmax": shortlisted(adaptive),
    "AdaptiveSoftmax, head bias": shortlisted(adaptive, {"head_bias": True}),
    "AdaptiveSoftmax, head bias, class weights": shortlisted(
        weighted(adaptive), {"head_bias": True}, weighted=True, sized=False
    ),
    "AdaptiveSoftmax, sampled tails": shortlisted(
        adaptive, {"tail_samples": 1, "head_bias": True}, draws=True, sparse=True
    ),
    "SampledSoftmax": Case(heads.SampledSoftmax),
    "SampledSoftmax, sparse": Case(heads.SampledSoftmax, {"sparse": True}),
    "SampledSoftmax, capped": Case(heads.SampledSoftmax, {"softcap": 6.0}),
    "SampledSoftmax, capped, per row, sparse, distinct": Case(
        heads.SampledSoftmax,
        {"softcap": 6.0, "shared": False, "sparse": True, "temperature": "learned"},
        unique=True,
        flat=False,
    ),
    "SampledSoftmax, distinct": Case(heads.SampledSoftmax, unique=True),
    "SampledSoftmax, per row": Case(heads.SampledSoftmax, {"shared": False}),
    "SampledSoftmax, per row, distinct": Case(heads.SampledSoftmax, {"shared": False}, unique=True),
    "SampledSoftmax, class weights": Case(weighted(heads.SampledSoftmax), weighted=True, sized=False),
    "SampledSoftmax, temperature, sparse": Case(heads.SampledSoftmax, {"temperature": 0.5, "sparse": True}),
    "SampledSoftmax, learned temperature, sparse": Case(
        heads.SampledSoftmax, {"temperature": "learned", "sparse": True}, flat=False
    ),
    "SampledSoftmax, smoothed": Case(heads.SampledSoftmax, {"label_smoothing": 0.2}),
    "SampledSoftmax, smoothed, class weights, sparse, per row, distinct": Case(
        weighted(heads.SampledSoftmax),
        {"label_smoothing": 0.2, "sparse": True, "shared": False},
        unique=True,
        weighted=True,
        sized=False,
    ),
    "NCE": Case(heads.NCE),
    "NCE, temperature": Case(heads.NCE, {"temperature": 2.0}),
    "NCE, sparse, per row": Case(heads.NCE, {"sparse": True, "shared": False}),
    "NCE, distinct": Case(heads.NCE, unique=True),
    "NCE, capped, fixed log-partition": Case(heads.NCE, {"softcap": 9.0, "log_partition": 0.5}),
    "NCE, no bias": Case(heads.NCE, {"bias": False}),
    "NCE, fixed log-partition": Case(heads.NCE, {"log_partition": 1.5}),
    "NCE, learned log-partition": Case(heads.NCE, {"log_partition": "learned"}, flat=False),
    "NCE, conditional log-partition": Case(heads.NCE, {"log_partition": "conditional", "sparse": True}, flat=False),
    "NCE, penalty": Case(heads.NCE, {"z_loss": 0.3}),
    "NCE, proposal": Case(nce_with_proposal),
    "NCE, distinct proposal, per row": Case(nce_with_proposal, {"unique": True, "shared": False}),
    "NegativeSampling": Case(heads.NegativeSampling),
    "NegativeSampling, sparse": Case(heads.NegativeSampling, {"sparse": True}),
    "NegativeSampling, per row, distinct": Case(heads.NegativeSampling, {"shared": False}, unique=True),
    "NegativeSampling, calibrated": Case(heads.NegativeSampling, {"calibration": 0.75}),
    "OneVsEach": Case(heads.OneVsEach),
    "OneVsEach, sparse, per row": Case(heads.OneVsEach, {"sparse": True, "shared": False}),
    "OneVsEach, capped": Case(heads.OneVsEach, {"softcap": 6.0}),
    "OneVsEach, distinct": Case(heads.OneVsEach, unique=True),
    "ImportanceSampledSoftmax": Case(heads.ImportanceSampledSoftmax),
    "ImportanceSampledSoftmax, capped": Case(heads.ImportanceSampledSoftmax, {"softcap": 6.0}),
    "ImportanceSampledSoftmax, sparse, per row": Case(
        heads.ImportanceSampledSoftmax, {"sparse": True, "shared": False}
    ),
    "ImportanceSampledSoftmax, per row, distinct": Case(
        heads.ImportanceSampledSoftmax, {"shared": False}, unique=True
    ),
    "SampledSoftmax, tree-guided": Case(heads.SampledSoftmax, noise=samplers.TreeGuided, follows=True),
    "SampledSoftmax, tree-guided, sparse, per row": Case(
        heads.SampledSoftmax, {"sparse": True, "shared": False}, noise=samplers.TreeGuided, follows=True
    ),
    "SampledSoftmax, random features": Case(heads.SampledSoftmax, noise=samplers.RandomFeatures, follows=True),
    "NCE, random features, per row": Case(
        heads.NCE, {"shared": False}, noise=samplers.RandomFeatures, follows=True
    ),
    "NCE, mixture": Case(heads.NCE, noise=mixture, follows=True),
    "OneVsEach, mixture, per row": Case(heads.OneVsEach, {"shared": False}, noise=mixture, follows=True),
    "SampledSoftmax, hard negatives": Case(heads.SampledSoftmax, noise=hard_negatives, follows=True),
    "SampledSoftmax, hard negatives, per row": Case(
        heads.SampledSoftmax, {"shared": False}, noise=hard_negatives, follows=True
    ),
    "ImportanceSampledSoftmax, top and tail": Case(
        heads.ImportanceSampledSoftmax, unique=True, noise=top_and_tail, follows=True
    ),
    "SampledSoftmax, top and tail, per row": Case(
        heads.SampledSoftmax, {"shared": False}, unique=True, noise=top_and_tail, follows=True
    ),
    "SampledSoftmax, in batch": Case(heads.SampledSoftmax, noise=in_batch, follows=True, draws=False),
}


def batch(rows=(6,), dtype=torch.float64, seed=0, num_classes=V, dim=D):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*rows, dim, generator=g, dtype=dtype).requires_grad_()
    return hidden, torch.randint(num_classes, rows, generator=g), g


def call(case, head, hidden, target, seed=11, **options):
    """The loss, with its draws fixed by a seed."""
    if case.draws:
        options["generator"] = torch.Generator().manual_seed(seed)
    return head(hidden, target, **options)


def gradients(loss, inputs, upstream=None):
    found = torch.autograd.grad(loss, inputs, upstream, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g.to_dense() for g, x in zip(found, inputs, strict=True)]
