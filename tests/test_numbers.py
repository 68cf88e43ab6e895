"""Numbers of any make at every entry: a public callable joins by one line, and is missed if it does not."""

import inspect
import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vastmax import calibration, contrastive, data, density, functional, heads, metrics, optim, samplers, trees
from vastmax.scoring import linear_soft_cross_entropy

N, V, D = 6, 7, 4
G = torch.Generator().manual_seed(0)
HIDDEN, KEY = torch.randn(2, N, D, generator=G)
WEIGHT = torch.randn(V, D, generator=G)
LOGITS = HIDDEN @ WEIGHT.T
TARGET = torch.tensor([0, 3, 5, 1, 6, 2])
SAID = LOGITS.argmax(-1)  # as the logits have it, but for two rows
SAID[2], SAID[3] = 5, LOGITS[3].argmin()
COUNTS = torch.arange(V, 0, -1)
SIZES = {"in_features": D, "num_classes": V, "ignore_index": 5}
FLAT = {**SIZES, "temperature": 0.75}
SAMPLED = {**FLAT, "num_samples": 3, "sampler": samplers.Unigram(COUNTS)}
EXACT = {**FLAT, "focal_gamma": 0.5, "z_loss": 0.25}


class Whole:
    """An integer that nothing but `operator.index` knows."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def made_otherwise(value, integer, real):
    if isinstance(value, tuple):
        return tuple(made_otherwise(each, integer, real) for each in value)
    if not is_number(value) or value == math.inf:
        return value
    return integer(value) if isinstance(value, int) else real(value)


@dataclass(frozen=True)
class Entry:
    """A callable, what to call it with, and what else to ask of its result."""

    call: Any
    arguments: tuple = ()
    options: dict = field(default_factory=dict)
    covers: Any = None
    """The public callable whose numbers these are, if it is not `call` itself."""

    def __call__(self, **changes):
        torch.manual_seed(3)
        return self.call(*self.arguments, **{**self.options, **changes})

    def numbers(self):
        return {name: value for name, value in self.options.items() if is_number(value) or isinstance(value, tuple)}


def entry(call, *arguments, covers=None, **options):
    return Entry(call, arguments, options, covers)


def head_entry(build, **options):
    def call(**changed):
        head = build(**changed)
        return head, head(HIDDEN, TARGET)

    return Entry(call, (), options, build)


def topk_of(head):
    return entry(lambda k: head.topk(HIDDEN, k), covers=type(head).topk, k=2)


def fitted(scaling, rows, method, *arguments):
    def call(ignore_index):
        found = scaling()
        return getattr(found, method)(rows, *arguments, SAID, ignore_index=ignore_index), found

    return entry(call, covers=getattr(scaling(), method).__func__, ignore_index=5)


def vector():
    return calibration.VectorScaling(V)


SOFTMAX = heads.Softmax(D, V)
LINEAR = heads.Softmax(D, V, bias=False)
LINEAR.load_state_dict({"weight": WEIGHT})
FITS = [
    fitted(scaling, *of)
    for scaling in (calibration.TemperatureScaling, vector)
    for of in ((LOGITS, "fit"), (HIDDEN, "fit_linear", WEIGHT))
]
PARAMETER = nn.Parameter(torch.ones(3, 2))
NOISE = density.gaussian_noise(HIDDEN)


def fit_density(**options):
    return density.fit(density.NCE(density.UnnormalizedGaussian(D), NOISE), HIDDEN, **options)


def noise_sample(size):
    return density.NCE(density.UnnormalizedGaussian(D), NOISE).sample_noise(size)


def rank(ignore_index):
    ranking = metrics.Ranking((1, 2))
    ranking.update(LOGITS.topk(3).indices, TARGET, ignore_index=ignore_index)
    return ranking.compute()


def backward(chunk_size):
    encoders, rows = [nn.Identity(), nn.Identity()], [HIDDEN.clone().requires_grad_(), KEY]
    return contrastive.cached_backward(functional.info_nce, encoders, rows, chunk_size=chunk_size), rows[0].grad


def vocabulary_counts(**options):
    return data.build_vocabulary(["a b c a b a"] * 3, **options).counts


def resized(num_classes):
    head = heads.Softmax(D, V)
    head.resize(num_classes)
    return head


def lowest_noise(margin):
    return density.uniform_noise(HIDDEN, margin).base_dist.low


def means_of_noise(**options):
    return density.mixture_noise(HIDDEN, **options).component_distribution.mean


def fit_head(ignore_index):
    return calibration.TemperatureScaling().fit_head(LINEAR, HIDDEN, SAID, ignore_index=ignore_index)


ENTRIES = [
    head_entry(heads.Softmax, **EXACT, label_smoothing=0.25),
    entry(heads.Softmax, D, V, filter_eps=0.5),
    head_entry(heads.SigSoftmax, **EXACT, label_smoothing=0.25),
    entry(heads.SigSoftmax, D, V, filter_eps=0.5),
    head_entry(heads.OneVsAll, **FLAT),
    head_entry(heads.TopKSoftmax, **FLAT, k=3),
    head_entry(heads.Entmax, **FLAT, alpha=1.75),
    head_entry(heads.MixtureOfSoftmaxes, **SIZES, num_mixtures=2, class_features=3),
    head_entry(heads.SampledSoftmax, **SAMPLED, label_smoothing=0.25),
    head_entry(heads.ImportanceSampledSoftmax, **SAMPLED),
    head_entry(heads.OneVsEach, **SAMPLED),
    head_entry(heads.NCE, **SAMPLED, log_partition=1.5, z_loss=0.25),
    head_entry(heads.NegativeSampling, **SAMPLED, calibration=0.75),
    head_entry(heads.HierarchicalSoftmax, in_features=D, ignore_index=5, tree=trees.huffman(COUNTS)),
    head_entry(
        heads.ClassFactoredSoftmax,
        in_features=D,
        ignore_index=5,
        num_samples=3,
        within="sampled",
        clusters=[0, 0, 1, 1, 0, 1, 0],
    ),
    head_entry(heads.AdaptiveSoftmax, **SIZES, cutoffs=(2, 4), div_value=2.0, tail_samples=1),
    entry(heads.InfoNCE, temperature=0.25, max_scale=50.0, hard_negative_weight=0.5, learn_temperature=True),
    topk_of(SOFTMAX),
    entry(resized, covers=heads.Softmax.resize, num_classes=3),
    topk_of(heads.TopKSoftmax(D, V, 3)),
    topk_of(heads.Entmax(D, V)),
    topk_of(heads.MixtureOfSoftmaxes(D, V, 2)),
    topk_of(heads.HierarchicalSoftmax(D, trees.huffman(COUNTS))),
    topk_of(heads.ClassFactoredSoftmax(D, [0, 0, 1, 1, 0, 1, 0])),
    topk_of(heads.AdaptiveSoftmax(D, V, [2, 4], 2.0)),
    entry(heads.HierarchicalSoftmax(D, trees.huffman(COUNTS)).search, HIDDEN, k=2),
    entry(
        heads.adaptive_cutoffs,
        COUNTS,
        in_features=64,
        batch_size=32,
        div_value=2.0,
        num_clusters=2,
        min_width=3,
        product_floor=100.0,
        update_cost=10.0,
        num_positions=5,
    ),
    entry(
        heads.adaptive_cost,
        counts=COUNTS,
        cutoffs=(2, 4),
        in_features=64,
        batch_size=32,
        div_value=2.0,
        product_floor=100.0,
        update_cost=10.0,
    ),
    entry(heads.frequency_clusters, COUNTS, num_clusters=3),
    entry(heads.sqrt_clusters, num_classes=V),
    entry(samplers.Uniform, num_classes=V),
    entry(samplers.LogUniform, num_classes=V),
    entry(samplers.Unigram, COUNTS, power=0.5),
    entry(samplers.InBatch, num_classes=V, rate=0.25),
    entry(samplers.TreeGuided, num_classes=V, refresh=3),
    entry(samplers.RandomFeatures, num_classes=V, num_features=5, floor=0.25, refresh=3, seed=2),
    entry(samplers.HardNegatives, samplers.Uniform(V), pool=3),
    entry(samplers.TopAndTail, samplers.Uniform(V, unique=True), top=3),
    entry(samplers.Uniform(V).sample, size=3),
    entry(samplers.Uniform(V).sample, size=(2, 3)),
    entry(samplers.Uniform(V).log_expected_count, TARGET, size=(2, 3)),
    entry(trees.balanced, num_classes=V),
    entry(optim.SGD, [PARAMETER], lr=0.25, momentum=0.5, weight_decay=0.125),
    entry(optim.LazyAdamW, [PARAMETER], lr=0.25, betas=(0.5, 0.75), eps=0.125, weight_decay=0.125),
    entry(optim.RowwiseAdagrad, [PARAMETER], lr=0.25, eps=0.125, initial_accumulator_value=0.5),
    entry(optim.clip_grad_norm_, [PARAMETER], max_norm=0.5, norm_type=1.5),
    entry(optim.clip_grad_value_, [PARAMETER], clip_value=0.5),
    entry(metrics.Ranking, k=(1, 3)),
    entry(rank, covers=metrics.Ranking.update, ignore_index=5),
    entry(metrics.log_prob_rank, LOGITS.log_softmax(-1), tolerance=0.25),
    *FITS,
    entry(fit_head, covers=calibration.TemperatureScaling.fit_head, ignore_index=5),
    entry(calibration.VectorScaling, num_classes=V, prior_std=0.5),
    entry(calibration.VectorScaling, num_classes=V, prior_std=math.inf),
    entry(calibration.reliability, torch.rand(N, generator=G), TARGET > 2, num_bins=3),
    entry(calibration.calibration_error, torch.rand(N, generator=G), TARGET > 2, num_bins=3),
    entry(density.UnnormalizedGaussian, features=D),
    entry(density.UnnormalizedMixture, features=D, num_components=2),
    entry(density.ICA, features=D),
    entry(density.NCE, density.UnnormalizedGaussian(D), NOISE, num_noise=3, log_partition=0.5),
    entry(noise_sample, covers=density.NCE.sample_noise, size=(2, 3)),
    entry(fit_density, covers=density.fit, max_iter=2, tolerance=0.5),
    entry(lowest_noise, covers=density.uniform_noise, margin=0.25),
    entry(means_of_noise, covers=density.mixture_noise, num_components=2, seed=1),
    entry(contrastive.KeyQueue, num_keys=5, features=D),
    entry(backward, covers=contrastive.cached_backward, chunk_size=2),
    entry(contrastive.momentum_encoder, nn.Linear(2, 2), momentum=0.5),
    entry(functional.info_nce, HIDDEN, KEY, temperature=0.25, hard_negative_weight=0.5),
    entry(functional.clip_loss, HIDDEN, KEY, temperature=0.25),
    entry(functional.siglip_loss, HIDDEN, KEY, temperature=0.25, bias=-2.5),
    entry(functional.cross_entropy, LOGITS, TARGET, ignore_index=5),
    entry(functional.effective_number_weight, COUNTS, beta=0.75),
    entry(functional.entmax, LOGITS, alpha=1.75),
    entry(functional.log_entmax, LOGITS, alpha=1.75),
    entry(functional.entmax_loss, LOGITS, TARGET, alpha=1.75, ignore_index=5),
    entry(functional.entmax15_loss, LOGITS, TARGET, ignore_index=5),
    entry(functional.sparsemax_loss, LOGITS, TARGET, ignore_index=5),
    entry(functional.topk_softmax, LOGITS, k=3),
    entry(functional.topk_softmax_loss, LOGITS, TARGET, k=3, ignore_index=5),
    entry(functional.focal_loss, LOGITS, TARGET, gamma=1.5, ignore_index=5),
    entry(functional.log_prior, COUNTS, pseudocount=0.5),
    entry(
        functional.logit_adjusted_cross_entropy,
        LOGITS,
        TARGET,
        functional.log_prior(COUNTS),
        tau=0.5,
        ignore_index=5,
    ),
    entry(functional.negative_sampling_loss, LOGITS[:, 0], LOGITS[:, 1:], positive_weight=0.5),
    entry(
        functional.linear_cross_entropy,
        HIDDEN,
        WEIGHT,
        TARGET,
        ignore_index=5,
        label_smoothing=0.25,
        temperature=0.75,
        z_loss=0.5,
        softcap=4.0,
        focal_gamma=1.5,
        block_size=2,
    ),
    entry(functional.linear_cross_entropy, HIDDEN, WEIGHT, TARGET, filter_eps=0.25),
    entry(
        linear_soft_cross_entropy,
        HIDDEN,
        WEIGHT,
        torch.ones(N, 1),
        TARGET[:, None],
        label_smoothing=0.25,
        z_loss=0.5,
        focal_gamma=1.5,
    ),
    entry(functional.linear_log_partition, HIDDEN, WEIGHT, block_size=2),
    entry(
        functional.sampled_softmax_loss,
        LOGITS[:, 0],
        LOGITS[:, 1:],
        torch.zeros(len(LOGITS)),
        torch.zeros(V - 1),
        label_smoothing=0.25,
        num_classes=V,
    ),
    entry(functional.linear_topk, HIDDEN, WEIGHT, k=3, block_size=2, softcap=3.0),
    entry(data.TokenBatches, torch.arange(20), batch_size=2, seq_len=3),
    entry(vocabulary_counts, covers=data.build_vocabulary, vocab_size=4, min_count=2),
    entry(data.looks_tokenised, ["no , it was"], max_chars=3),
]

ELSEWHERE = {"dim", "order", "paths", "closure"}
"""What torch takes as it is, and what is no number."""


def numeric_parameters(function):
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if re.search(r"\b(int|float)\b", str(parameter.annotation)) and name not in ELSEWHERE
    }


def public_callables():
    """Every public function and class of the library's modules, and their methods, once each."""
    for module in (calibration, contrastive, data, density, functional, heads, metrics, optim, samplers, trees):
        for public in (getattr(module, name) for name in module.__all__):
            if not inspect.isclass(public):
                yield public
            elif not inspect.isabstract(public) and not issubclass(public, tuple):
                methods = (f for name, f in inspect.getmembers(public, inspect.isfunction) if name[0] != "_")
                yield from (public, *(f for f in methods if f.__module__.startswith("vastmax.")))


def test_every_public_number_is_in_the_table():
    covered: dict = {}
    for each in ENTRIES:
        of = each.covers or each.call
        covered.setdefault(getattr(of, "__func__", of), set()).update(each.numbers())
    missed = {
        public.__qualname__: missing
        for public in public_callables()
        if (missing := numeric_parameters(public) - covered.get(public, set()))
    }
    assert not missed


def name_of(each):
    covered = each.covers or each.call
    return f"{covered.__qualname__}({', '.join(each.numbers())})"


@pytest.fixture(params=ENTRIES, ids=name_of)
def case(request):
    return request.param


def numbers_of(thing):
    return {name: x for name, x in vars(thing).items() if is_number(x) or isinstance(x, tuple | list)}


def same(ours, theirs):
    """Equal to the last bit, with plain numbers wherever there are any."""
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            same(ours[name], theirs[name])
    elif isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            same(mine, other)
    elif isinstance(theirs, int | float | str | None):
        assert type(ours) is type(theirs)
        assert ours == theirs
    elif isinstance(theirs, nn.Module):
        assert repr(ours) == repr(theirs)
        same(ours.state_dict(), theirs.state_dict())
        same(numbers_of(ours), numbers_of(theirs))
    elif isinstance(theirs, torch.optim.Optimizer):
        assert repr(ours) == repr(theirs)
    else:
        assert type(ours) is type(theirs)
        same(numbers_of(ours), numbers_of(theirs))


MAKES = {
    "NumPy scalars": (np.int64, np.float32),
    "NumPy arrays ()": (np.array, np.array),
    "tensors ()": (torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64)),
    "other classes": (Whole, Fraction),
}


@pytest.mark.parametrize("make", MAKES)
def test_a_number_is_taken_whoever_made_it(case, make):
    numbers = {name: made_otherwise(value, *MAKES[make]) for name, value in case.numbers().items()}
    same(case(**numbers), case())


def without_one(value, wrong):
    return (wrong, *value[1:]) if isinstance(value, tuple) else wrong


@pytest.mark.parametrize(
    "wrong", [True, np.True_, torch.tensor(True), "1", 1j, torch.ones(2), None, object], ids=repr
)
def test_what_is_no_number_is_refused_by_name(case, wrong):
    for name, value in case.numbers().items():
        if wrong is None and not isinstance(value, tuple):
            continue  # where there is a default, it may be this
        with pytest.raises((TypeError, ValueError), match=rf"^{name}(\[0\])?: expected"):
            case(**{name: without_one(value, wrong)})


@pytest.mark.parametrize("vast", [10**400, -(10**400), 10**5000], ids=["vast", "below all", "too long to write"])
def test_a_number_past_every_float_is_refused_by_name(case, vast):
    for name, value in case.numbers().items():
        first = value[0] if isinstance(value, tuple) else value
        if isinstance(first, int) and name in ("ignore_index", "seed"):
            continue
        with pytest.raises(ValueError, match=rf"^{name}(\[0\])?: expected .{{,300}}$"):
            case(**{name: without_one(value, vast)})
