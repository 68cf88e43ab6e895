"""Draws are right at the edges of the floating-point line, and past 2^24 classes."""

import math

import pytest
import torch
from batches import every_class, make_batch
from sampler_laws import goodness_of_fit, probabilities, seeded
from scipy import stats

from vastmax.heads import SampledSoftmax
from vastmax.samplers import LogUniform, Mixture, Sampler, TreeGuided, Uniform, Unigram

NUM_DRAWS = 1_000_000
MANY = 2**24 + 2**16


class ConstantUniform(torch.overrides.TorchFunctionMode):
    """Lets torch.rand return one number only."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        return result.fill_(self.value) if func is torch.rand else result


GREATEST = 1 - 2**-53


@pytest.mark.parametrize("num_classes", [1, 3, 10**6, 2**24 + 1, 2**40, 3 * 10**12])
@pytest.mark.parametrize(
    ("kind", "uniform"),
    [(Uniform, GREATEST), (LogUniform, GREATEST), (LogUniform, 1.0)],
    ids=["uniform", "log_uniform", "log_uniform, rounded up"],
)
def test_the_greatest_uniform_draws_the_last_class(kind: type[Sampler], uniform: float, num_classes: int) -> None:
    with ConstantUniform(uniform):
        last = kind(num_classes).sample(3).ids
    assert (last < num_classes).all()
    assert (last >= num_classes * (1 - 1e-12) - 1).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, GREATEST])
@pytest.mark.parametrize(
    "counts", [[0, 0, 1, 0, 1, 0], [1e-9, 1, 0, 0], [0.1] * 10, list(range(1, 1001)), [1, 1, 1e-300]]
)
def test_no_uniform_draws_a_class_of_no_q(counts: list[float], uniform: float) -> None:
    sampler = Unigram(counts, power=1)
    with ConstantUniform(uniform):
        assert probabilities(sampler)[sampler.sample(3).ids].min() > 1e-16


def test_counts_as_large_and_small_as_floats_go() -> None:
    counts = [5e-324, 1.0, 1.7e308, 0]
    for power in (-1e308, -1e3, -1.0, 0.0, 1.0, 1e3, 1e308):
        q = probabilities(Unigram(counts, power))
        assert math.isclose(q.sum(), 1.0)
        assert q[3] == 0
    assert Unigram(counts, power=1).log_prob(torch.tensor(0)) == pytest.approx(math.log(5e-324) - math.log(1.7e308))


@pytest.mark.parametrize("weights", [[1e-200, 1e200], [1e200, 1e-200], [5e-324, 1.7e308]])
def test_shares_of_a_mixture_as_far_apart_as_floats_go(weights: list[float]) -> None:
    """A part whose share no float holds is drawn never, and adds nothing; what weighs is the other."""
    batch = make_batch(5)
    follower, fixed = TreeGuided(5), Unigram([4, 3, 2, 1, 1], power=1.0)
    mixture = Mixture([follower, fixed], weights)
    alone = [follower.given(batch, shared=True), fixed][weights[1] > 1]
    for _ in range(2):  # of a batch, and again of the next
        given = mixture.given(batch, shared=True)
        torch.testing.assert_close(every_class(given, 3, shared=True), every_class(alone, 3, shared=True))
        assert given.sample(100).ids.shape == (100,)
    head = SampledSoftmax(4, 5, sampler=mixture, num_samples=3)
    assert head(batch.hidden.float(), batch.target).isfinite()


# Past 2^24 classes, where torch.multinomial refuses and float32 skips odd ids


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
@pytest.mark.parametrize("num_classes", [2**25, 2**40])
def test_bands_of_a_vast_number_of_classes(kind: type[Sampler], num_classes: int) -> None:
    sampler = kind(num_classes)
    ids = sampler.sample(NUM_DRAWS, generator=seeded(3)).ids
    edges = torch.tensor([2**b for b in range(0, num_classes.bit_length(), 2)] + [num_classes])
    first = edges.double().log1p() / math.log1p(num_classes) if kind is LogUniform else edges / num_classes
    observed = torch.bincount(torch.bucketize(ids, edges, right=True), minlength=len(edges))[: len(edges)]
    share = first.double().diff(prepend=torch.zeros(1, dtype=torch.float64))
    expected_enough = share * NUM_DRAWS > 10
    assert goodness_of_fit(observed[expected_enough], share[expected_enough]) > 1e-4

    beyond = ids[ids >= 2**24]
    assert stats.binomtest(int((beyond % 2).sum()), len(beyond)).pvalue > 1e-4
    assert goodness_of_fit(torch.bincount(beyond % 8), torch.ones(8)) > 1e-4


def test_unigram_past_the_floats_of_single_precision() -> None:
    counts = torch.ones(MANY)
    counts[2**24 :] = 2**8  # half of the mass
    counts[2**24 + 1 :: 4] = 0
    sampler = Unigram(counts, power=1)
    ids = sampler.sample(NUM_DRAWS, generator=seeded(4)).ids
    q = probabilities(sampler)
    assert math.isclose(q.sum(), 1.0, rel_tol=1e-11)

    band = 2**16
    observed = torch.bincount(ids // band, minlength=MANY // band)
    assert goodness_of_fit(observed, q.view(-1, band).sum(1)) > 1e-4
    beyond = ids[ids >= 2**24]
    assert goodness_of_fit(torch.bincount(beyond % 4, minlength=4), torch.tensor([1.0, 0.0, 1.0, 1.0])) > 1e-4
    assert torch.equal(sampler.log_prob(beyond).exp(), q[beyond])
