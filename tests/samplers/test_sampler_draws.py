"""Draws with replacement follow the declared distribution."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sampler_laws import goodness_of_fit, probabilities, seeded
from scipy import stats
from torch import Tensor

from vastmax.samplers import LogUniform, Mixture, Sampler, Uniform, Unigram

NUM_CLASSES = 40
NUM_DRAWS = 1_000_000
COUNTS = [(7 * c) % 41 * (c % 5 > 0) for c in range(NUM_CLASSES)]  # unsorted; a zero at the start, the middle

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "uniform": lambda: Uniform(NUM_CLASSES),
    "log_uniform": lambda: LogUniform(NUM_CLASSES),
    "unigram": lambda: Unigram(COUNTS),
    "unigram, power 0": lambda: Unigram(COUNTS, power=0),
    "unigram, power 2": lambda: Unigram(COUNTS, power=2.0),
    "unigram, negative power": lambda: Unigram(COUNTS, power=-0.5),
    "mixture": lambda: Mixture([Unigram(COUNTS), LogUniform(NUM_CLASSES), Uniform(NUM_CLASSES)], [3, 2, 1]),
    "mixture of a mixture": lambda: Mixture(
        [Mixture([Unigram(COUNTS), LogUniform(NUM_CLASSES)], [1, 1]), Unigram(COUNTS[::-1])], [0.7, 0.3]
    ),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


def draw_counts(sampler: Sampler, seed: int = 0) -> Tensor:
    ids = sampler.sample(NUM_DRAWS, generator=seeded(seed)).ids
    return torch.bincount(ids, minlength=sampler.num_classes)


@every_sampler
def test_draws_follow_q(make: Callable[[], Sampler]) -> None:
    sampler = make()
    assert goodness_of_fit(draw_counts(sampler), probabilities(sampler)) > 1e-4


@every_sampler
def test_the_chi_square_test_sees_a_tilt_of_two_percent(make: Callable[[], Sampler]) -> None:
    sampler = make()
    tilt = 1 + 0.02 * (torch.arange(NUM_CLASSES) % 2)
    assert goodness_of_fit(draw_counts(sampler), probabilities(sampler) * tilt) < 1e-4


@every_sampler
def test_sets_per_row_have_the_same_law(make: Callable[[], Sampler]) -> None:
    sampler = make()
    ids = sampler.sample((100, 50, NUM_DRAWS // 5000), generator=seeded(1)).ids
    assert ids.shape == (100, 50, 200)
    assert goodness_of_fit(torch.bincount(ids.flatten(), minlength=NUM_CLASSES), probabilities(sampler)) > 1e-4


@every_sampler
def test_successive_draws_are_independent(make: Callable[[], Sampler]) -> None:
    sampler = make()
    first, second = sampler.sample((NUM_DRAWS // 2, 2), generator=seeded(2)).ids.T
    pairs = torch.bincount((first % 4) * 4 + second % 4, minlength=16).view(4, 4)
    assert stats.chi2_contingency(pairs.numpy()).pvalue > 1e-4


@every_sampler
def test_q_sums_to_one(make: Callable[[], Sampler]) -> None:
    assert math.isclose(probabilities(make()).sum(), 1.0, rel_tol=1e-14)


@every_sampler
def test_expected_count_is_k_q(make: Callable[[], Sampler]) -> None:
    sampler = make()
    ids, log_expected_count, unique = sampler.sample((3, 200), generator=seeded())
    assert unique is False
    assert ids.dtype == torch.int64
    assert log_expected_count.dtype == torch.float64
    torch.testing.assert_close(log_expected_count.exp(), 200 * probabilities(sampler)[ids])
    assert torch.equal(sampler.log_expected_count(ids, (3, 200)), log_expected_count)
    assert torch.equal(sampler.log_expected_count(ids, 200), log_expected_count)


def test_uniform_q() -> None:
    torch.testing.assert_close(probabilities(Uniform(7)), torch.full((7,), 1 / 7, dtype=torch.float64))


def test_log_uniform_q() -> None:
    c = np.arange(1000)
    expected = np.log((c + 2) / (c + 1)) / np.log(1001)
    torch.testing.assert_close(probabilities(LogUniform(1000)), torch.from_numpy(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("power", [-2.0, -0.5, 0, 0.5, 0.75, 1, 3.0])
def test_unigram_q(power: float) -> None:
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    weight = torch.where(counts > 0, counts**power, 0.0)
    torch.testing.assert_close(probabilities(Unigram(COUNTS, power)), weight / weight.sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "counts",
    [
        tuple(COUNTS),
        np.array(COUNTS, dtype=np.uint16),
        np.array(COUNTS, dtype=np.float32)[::1],
        np.array(COUNTS[::-1])[::-1],
        torch.tensor(COUNTS),
        torch.tensor(COUNTS, dtype=torch.float32, requires_grad=True),
    ],
    ids=["tuple", "uint16 array", "float32 array", "reversed view", "int tensor", "tensor with a gradient"],
)
def test_unigram_takes_counts_of_any_kind(counts: object) -> None:
    sampler = Unigram(counts)
    assert torch.equal(probabilities(sampler), probabilities(Unigram(COUNTS)))
    assert not sampler.log_prob(torch.tensor([1])).requires_grad


def test_unigram_does_not_hold_on_to_the_counts() -> None:
    counts = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    sampler = Unigram(counts, power=1)
    counts.zero_()
    torch.testing.assert_close(probabilities(sampler) * 6, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


def test_mixture_q_is_the_weighted_sum_of_the_parts() -> None:
    parts = [Unigram(COUNTS), LogUniform(NUM_CLASSES), Uniform(NUM_CLASSES)]
    expected = sum(w * probabilities(part) for w, part in zip([0.5, 0.3, 0.2], parts, strict=True))
    torch.testing.assert_close(probabilities(Mixture(parts, [5, 3, 2])), expected, rtol=1e-14, atol=0)


def test_mixture_declares_its_own_q_whichever_part_drew() -> None:
    sampler = Mixture([Unigram([1, 0]), Unigram([1, 1])], [1, 3])
    ids, log_expected_count, _ = sampler.sample(1000, generator=seeded())
    expected = torch.tensor([0.625, 0.375], dtype=torch.float64)
    torch.testing.assert_close(log_expected_count.exp() / 1000, expected[ids])


def test_mixture_of_one_is_its_part() -> None:
    torch.testing.assert_close(probabilities(Mixture([Unigram(COUNTS)], [4])), probabilities(Unigram(COUNTS)))


@pytest.mark.parametrize("sampler", [Uniform(1), LogUniform(1), Unigram([5]), Mixture([Uniform(1)], [1])], ids=repr)
def test_one_class(sampler: Sampler) -> None:
    ids, log_expected_count, _ = sampler.sample(4, generator=seeded())
    assert ids.tolist() == [0, 0, 0, 0]
    assert log_expected_count.tolist() == [math.log(4)] * 4


# Mistakes in published implementations


def test_log_uniform_draws_what_it_declares() -> None:
    """One implementation declares log(V + 1) and draws with log V: its last class is never drawn."""
    observed = draw_counts(LogUniform(NUM_CLASSES))
    u = torch.rand(NUM_DRAWS, dtype=torch.float64, generator=seeded())
    mistaken = torch.bincount((u * math.log(NUM_CLASSES)).exp().long() - 1, minlength=NUM_CLASSES)
    assert observed[-1] > 0
    assert mistaken[-1] == 0
    assert goodness_of_fit(mistaken, probabilities(LogUniform(NUM_CLASSES))) < 1e-4


def test_uniform_has_no_modulo_bias() -> None:
    """Below 2^28 classes torch.randint takes a 32-bit integer modulo V: here the first third gets 34.4%."""
    num_classes = 3 * 2**26
    first_third = (Uniform(num_classes).sample(NUM_DRAWS, generator=seeded()).ids < num_classes // 3).sum()
    assert stats.binomtest(int(first_third), NUM_DRAWS, 1 / 3).pvalue > 1e-4


def test_tiny_q_is_not_clipped() -> None:
    sampler = Unigram([1, 10**9, 10**3], power=1)
    torch.testing.assert_close(
        sampler.log_prob(torch.tensor([0, 2])).exp() * (10**9 + 1001),
        torch.tensor([1.0, 1000.0], dtype=torch.float64),
        rtol=1e-13,
        atol=0,
    )
    assert math.isclose(
        LogUniform(10**9).log_prob(torch.tensor(10**9 - 1)).exp(), 1e-9 / math.log(1e9), rel_tol=1e-8
    )


def test_classes_never_counted_are_minus_inf_and_never_drawn() -> None:
    """Where q is 0: no nan, and no draw, whether such classes come first, last or together."""
    for power in (-1.0, 0.0, 0.75, 1.0):
        sampler = Unigram([0, 0, 3, 0, 0, 1, 0], power)
        log_q = sampler.log_prob(torch.arange(7))
        assert (log_q == -math.inf).tolist() == [True, True, False, True, True, False, True]
        ids, log_expected_count, _ = sampler.sample(100_000, generator=seeded())
        assert set(ids.tolist()) == {2, 5}
        assert log_expected_count.isfinite().all()
        assert sampler.log_expected_count(torch.tensor(6), 10) == -math.inf


def test_a_mixture_is_minus_inf_only_where_every_part_is() -> None:
    sampler = Mixture([Unigram([0, 1, 0]), Unigram([0, 0, 1])], [1, 1])
    assert sampler.log_prob(torch.arange(3)).tolist() == [-math.inf, math.log(0.5), math.log(0.5)]


# Reproducibility


@pytest.mark.parametrize("unique", [False, True])
@every_sampler
def test_a_seed_decides_the_draws(make: Callable[[], Sampler], unique: bool) -> None:
    sampler = make()
    sampler.unique = unique
    for size in (20, (5, 20)):
        first = sampler.sample(size, generator=seeded(7))
        again = sampler.sample(size, generator=seeded(7))
        other = sampler.sample(size, generator=seeded(8))
        assert torch.equal(first.ids, again.ids)
        assert torch.equal(first.log_expected_count, again.log_expected_count)
        assert not torch.equal(first.ids, other.ids)


@pytest.mark.parametrize("unique", [False, True])
@every_sampler
def test_without_a_generator_torchs_own_is_used(make: Callable[[], Sampler], unique: bool) -> None:
    sampler = make()
    sampler.unique = unique
    with torch.random.fork_rng():
        torch.manual_seed(7)
        ids = sampler.sample(20).ids
        state = torch.get_rng_state()
        assert torch.equal(ids, sampler.sample(20, generator=seeded(7)).ids)
        assert torch.equal(state, torch.get_rng_state())
