"""What estimates say in expectation, by enumeration of every draw, and the bounds and limits of the losses."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from vastmax import functional as F

P = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
Q = torch.tensor([0.05, 0.1, 0.2, 0.25, 0.4], dtype=torch.float64)
R = torch.tensor([0.3, 0.1, 0.1, 0.3, 0.2], dtype=torch.float64)
V = len(P)


def logits(seed=0):
    return 2 * torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draws(k, q, num_classes=V):
    """All ordered draws of k ids from q, with their probabilities."""
    ids = torch.tensor(list(itertools.product(range(num_classes), repeat=k)))
    return ids, q[ids].prod(-1)


def expected(loss, k, q):
    """The expectation of a loss of the drawn ids (M, k) under draws from q."""
    ids, probability = draws(k, q)
    return (probability * loss(ids)).sum()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("y", range(V))
def test_importance_weights_make_any_proposal_stand_for_the_noise(k, y):
    """NCE with candidates from R, weighted Q / R, has the expected loss of candidates from Q; R = Q weighs 1."""
    s, log_count = logits(y), (k * Q).log()

    def loss(ids, proposal):
        rows = len(ids)
        weight = (Q / proposal).log()[ids]
        target = s[y].expand(rows), log_count[y].expand(rows)
        return F.nce_loss(target[0], s[ids], target[1], log_count[ids], sampled_log_weight=weight, reduction="none")

    ours = expected(lambda ids: loss(ids, R), k, R)
    torch.testing.assert_close(ours, expected(lambda ids: loss(ids, Q), k, Q))
    ids, _ = draws(k, Q)
    rows = len(ids)
    plain = F.nce_loss(s[y].expand(rows), s[ids], log_count[y].expand(rows), log_count[ids], reduction="none")
    torch.testing.assert_close(loss(ids, Q), plain)


def nce_gradient(s, k):
    """The expected gradient of NCE for targets from P and k draws from Q, in closed form over the classes."""
    u = s - (k * Q).log()
    return -P * torch.sigmoid(-u) + k * Q * torch.sigmoid(u)


def test_the_gradient_of_nce_tends_to_that_of_maximum_likelihood():
    s = logits(1).log_softmax(-1)  # of a normalised model
    exact = s.exp() - P
    s_k = s.clone().requires_grad_()
    k = 2
    ids, probability = draws(k, Q)
    total = 0
    for y in range(V):
        rows = len(ids)
        log_count = (k * Q).log()
        loss = F.nce_loss(
            s_k[y].expand(rows), s_k[ids], log_count[y].expand(rows), log_count[ids], reduction="none"
        )
        total = total + P[y] * (probability * loss).sum()
    (enumerated,) = torch.autograd.grad(total, s_k)
    torch.testing.assert_close(enumerated, nce_gradient(s, k))
    cosine = [functional.cosine_similarity(nce_gradient(s, k), exact, dim=0).item() for k in (1, 10, 100, 1000)]
    assert cosine == sorted(cosine)
    assert cosine[0] < 0.99
    assert cosine[-1] > 1 - 1e-5
    error = [(nce_gradient(s, k) - exact).norm().item() for k in (1000, 10_000)]
    assert error[0] / error[1] == pytest.approx(10, rel=0.01)  # falls as 1 / k


def test_a_fixed_log_partition_spares_the_first_steps():
    """V = 10,000, k = 100, uniform noise, logits near 0: 461.5 nats without the offset, 5.6 with it."""
    log_count = torch.full((100,), math.log(100 / 10_000), dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)

    def loss(s):
        return F.nce_loss(zero + s, zero[None] + s + 0 * log_count, log_count[:1], log_count).item()

    assert loss(0.0) == pytest.approx(461.5, abs=0.05)
    assert loss(-math.log(10_000)) == pytest.approx(5.6, abs=0.05)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_estimate_of_the_partition_has_no_bias(k):
    s, log_count = logits(2), (k * Q).log()
    z = expected(lambda ids: F.log_partition_estimate(s[ids], log_count[ids]).exp(), k, Q)
    torch.testing.assert_close(z, s.exp().sum())


def test_the_bias_of_importance_sampling_falls_as_one_over_k():
    """E log Z^ - log Z is -var / 2k to first order, with var the relative variance of e^s / q."""
    s = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    z = s.exp().sum()
    variance = (q * (s.exp() / q / z - 1).square()).sum().item()
    bias = {}
    for k in (2, 4, 8):
        ids, probability = draws(k, q, 3)
        rows = len(ids)
        loss = F.importance_sampled_softmax_loss(s[0].expand(rows), s[ids], (k * q).log()[ids], reduction="none")
        bias[k] = ((probability * loss).sum() - (z.log() - s[0])).item()
    assert bias[2] < bias[4] < bias[8] < 0
    assert bias[8] * 8 == pytest.approx(-variance / 2, rel=0.05)


def test_the_gradient_of_importance_sampling_weighs_the_candidates():
    s = logits(3).requires_grad_()
    ids, log_count = torch.tensor([1, 4, 1, 3]), (4 * Q).log()[[1, 4, 1, 3]]
    loss = F.importance_sampled_softmax_loss(s[0], s[ids], log_count)
    (ours,) = torch.autograd.grad(loss, s)
    w = (s[ids] - log_count).softmax(-1).detach()
    theirs = torch.zeros(V, dtype=torch.float64).index_add(0, ids, w)
    theirs[0] -= 1
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(F.effective_sample_size(s[ids], log_count), 1 / w.square().sum())


def test_effective_sample_size():
    equal = torch.zeros(3, 8, dtype=torch.float64)
    torch.testing.assert_close(F.effective_sample_size(equal, equal), torch.full((3,), 8.0).double())
    torch.testing.assert_close(F.effective_sample_size(equal + 500, equal[0]), torch.full((3,), 8.0).double())
    one = F.effective_sample_size(torch.tensor([0.0, 900.0]), torch.zeros(2))
    torch.testing.assert_close(one, torch.tensor(1.0))
    masked = F.effective_sample_size(equal, equal, mask=torch.arange(8) < torch.tensor([[3], [8], [0]]))
    torch.testing.assert_close(masked, torch.tensor([5.0, 0.0, 8.0]).double())


def test_a_row_without_candidates_counts_for_nothing():
    target = torch.tensor([1.0, 2.0], requires_grad=True)
    sampled = torch.randn(2, 3, requires_grad=True)
    mask = torch.tensor([[True] * 3, [False, True, False]])
    loss = F.importance_sampled_softmax_loss(target, sampled, torch.zeros(3), mask=mask, reduction="none")
    assert loss[0] == 0
    assert F.log_partition_estimate(sampled, torch.zeros(3), mask=mask)[0] == -math.inf
    for gradient in torch.autograd.grad(loss.sum(), (target, sampled)):
        assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
        assert gradient.isfinite().all()
    empty = F.importance_sampled_softmax_loss(target, sampled[:, :0], torch.zeros(0), reduction="none")
    assert torch.equal(empty, torch.zeros(2))


@pytest.mark.parametrize("y", range(V))
def test_one_vs_each_bounds_the_cross_entropy(y):
    s = logits(4)
    others = torch.arange(V) != y
    bound = F.one_vs_each_loss(s[y], s[others])
    assert bound > -s.log_softmax(-1)[y] + 1e-3
    torch.testing.assert_close(bound, -torch.sigmoid(s[y] - s[others]).log().sum())
    two = F.one_vs_each_loss(s[y], s[[y - 1]])
    torch.testing.assert_close(two, -s[[y, y - 1]].log_softmax(-1)[0])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("q", [Q, torch.full((V,), 1 / V, dtype=torch.float64)], ids=["unigram", "uniform"])
def test_sampled_one_vs_each_has_no_bias(k, q):
    s, y = logits(5), 2
    exact = F.one_vs_each_loss(s[y], s[torch.arange(V) != y])

    def loss(ids):
        return F.one_vs_each_loss(
            s[y].expand(len(ids)),
            s[ids],
            sampled_log_count=(k * q).log()[ids],
            mask=ids == y,
            reduction="none",
        )

    torch.testing.assert_close(expected(loss, k, q), exact)


def test_uniform_candidates_that_are_not_the_target_count_v_minus_1_over_k():
    s, k = logits(6), 2
    log_count = torch.tensor(math.log(k / (V - 1)), dtype=torch.float64)
    loss = F.one_vs_each_loss(s[0], s[[3, 1]], sampled_log_count=log_count.expand(2))
    plain = F.one_vs_each_loss(s[0], s[[3, 1]])
    torch.testing.assert_close(loss, (V - 1) / k * plain)


def test_positive_weight_of_negative_sampling_in_log_space():
    """Raising the probability to a power and clamping it loses everything at s = 40; softplus does not."""
    nothing = torch.zeros(1, 0, dtype=torch.float64)
    loss = F.negative_sampling_loss(torch.tensor([40.0]).double(), nothing, positive_weight=0.3)
    assert loss.item() == pytest.approx(0.3 * math.exp(-40), rel=1e-12)
    loss = F.negative_sampling_loss(torch.tensor([-40.0]).double(), nothing, positive_weight=0.3)
    assert loss.item() == pytest.approx(0.3 * 40, rel=1e-12)
    with pytest.raises(ValueError, match="positive_weight: expected a finite number greater than 0, got 0"):
        F.negative_sampling_loss(torch.zeros(1), torch.zeros(1, 1), positive_weight=0.0)


BAD = [
    (lambda: F.one_vs_each_loss(torch.zeros(2), torch.zeros(3, 2)), "sampled_logit: expected shape"),
    (
        lambda: F.one_vs_each_loss(torch.zeros(2), torch.zeros(2, 3), sampled_log_count=torch.zeros(2)),
        r"sampled_log_count: expected shape \(3,\) or \(2, 3\), got \(2,\)",
    ),
    (
        lambda: F.importance_sampled_softmax_loss(torch.zeros(2), torch.zeros(2, 3), torch.zeros(2)),
        "sampled_log_count: expected shape",
    ),
    (lambda: F.log_partition_estimate(torch.zeros(2, 3), torch.zeros(2)), "sampled_log_count: expected shape"),
    (
        lambda: F.effective_sample_size(torch.zeros(2, 3), torch.zeros(3), mask=torch.zeros(3, dtype=torch.bool)),
        "mask: expected shape",
    ),
    (
        lambda: F.nce_loss(
            torch.zeros(2), torch.zeros(2, 3), torch.zeros(2), torch.zeros(3), sampled_log_weight=torch.zeros(4)
        ),
        "sampled_log_weight: expected shape",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_shapes_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
