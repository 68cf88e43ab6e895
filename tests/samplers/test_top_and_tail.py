"""Top and tail: the optimum and the estimate of the partition, by enumeration of every tail."""

import itertools

import pytest
import torch
from batches import logits_of, make_batch
from sampler_laws import goodness_of_fit, seeded

from vastmax import functional as F
from vastmax.samplers import Batch, Mixture, Sampler, TopAndTail, Uniform, Unigram
from vastmax.samplers.top_and_tail import total_probability

P = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
COUNTS = [5, 10, 20, 25, 40]
V = len(P)


def given(logits: torch.Tensor, top: int, shared: bool, tail: Sampler | None = None) -> Sampler:
    """The sampler of as many rows as `logits` (N, V) has."""
    rows = len(logits)
    tail = Unigram(COUNTS, power=1.0, unique=True) if tail is None else tail
    eye = torch.eye(V, dtype=torch.float64)
    batch = Batch(logits, torch.zeros(rows, dtype=torch.int64), eye, None)
    return TopAndTail(tail, top).given(batch, shared=shared)


def every_set(inclusion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All subsets (2^V, V) bool and their probabilities."""
    held = torch.tensor(list(itertools.product([False, True], repeat=V)))
    return held, torch.where(held, inclusion, 1 - inclusion).prod(1)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("top", [1, 2, 4, 5])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_optimum_is_the_datas_distribution_and_the_partition_unbiased(k: int, top: int, shared: bool) -> None:
    noise = given(P.log()[None], top, shared)
    log_pi = noise.log_expected_count(torch.arange(V)[None], (1, k))[0]
    q = torch.tensor(COUNTS, dtype=torch.float64) / 100
    expected = torch.where(torch.arange(V) < top, 1.0, 1 - torch.exp(-k * q))
    torch.testing.assert_close(log_pi.exp(), expected)
    held, probability = every_set(log_pi.exp())

    def expected_loss(logits: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for y in range(V):
            per_set = F.sampled_softmax_loss(
                logits[y].expand(len(held)),
                logits.expand(held.shape),
                log_pi[y].expand(len(held)),
                log_pi,
                mask=~held | (torch.arange(V) == y),
                reduction="none",
            )
            total = total + P[y] * (probability * per_set).sum()
        return total

    logits = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = expected_loss(logits)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert F.kl_divergence(logits.detach(), P).abs() < 1e-12

    scores = torch.tensor([1.0, -0.5, 2.0, 0.3, -1.0], dtype=torch.float64)
    estimate = F.log_partition_estimate(scores.expand(held.shape), log_pi, mask=~held).exp()
    torch.testing.assert_close((probability * estimate).sum(), scores.exp().sum())


@pytest.mark.parametrize("shared", [True, False])
def test_sets_are_as_likely_as_independent_inclusion_makes_them(shared: bool) -> None:
    rows, k = 20_000, 2
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0]], dtype=torch.float64)
    noise = given(logits if shared else logits.expand(rows, -1), 2, shared)
    pi = noise.log_expected_count(torch.arange(V).expand(1 if shared else rows, V), (1, k))[0].exp()
    assert pi[[1, 3]].tolist() == [1.0, 1.0]
    g = seeded()
    if shared:
        held = torch.zeros(3000, V, dtype=torch.bool)
        for row in held:
            row[noise.sample(k, generator=g).ids] = True
    else:
        candidates = noise.sample((rows, k), generator=g)
        held = torch.zeros(rows, V, dtype=torch.int64)
        held = held.scatter_add(1, candidates.ids, (~candidates.padding).long())
        assert held.max() == 1
        held = held.bool()
    sets, probability = every_set(pi)
    place = 1 << torch.arange(V)
    code = torch.zeros(2**V, dtype=torch.int64)
    code[(sets * place).sum(1)] = torch.arange(2**V)
    assert goodness_of_fit(torch.bincount(code[(held * place).sum(1)], minlength=2**V), probability) > 1e-4


def test_candidates_of_rows_with_tops_of_their_own() -> None:
    logits = torch.randn(50, V, generator=seeded(), dtype=torch.float64)
    noise = given(logits, 2, shared=False)
    candidates = noise.sample((50, 3), generator=seeded(1))
    assert candidates.unique is True
    assert torch.equal(candidates.ids[:, :2], logits.topk(2).indices.sort(1).values)
    assert not candidates.log_expected_count[:, :2].any()
    declared = noise.log_expected_count(candidates.ids, (50, 3)).masked_fill(candidates.padding, torch.inf)
    torch.testing.assert_close(candidates.log_expected_count, declared)
    for ids, padding in zip(candidates.ids, candidates.padding, strict=True):
        kept = ids[~padding].tolist()
        assert len(set(kept)) == len(kept)
        assert not ids[padding].any()


def test_one_set_has_the_classes_of_the_largest_mean_probability() -> None:
    logits = 3 * torch.randn(9, V, generator=seeded(), dtype=torch.float64)
    noise = given(logits, 3, shared=True)
    candidates = noise.sample(2, generator=seeded(1))
    expected = logits.softmax(-1).mean(0).topk(3).indices.sort().values
    assert torch.equal(candidates.ids[:3], expected)
    assert len(candidates.ids.unique()) == len(candidates.ids)


def test_all_classes_in_the_top_or_in_the_tail() -> None:
    logits = torch.randn(4, V, generator=seeded(), dtype=torch.float64)
    for top, k in [(V, 1), (2, V)]:
        for shared in (True, False):
            candidates = given(logits, top, shared).sample(k if shared else (4, k), generator=seeded())
            kept = ~candidates.padding
            assert (kept.sum(-1) == V).all()
            assert not candidates.log_expected_count[kept].any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_total_probability(dtype: torch.dtype, bias: bool) -> None:
    batch = make_batch(30, 7, dtype=dtype)
    batch = batch if bias else batch._replace(linear_bias=None)
    with torch.inference_mode():
        inference = batch.hidden.clone()
    for hidden in (batch.hidden, inference):
        with torch.inference_mode(False):
            found = total_probability(hidden, batch.linear_weight, batch.linear_bias)
        wide = batch._replace(
            hidden=batch.hidden.double(),
            linear_weight=batch.linear_weight.double(),
            linear_bias=batch.linear_bias.double() if bias else None,
        )
        expected = logits_of(wide).softmax(-1).sum(0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_no_rows() -> None:
    for shared in (True, False):
        noise = given(torch.empty(0, V, dtype=torch.float64), 2, shared)
        ids = noise.sample(2 if shared else (0, 2), generator=seeded()).ids
        assert ids.ndim == 1 if shared else len(ids) == 0
        assert noise.log_expected_count(torch.empty(0, dtype=torch.int64), 2).shape == (0,)


def test_errors() -> None:
    distinct = Uniform(3, unique=True)
    for make, error, message in [
        (lambda: TopAndTail(3, 4), TypeError, "sampler: expected a vastmax.samplers.Sampler, got int"),
        (lambda: TopAndTail(Uniform(3), 2), ValueError, "sampler: expected one with unique=True"),
        (lambda: TopAndTail(TopAndTail(distinct, 1), 2), ValueError, "sampler: expected one with unique=True"),
        (lambda: TopAndTail(distinct, 0), ValueError, "top: .* got 0"),
        (lambda: TopAndTail(distinct, 4), ValueError, "top: expected at most num_classes = 3, got 4"),
        (lambda: TopAndTail(distinct, 2).sample(2), TypeError, r"TopAndTail: expected a batch"),
        (lambda: Mixture([TopAndTail(distinct, 2)], [1]), ValueError, "samplers: expected independent draws"),
    ]:
        with pytest.raises(error, match=message):
            make()
