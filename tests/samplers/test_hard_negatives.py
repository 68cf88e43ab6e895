"""Hard negatives: the largest terms of a pool, and how far their loss is from the pool's."""

import pytest
import torch
from batches import logits_of, make_batch
from sampler_laws import seeded
from torch import Tensor

from vastmax import functional as F
from vastmax import heads
from vastmax.samplers import (
    Batch,
    Candidates,
    HardNegatives,
    InBatch,
    Mixture,
    Sampler,
    TreeGuided,
    Uniform,
    Unigram,
)

V, ROWS, POOL = 20, 6, 12
COUNTS = torch.arange(1, V + 1)

BASES = {
    "iid": lambda: Unigram(COUNTS),
    "distinct": lambda: Unigram(COUNTS, unique=True),
    "tree": lambda: TreeGuided(V),
    "in batch": lambda: InBatch(V, counts=COUNTS),
}
every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
either = pytest.mark.parametrize("shared", [True, False])


def draw(sampler: Sampler, batch: Batch, k: int, shared: bool, seed: int) -> tuple[Candidates, Tensor]:
    """The candidates of a batch and the log counts of its targets."""
    noise, size = sampler.given(batch, shared=shared), k if shared else (len(batch.hidden), k)
    return noise.sample(size, generator=seeded(seed)), noise.log_expected_count(batch.target, size)


def loss(batch: Batch, candidates: Candidates, target_log_count: Tensor) -> Tensor:
    ids = candidates.ids.expand(ROWS, -1)
    hit = ids == batch.target[:, None]
    return F.sampled_softmax_loss(
        logits_of(batch).gather(1, batch.target[:, None]).squeeze(1),
        logits_of(batch).gather(1, ids),
        target_log_count,
        candidates.log_expected_count.expand(ids.shape),
        mask=hit if candidates.unique else None,
        reduction="none",
    )


def log_terms(batch: Batch, candidates: Candidates) -> Tensor:
    """(N, K), hits among distinct classes left out."""
    ids = candidates.ids.expand(ROWS, -1)
    terms = logits_of(batch).gather(1, ids) - candidates.log_expected_count
    return terms.masked_fill(ids == batch.target[:, None], -torch.inf) if candidates.unique else terms


@either
@every_base
def test_the_loss_is_that_of_the_pool_with_terms_left_out(make, shared) -> None:
    compared = 0
    for seed in range(20):
        batch = make_batch(V, ROWS, seed=seed)
        pool, target_log_count = draw(make(), batch, POOL, shared, seed)
        of_pool = loss(batch, pool, target_log_count)
        before = torch.zeros(ROWS, dtype=torch.float64)
        for k in range(1, POOL + 1):
            hard, log_count = draw(HardNegatives(make(), POOL), batch, k, shared, seed)
            assert hard.unique == pool.unique
            assert hard.ids.shape[-1] == min(k, pool.ids.shape[-1])
            assert torch.equal(log_count, target_log_count)
            found = loss(batch, hard, log_count)
            assert (found <= of_pool + 1e-12).all()
            assert (found >= before - 1e-12).all() or shared
            before = found
        # A distinct set has POOL draws in the mean, so at times more classes than that.
        all_kept = ((~pool.padding).sum(-1) <= POOL).expand(ROWS)
        torch.testing.assert_close(found[all_kept], of_pool[all_kept])
        compared += int(all_kept.sum())
        assert (
            loss(batch, draw(HardNegatives(make(), POOL), batch, 1, shared, seed)[0], log_count) < of_pool
        ).any()
    assert compared > 10 * ROWS


@every_base
def test_each_row_keeps_its_largest_terms(make) -> None:
    for seed in range(10):
        batch = make_batch(V, ROWS, seed=seed)
        pool, _ = draw(make(), batch, POOL, False, seed)
        hard, _ = draw(HardNegatives(make(), POOL), batch, 4, False, seed)
        expected = log_terms(batch, pool).sort(-1, descending=True).values[:, :4]
        torch.testing.assert_close(log_terms(batch, hard), expected)


@every_base
def test_one_set_keeps_the_largest_mean_share(make) -> None:
    for seed in range(10):
        batch = make_batch(V, ROWS, seed=seed)
        pool, _ = draw(make(), batch, POOL, True, seed)
        hard, _ = draw(HardNegatives(make(), POOL), batch, 3, True, seed)
        share = log_terms(batch, pool).softmax(-1).nan_to_num(0.0).mean(0)
        kept = share.sort(descending=True).indices[:3]
        assert sorted(hard.ids.tolist()) == sorted(pool.ids[kept].tolist())
        assert hard.log_expected_count.shape[-1] == len(kept)


def test_errors() -> None:
    given = HardNegatives(Uniform(V), POOL).given(make_batch(V), shared=True)
    for make, error, message in [
        (lambda: HardNegatives(3, 4), TypeError, "sampler: expected a vastmax.samplers.Sampler, got int"),
        (lambda: HardNegatives(Uniform(3), 0), ValueError, "pool: .* got 0"),
        (lambda: HardNegatives(Uniform(3, unique=True), 4), ValueError, "pool: expected at most 3"),
        (lambda: HardNegatives(Uniform(3), 4).sample(2), TypeError, r"HardNegatives: expected a batch"),
        (lambda: given.sample(POOL + 1), ValueError, "size: expected k of at most pool = 12, got 13"),
        (lambda: Mixture([HardNegatives(Uniform(3), 2)], [1]), ValueError, "samplers: expected independent draws"),
    ]:
        with pytest.raises(error, match=message):
            make()


def test_a_head_asks_for_no_more_than_the_pool() -> None:
    noise = HardNegatives(Uniform(50), pool=10)
    with pytest.raises(
        ValueError, match=r"num_samples: expected at most 10, which is all that HardNegatives\(.*got 11"
    ):
        heads.SampledSoftmax(4, 50, sampler=noise, num_samples=11)
