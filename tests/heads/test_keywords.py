"""Every keyword of every head is seen in what the head is or does."""

import inspect

import pytest
import torch
from conformance import D, V, counts

from vastmax import heads, samplers, trees

UNIGRAM = samplers.Unigram(counts(V))
COMMON = {
    "class_weight": torch.arange(1.0, V + 1),
    "ignore_index": 1,
    "reduction": "sum",
    "device": "meta",
    "dtype": torch.float32,
}
FLAT = {**COMMON, "bias": False, "temperature": 0.5, "softcap": 4.0}
EXACT = {
    **FLAT,
    "label_smoothing": 0.2,
    "focal_gamma": 1.0,
    "logit_adjustment": torch.arange(float(V)),
    "z_loss": 0.5,
    "filter_eps": 0.5,
    "product_dtype": torch.bfloat16,
}
SAMPLED = {
    **FLAT,
    "sampler": samplers.Unigram(counts(V).flip(0), power=2.0),
    "num_samples": 4,
    "shared": False,
    "sparse": True,
}
CLUSTERS = [0, 1, 2, 0, 1, 2, 0]
CHANGES = {
    heads.Softmax: EXACT,
    heads.SigSoftmax: EXACT,
    heads.OneVsAll: FLAT,
    heads.TopKSoftmax: FLAT,
    heads.Entmax: {**FLAT, "learn_alpha": True},
    heads.MixtureOfSoftmaxes: {**COMMON, "bias": False, "class_features": 2},
    heads.SampledSoftmax: {**SAMPLED, "label_smoothing": 0.2},
    heads.ImportanceSampledSoftmax: SAMPLED,
    heads.OneVsEach: SAMPLED,
    heads.NCE: {
        **SAMPLED,
        "log_partition": "learned",
        "z_loss": 0.5,
        "proposal": samplers.Uniform(V),
    },
    heads.NegativeSampling: {**SAMPLED, "calibration": 0.5},
    heads.HierarchicalSoftmax: {**COMMON, "bias": False, "sparse": True},
    heads.ClassFactoredSoftmax: {
        **COMMON,
        "bias": False,
        "within": "nce",
        "num_samples": 4,
        "counts": counts(V),
        "sparse": True,
    },
    heads.AdaptiveSoftmax: {
        **COMMON,
        "head_bias": True,
        "counts": counts(V),
        "tail_samples": 1,
        "sparse": True,
    },
}
STARTS = {
    heads.MixtureOfSoftmaxes: {"num_mixtures": 3},
    heads.TopKSoftmax: {"k": 3},
    # What each change is measured against; some options need another beside them to mean anything.
    heads.SampledSoftmax: {"sampler": UNIGRAM, "num_samples": 3},
    heads.ImportanceSampledSoftmax: {"sampler": UNIGRAM, "num_samples": 3},
    heads.OneVsEach: {"sampler": UNIGRAM, "num_samples": 3},
    heads.NCE: {"sampler": UNIGRAM, "num_samples": 3},
    heads.NegativeSampling: {"sampler": UNIGRAM, "num_samples": 3},
    heads.ClassFactoredSoftmax: {"within": "sampled", "num_samples": 2},
    heads.AdaptiveSoftmax: {"tail_samples": 2},
}
REFUSED = {
    (heads.SigSoftmax, "softcap"): r"softcap: expected None in SigSoftmax, whose logits are Sig\(\).*got 4",
    (heads.OneVsAll, "softcap"): r"softcap: expected None in OneVsAll, whose logits are LogSigmoid\(\).*got 4",
    (heads.NegativeSampling, "softcap"): r"softcap: expected None in NegativeSampling.*log\(p / q\).*got 4",
}
"""What a head shares by name alone, and what it says of it."""
SECOND = {
    heads.HierarchicalSoftmax: (trees.huffman(counts(V)), trees.balanced(V)),
    heads.ClassFactoredSoftmax: (CLUSTERS, CLUSTERS[::-1]),
}


def keywords(head):
    """The names of a head's options, those that it hands on to its bases included."""
    found = {}
    for kind in head.__mro__:
        if "__init__" in vars(kind):
            own = inspect.signature(kind).parameters
            found |= own
            if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                break
    return [name for name, p in found.items() if p.kind is p.KEYWORD_ONLY]


def build(head, *positional, **options):
    torch.manual_seed(5)
    second = positional or (SECOND[head][0] if head in SECOND else V,)
    if head is heads.AdaptiveSoftmax and not positional:
        second = (V, [2, 4], 2.0)
    elif not isinstance(second, tuple):
        second = (second,)
    return head(D, *second, **{"dtype": torch.float64, **STARTS.get(head, {}), **options})


def observed(head):
    """Parameters, loss, and the layouts and sizes of gradients: all that an option can show in."""
    described = {name: (p.shape, p.dtype, p.device.type) for name, p in head.named_parameters()}
    if any(p.is_meta for p in head.parameters()):
        return described, None, None
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, D, generator=g).to(next(head.parameters()).dtype)
    target = torch.tensor([0, 1, 2, 4, 5, 6])
    draws = "generator" in inspect.signature(head.forward).parameters
    loss = head(hidden, target, **({"generator": torch.Generator().manual_seed(1)} if draws else {}))
    found = torch.autograd.grad(loss, list(head.parameters()), allow_unused=True)
    return described, loss.item(), [None if x is None else (x.layout, x.to_dense().norm().item()) for x in found]


@pytest.mark.parametrize("head", CHANGES, ids=lambda head: head.__name__)
def test_the_table_has_every_keyword(head):
    assert sorted(CHANGES[head]) == sorted(set(keywords(head)) - {"options"})


def test_the_table_has_every_head():
    public = {getattr(heads, name) for name in heads.__all__}
    concrete = {h for h in public if inspect.isclass(h) and issubclass(h, heads.Head) and not inspect.isabstract(h)}
    assert concrete == set(CHANGES)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (head, name)
        for head, changes in CHANGES.items()
        for name in changes
        if name != "product_dtype"  # of large float32 products alone, in test_softmax_head.py
    ],
    ids=str,
)
def test_a_keyword_changes_the_head(head, name):
    assert observed(build(head)) == observed(build(head))
    if (head, name) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[head, name]):
            build(head, **{name: CHANGES[head][name]})
        return
    assert observed(build(head, **{name: CHANGES[head][name]})) != observed(build(head))


@pytest.mark.parametrize(
    ("head", "other"),
    [
        (heads.HierarchicalSoftmax, (SECOND[heads.HierarchicalSoftmax][1],)),
        (heads.ClassFactoredSoftmax, (SECOND[heads.ClassFactoredSoftmax][1],)),
        (heads.Entmax, (V, 2.0)),
        (heads.AdaptiveSoftmax, (V, [3, 4], 2.0)),
        (heads.AdaptiveSoftmax, (V, [2, 4], 1.0)),
    ],
)
def test_a_positional_argument_changes_the_head(head, other):
    assert observed(build(head, *other)) != observed(build(head))
