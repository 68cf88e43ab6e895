"""One table of heads: a new head joins by one line and passes every check of test_conformance.py."""

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
    draws: bool | None = None
    """Its loss depends on draws; so it does if `sampled`, unless said otherwise."""
    sparse: bool | None = None
    """It takes `sparse`; so it does if `sampled`, unless said otherwise."""
    flat: bool = True
    """Its parameters are those of `nn.Linear`."""
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
            merged.setdefault("sampler", samplers.Unigram(counts(num_classes), unique=self.unique))
            merged.setdefault("num_samples", min(3, num_classes))
        return self.build(dim, num_classes, dtype=dtype, **merged)


def nce_with_proposal(dim, num_classes, *, unique=False, **options):
    return heads.NCE(dim, num_classes, proposal=samplers.Uniform(num_classes, unique=unique), **options)


def hierarchical(dim, num_classes, **options):
    return heads.HierarchicalSoftmax(dim, trees.huffman(counts(num_classes)), **options)


def exact(build, options=None, *, sparse=False, flat=False, sized=True):
    return Case(build, options or {}, sampled=False, sparse=sparse, flat=flat, sized=sized)


CASES = {
    "Softmax": exact(heads.Softmax, flat=True),
    "Softmax, no bias": exact(heads.Softmax, {"bias": False}, flat=True),
    "HierarchicalSoftmax": exact(hierarchical, sparse=True, sized=False),
    "HierarchicalSoftmax, no bias": exact(hierarchical, {"bias": False}, sparse=True, sized=False),
    "HierarchicalSoftmax, sparse": exact(hierarchical, {"sparse": True}, sparse=True, sized=False),
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
}
