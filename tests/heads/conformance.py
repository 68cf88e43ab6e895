"""One table of heads: a new head joins by one line and passes every check of `test_conformance*.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vastmax import heads, samplers, trees

V, D = 7, 4


def counts(num_classes: int) -> torch.Tensor:
    return torch.arange(num_classes, 0, -1)


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

    def __post_init__(self) -> None:
        for name in ("draws", "sparse"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.sampled)

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


def adaptive(dim, num_classes, **options):
    cutoffs = [c for c in (2, 4) if c < min(num_classes, 2 * dim - 1)]
    return heads.AdaptiveSoftmax(dim, num_classes, cutoffs, div_value=2.0, **options)


def exact(build, options=None, **promises):
    """A head that draws nothing and is not flat, unless it is said to."""
    return Case(build, options or {}, **{"sampled": False, "flat": False, **promises})


CASES = {
    "Softmax": exact(heads.Softmax, flat=True),
    "Softmax, no bias": exact(heads.Softmax, {"bias": False}, flat=True),
    "HierarchicalSoftmax": exact(hierarchical, sparse=True, sized=False),
    "HierarchicalSoftmax, no bias": exact(hierarchical, {"bias": False}, sparse=True, sized=False),
    "HierarchicalSoftmax, sparse": exact(hierarchical, {"sparse": True}, sparse=True, sized=False),
    "ClassFactoredSoftmax": exact(factored, sparse=True, sized=False),
    "ClassFactoredSoftmax, no bias, sparse": exact(
        factored, {"bias": False, "sparse": True}, sparse=True, sized=False
    ),
    "ClassFactoredSoftmax, sampled": exact(
        factored, {"within": "sampled", "num_samples": 2, "counted": True}, draws=True, sparse=True, sized=False
    ),
    "ClassFactoredSoftmax, nce, sparse": exact(
        factored, {"within": "nce", "num_samples": 2, "sparse": True}, draws=True, sparse=True, sized=False
    ),
    "AdaptiveSoftmax": exact(adaptive, starts=False),
    "AdaptiveSoftmax, head bias": exact(adaptive, {"head_bias": True}, starts=False),
    "AdaptiveSoftmax, sampled tails": exact(adaptive, {"tail_samples": 1}, draws=True, sparse=True, starts=False),
    "SampledSoftmax": Case(heads.SampledSoftmax),
    "SampledSoftmax, sparse": Case(heads.SampledSoftmax, {"sparse": True}),
    "SampledSoftmax, distinct": Case(heads.SampledSoftmax, unique=True),
    "SampledSoftmax, per row": Case(heads.SampledSoftmax, {"shared": False}),
    "SampledSoftmax, per row, distinct": Case(heads.SampledSoftmax, {"shared": False}, unique=True),
    "NCE": Case(heads.NCE),
    "NCE, sparse, per row": Case(heads.NCE, {"sparse": True, "shared": False}),
    "NCE, distinct": Case(heads.NCE, unique=True),
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
    "OneVsEach, distinct": Case(heads.OneVsEach, unique=True),
    "ImportanceSampledSoftmax": Case(heads.ImportanceSampledSoftmax),
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
