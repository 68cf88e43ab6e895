"""Sets of distinct classes hold each class independently, with the declared probability."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from sampler_laws import goodness_of_fit, probabilities, seeded
from scipy.stats import poisson
from torch import Tensor

import vastmax
from vastmax.samplers import Candidates, LogUniform, Mixture, Sampler, Uniform, Unigram
from vastmax.samplers.base import log_inclusion, most_draws

NUM_CLASSES = 6
NUM_SETS = 200_000
COUNTS = [3, 0, 7, 1, 1, 20]

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "uniform": lambda: Uniform(NUM_CLASSES, unique=True),
    "log_uniform": lambda: LogUniform(NUM_CLASSES, unique=True),
    "unigram": lambda: Unigram(COUNTS, power=1, unique=True),
    "mixture": lambda: Mixture([Unigram(COUNTS), Uniform(NUM_CLASSES)], [1, 1], unique=True),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


def inclusion(sampler: Sampler, k: int) -> Tensor:
    return sampler.log_expected_count(torch.arange(sampler.num_classes), k).exp()


def membership(candidates: Candidates, num_classes: int) -> Tensor:
    """(sets, V) bool, from (sets, K) candidates: which classes are in which set."""
    held = torch.zeros(len(candidates.ids), num_classes, dtype=torch.int64)
    return held.scatter_add(1, candidates.ids, (~candidates.padding).long()).bool()


def count_sets(held: Tensor) -> Tensor:
    """How often each of the 2^V sets was drawn."""
    code = (held.long() << torch.arange(held.shape[1])).sum(1)
    return torch.bincount(code, minlength=2 ** held.shape[1])


def every_set(num_classes: int) -> Tensor:
    """(2^V, V) bool."""
    return (torch.arange(2**num_classes)[:, None] >> torch.arange(num_classes)) % 2 == 1


def independent_law(pi: Tensor) -> Tensor:
    """The probability of each of the 2^V sets, when classes are in it independently."""
    return torch.where(every_set(len(pi)), pi, 1 - pi).prod(1)


@pytest.mark.parametrize("k", [1, 2, 4])
@every_sampler
def test_every_set_is_as_likely_as_independent_inclusion_makes_it(make: Callable[[], Sampler], k: int) -> None:
    sampler = make()
    held = membership(sampler.sample((NUM_SETS, k), generator=seeded(k)), NUM_CLASSES)
    assert goodness_of_fit(count_sets(held), independent_law(inclusion(sampler, k))) > 1e-4


@pytest.mark.parametrize("k", [1, 2, 4])
@every_sampler
def test_inclusion_probability(make: Callable[[], Sampler], k: int) -> None:
    sampler = make()
    torch.testing.assert_close(inclusion(sampler, k), 1 - torch.exp(-k * probabilities(sampler)))


def test_the_law_of_sets_tells_other_schemes_apart() -> None:
    sampler, k = Unigram(COUNTS, power=1, unique=True), 4
    law = independent_law(inclusion(sampler, k))
    fixed = Unigram(COUNTS, power=1).sample((NUM_SETS, k), generator=seeded())
    assert goodness_of_fit(count_sets(membership(fixed, NUM_CLASSES)), law) < 1e-4

    held = membership(sampler.sample((NUM_SETS, k), generator=seeded()), NUM_CLASSES)
    of_k_draws = 1 - (1 - probabilities(sampler)) ** k
    assert goodness_of_fit(count_sets(held), independent_law(of_k_draws)) < 1e-4
    tilted = inclusion(sampler, k) * torch.tensor([1.05, 1, 1, 1, 1, 1])
    assert goodness_of_fit(count_sets(held), independent_law(tilted)) < 1e-4


@every_sampler
def test_shared_sets_have_the_law_of_sets_per_row(make: Callable[[], Sampler]) -> None:
    sampler, generator, k, num_sets = make(), seeded(), 2, 5_000
    held = torch.zeros(num_sets, NUM_CLASSES, dtype=torch.bool)
    for row in held:
        row[sampler.sample(k, generator=generator).ids] = True
    assert goodness_of_fit(count_sets(held), independent_law(inclusion(sampler, k))) > 1e-4


def test_inclusion_and_its_independence_pair_by_pair_over_many_classes() -> None:
    num_classes, num_sets, k = 200, 20_000, 60
    sampler = LogUniform(num_classes, unique=True)
    held = membership(sampler.sample((num_sets, k), generator=seeded(5)), num_classes).double()
    pi = inclusion(sampler, k)
    standard = (held - pi) / (pi * (1 - pi)).sqrt()
    z = standard.mean(0) * math.sqrt(num_sets)
    assert z.abs().max() < 4.5
    pairs = (standard.T @ standard) / math.sqrt(num_sets)
    z = pairs[tuple(torch.triu_indices(num_classes, num_classes, offset=1))]
    assert z.abs().max() < 6  # of 19900 pairs
    assert abs(z.std() - 1) < 0.02


def test_the_tail_is_drawn() -> None:
    """One implementation sorts the distinct ids and keeps the first k: it never draws the tail."""
    num_classes, num_sets, k = 1000, 2000, 500
    sampler = LogUniform(num_classes, unique=True)
    held = membership(sampler.sample((num_sets, k), generator=seeded()), num_classes)
    tail = held[:, 900:].double().mean(1)
    pi = inclusion(sampler, k)[900:]
    error = (pi * (1 - pi)).mean().sqrt() / math.sqrt(100 * num_sets)
    assert abs(tail.mean() - pi.mean()) < 4.5 * error


@pytest.mark.parametrize("size", [5, (5,), (40, 5), (4, 10, 5)])
@every_sampler
def test_candidates_are_distinct_and_declare_their_inclusion(make: Callable[[], Sampler], size: object) -> None:
    sampler = make()
    if sampler.support_size == 5:
        size = 4 if size == 5 else (*size[:-1], 4)
    candidates = sampler.sample(size, generator=seeded(6))
    ids, log_expected_count, unique = candidates
    rows = () if isinstance(size, int) else size[:-1]
    assert unique is True
    assert ids.shape[:-1] == log_expected_count.shape[:-1] == rows
    assert ids.dtype == torch.int64
    assert log_expected_count.dtype == torch.float64

    for row, padding in zip(ids.view(-1, ids.shape[-1]), candidates.padding.view(-1, ids.shape[-1]), strict=True):
        drawn = row[~padding].tolist()
        assert len(set(drawn)) == len(drawn)
        assert not row[padding].any()
    declared = sampler.log_expected_count(ids, size)
    assert torch.equal(log_expected_count, declared.masked_fill(candidates.padding, math.inf))


def test_the_longest_set_is_not_padded() -> None:
    candidates = Uniform(50, unique=True).sample((30, 10), generator=seeded())
    filled = (~candidates.padding).sum(1)
    assert filled.max() == candidates.ids.shape[1]
    assert filled.min() < filled.max()


def test_shared_sets_are_not_padded() -> None:
    generator = seeded()
    for _ in range(50):
        assert not Uniform(50, unique=True).sample(10, generator=generator).padding.any()


def test_padding_counts_for_nothing_in_value_and_gradient() -> None:
    candidates = LogUniform(20, unique=True).sample((8, 4), generator=seeded())
    assert candidates.padding.any()
    logit = torch.randn(20, generator=seeded(), dtype=torch.float64).requires_grad_()
    log_partition = (logit[candidates.ids] - candidates.log_expected_count).logsumexp(1)
    (grad,) = torch.autograd.grad(log_partition, logit, torch.arange(1.0, 9.0, dtype=torch.float64))

    held = membership(candidates, 20)
    corrected = logit - inclusion(LogUniform(20, unique=True), 4).log()
    expected = corrected.expand(8, -1).masked_fill(~held, -math.inf).logsumexp(1)
    (expected_grad,) = torch.autograd.grad(expected, logit, torch.arange(1.0, 9.0, dtype=torch.float64))
    torch.testing.assert_close(log_partition, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_past_the_floats_of_single_precision() -> None:
    num_classes, k = 2**40, 1000
    candidates = Uniform(num_classes, unique=True).sample((50, k), generator=seeded())
    ids = candidates.ids[~candidates.padding]
    assert ((ids >= 0) & (ids < num_classes)).all()
    assert goodness_of_fit(torch.bincount(ids >> 36), torch.ones(16)) > 1e-4
    assert goodness_of_fit(torch.bincount(ids % 16), torch.ones(16)) > 1e-4
    torch.testing.assert_close(
        candidates.log_expected_count[~candidates.padding].exp() * num_classes / k,
        torch.ones(len(ids), dtype=torch.float64),
    )


# Every class, and no class


@pytest.mark.parametrize("rows", [(), (3,), (2, 3), (0,)])
def test_as_many_draws_as_classes_is_every_class_once(rows: tuple[int, ...]) -> None:
    for sampler, classes in [
        (Uniform(4, unique=True), [0, 1, 2, 3]),
        (LogUniform(4, unique=True), [0, 1, 2, 3]),
        (Unigram([1, 5, 2, 2], unique=True), [0, 1, 2, 3]),
        (Unigram([0, 5, 0, 2], unique=True), [1, 3]),
        (Mixture([Unigram([0, 5, 0, 2]), Unigram([1, 5, 0, 0])], [1, 1], unique=True), [0, 1, 3]),
        (Mixture([Unigram([0, 5, 0, 2]), Uniform(4)], [1, 1], unique=True), [0, 1, 2, 3]),
    ]:
        k = len(classes)
        ids, log_expected_count, unique = sampler.sample((*rows, k))
        assert unique is True
        assert torch.equal(ids, torch.tensor(classes).expand(*rows, k))
        assert torch.equal(log_expected_count, torch.zeros(*rows, k, dtype=torch.float64))
        declared = [0.0 if c in classes else -math.inf for c in range(4)]
        assert sampler.log_expected_count(torch.arange(4), (*rows, k)).tolist() == declared


def test_a_set_may_be_empty() -> None:
    sampler = Uniform(1000, unique=True)
    empty = next(seed for seed in range(100) if not len(sampler.sample(1, generator=seeded(seed)).ids))
    for size, shape in [(1, (0,)), ((1, 1), (1, 0)), ((1, 1, 1), (1, 1, 0)), ((0, 5), (0, 0))]:
        ids, log_expected_count, _ = sampler.sample(size, generator=seeded(empty))
        assert ids.shape == log_expected_count.shape == shape
        assert (ids.dtype, log_expected_count.dtype) == (torch.int64, torch.float64)


# log(1 - exp(-rate))


@pytest.mark.parametrize(
    "log_rate", [-1000, -800, -745, -100, -37.1, -36.9, -20, -5, -1, -0.37, -0.36, 0, 1, 3, 3.6, 4, 6]
)
def test_log_inclusion_to_rounding(log_rate: float) -> None:
    with localcontext() as context:
        context.prec = 500  # e^-1000 next to 1
        expected = (1 - (-Decimal(log_rate).exp()).exp()).ln()
    seen = log_inclusion(torch.tensor(log_rate, dtype=torch.float64)).item()
    assert math.isclose(seen, expected, rel_tol=1e-13)


def test_log_inclusion_at_the_ends() -> None:
    ends = torch.tensor([-math.inf, 800.0, math.inf], dtype=torch.float64)
    assert log_inclusion(ends).tolist() == [-math.inf, 0.0, 0.0]


# What the expected count is for: the optimum of sampled softmax, by exact enumeration

P = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
Q = [5, 10, 20, 25, 40]


def slope_at_the_truth(sets: Tensor, law: Tensor, log_expected_count: Tensor) -> Tensor:
    """The gradient at logit = log P of the expected loss; `sets` (S, K) ids with a hit marked -1 left out."""
    logit = P.log().requires_grad_()
    corrected = torch.cat([logit - log_expected_count, torch.tensor([-math.inf])])
    loss = torch.zeros((), dtype=torch.float64)
    for y in range(5):
        scores = torch.cat([corrected[y].expand(len(sets), 1), corrected[sets[:, y]]], 1)
        loss = loss + P[y] * (law * (scores.logsumexp(1) - corrected[y])).sum()
    (slope,) = torch.autograd.grad(loss, logit)
    return slope.abs().max()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_declared_counts_put_the_optimum_of_sampled_softmax_at_the_truth(k: int) -> None:
    target = torch.arange(5)[:, None]

    draws = torch.cartesian_prod(*[torch.arange(5)] * k).view(-1, 1, k)
    iid = Unigram(Q, power=1)
    kept = draws.expand(-1, 5, -1)
    law = probabilities(iid)[draws].prod(2)[:, 0]
    log_expected_count = iid.log_expected_count(torch.arange(5), k)
    assert slope_at_the_truth(kept, law, log_expected_count) < 1e-14

    held = every_set(5)[:, None]
    distinct = Unigram(Q, power=1, unique=True)
    removed = torch.where(held & (torch.arange(5) != target), torch.arange(5), -1)
    log_pi = distinct.log_expected_count(torch.arange(5), k)
    assert slope_at_the_truth(removed, independent_law(log_pi.exp()), log_pi) < 1e-14

    assert slope_at_the_truth(kept, law, torch.zeros(5)) > 1e-2
    assert k == 1 or slope_at_the_truth(kept.where(kept != target, -1), law, log_expected_count) > 1e-4


@pytest.mark.parametrize("k", [1, 2, 4])
@every_sampler
def test_sets_of_a_number_that_is_not_looked_at_follow_the_same_law(make: Callable[[], Sampler], k: int) -> None:
    sampler = make()
    with vastmax.checks("device"):
        candidates = sampler.sample((NUM_SETS, k), generator=seeded(k))
    assert candidates.ids.shape == (NUM_SETS, most_draws(k))
    held = torch.zeros(NUM_SETS, NUM_CLASSES, dtype=torch.int64)
    held.scatter_add_(1, candidates.ids, (~candidates.padding).long())
    assert held.max() == 1  # each class once
    assert goodness_of_fit(count_sets(held.bool()), independent_law(inclusion(sampler, k))) > 1e-4
    counted = candidates.log_expected_count.masked_fill(candidates.padding, 0.0)
    expected = sampler.log_expected_count(candidates.ids, k).masked_fill(candidates.padding, 0.0)
    torch.testing.assert_close(counted, expected)


def test_hardly_any_set_has_more_draws_than_there_is_room_for() -> None:
    for k in (1, 2, 5, 30, 1000, 10**6):
        assert poisson.sf(most_draws(k), k) < 1e-18
        assert most_draws(k) < k + 40 + 10 * math.sqrt(k)
