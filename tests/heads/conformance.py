"""One table of heads: a new head joins by one line and passes every check of test_conformance.py."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vastmax import heads, samplers

V, D = 7, 4


def counts(num_classes: int) -> torch.Tensor:
    return torch.arange(num_classes, 0, -1)


@dataclass(frozen=True)
class Case:
    """A head, its options, and what its family promises."""

    build: Callable[..., heads.Head]
    options: dict = field(default_factory=dict)
    unique: bool = False
    flat: bool = True
    sampled: bool = True

    def make(self, num_classes=V, dim=D, dtype=torch.float64, **options):
        torch.manual_seed(5)
        merged = {**self.options, **options}
        if self.sampled:
            merged.setdefault("sampler", samplers.Unigram(counts(num_classes), unique=self.unique))
            merged.setdefault("num_samples", min(3, num_classes))
        return self.build(dim, num_classes, dtype=dtype, **merged)


CASES = {
    "Softmax": Case(heads.Softmax, sampled=False),
    "Softmax, no bias": Case(heads.Softmax, {"bias": False}, sampled=False),
    "SampledSoftmax": Case(heads.SampledSoftmax),
    "SampledSoftmax, sparse": Case(heads.SampledSoftmax, {"sparse": True}),
    "SampledSoftmax, distinct": Case(heads.SampledSoftmax, unique=True),
    "SampledSoftmax, per row": Case(heads.SampledSoftmax, {"shared": False}),
    "SampledSoftmax, per row, distinct": Case(heads.SampledSoftmax, {"shared": False}, unique=True),
    "NCE": Case(heads.NCE),
    "NCE, sparse, per row": Case(heads.NCE, {"sparse": True, "shared": False}),
    "NCE, distinct": Case(heads.NCE, unique=True),
    "NCE, no bias": Case(heads.NCE, {"bias": False}),
    "NegativeSampling": Case(heads.NegativeSampling),
    "NegativeSampling, sparse": Case(heads.NegativeSampling, {"sparse": True}),
    "NegativeSampling, per row, distinct": Case(heads.NegativeSampling, {"shared": False}, unique=True),
}
