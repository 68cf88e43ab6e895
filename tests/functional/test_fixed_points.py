"""The optimum of each sampled loss, by enumeration of every candidate set over five classes.

The expected loss over targets from p and all candidate sets is minimised in float64; what the minimiser says of
the classes' probabilities is compared with p, and with published figures for the wrong corrections.
"""

import itertools
import math

import pytest
import torch

from vastmax import functional as F

P = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
Q = torch.tensor([0.05, 0.1, 0.2, 0.25, 0.4], dtype=torch.float64)
V = len(P)


def multisets(k):
    """All ordered draws of k ids with their probabilities: (M, k), (M,)."""
    ids = torch.tensor(list(itertools.product(range(V), repeat=k)))
    return ids, Q[ids].prod(-1)


def distinct_sets(inclusion):
    """All subsets, padded with class 0 to V slots, a mask of the padding, and their probabilities."""
    ids, padding, probability = [], [], []
    for inside in itertools.product([False, True], repeat=V):
        chosen = [c for c in range(V) if inside[c]]
        ids.append(chosen + [0] * (V - len(chosen)))
        padding.append([False] * len(chosen) + [True] * (V - len(chosen)))
        weights = [inclusion[c] if inside[c] else 1 - inclusion[c] for c in range(V)]
        probability.append(math.prod(float(w) for w in weights))
    return torch.tensor(ids), torch.tensor(padding), torch.tensor(probability, dtype=torch.float64)


def minimise(expected_loss):
    """Return the logits that minimise a convex expected loss."""
    logits = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = expected_loss(logits)
        loss.backward()
        return loss

    optimizer.step(closure)
    (grad,) = torch.autograd.grad(expected_loss(logits), logits)
    assert grad.abs().max() < 1e-8, "the optimiser stopped short of the optimum"
    return logits.detach()


def expectation(
    loss, ids, probability, padding=None, *, target_count, sampled_count, hits="kept", p=P, excluded=()
):
    """The expected loss as a function of the logits, over targets from p and the enumerated sets."""

    def expected(logits):
        total = torch.zeros((), dtype=torch.float64)
        for y in range(V):
            mask = torch.zeros(ids.shape, dtype=torch.bool) if padding is None else padding.clone()
            mask |= torch.isin(ids, torch.tensor(excluded, dtype=torch.int64)) & (ids != y)
            if hits == "removed":
                mask |= ids == y
            rows = len(ids)
            per_set = loss(
                logits[y].expand(rows),
                logits[ids],
                target_count[y].expand(rows),
                sampled_count[ids],
                mask=mask,
                reduction="none",
            )
            total = total + p[y] * (probability * per_set).sum()
        return total

    return expected


def divergence(logits):
    return F.kl_divergence(logits, P).item()


NONE = torch.zeros(V, dtype=torch.float64)
CASES = [
    # corrected: on target, on candidates; what happens to accidental hits; divergence for k = 1, 2, 3
    ("both", "kept", (0.0, 0.0, 0.0), 1e-6),
    ("both", "removed", (0.0, 7e-5, 3e-4), 5e-5),
    ("candidates alone", "kept", (0.892, 0.498, 0.313), 5e-4),
    ("neither", "kept", (0.202, 0.202, 0.202), 5e-4),
]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("corrected", "hits", "figures", "tolerance"), CASES)
def test_sampled_softmax_on_independent_draws(corrected, hits, figures, tolerance, k):
    ids, probability = multisets(k)
    log_count = (k * Q).log()
    optimum = minimise(
        expectation(
            F.sampled_softmax_loss,
            ids,
            probability,
            target_count=log_count if corrected == "both" else NONE,
            sampled_count=NONE if corrected == "neither" else log_count,
            hits=hits,
        )
    )
    assert divergence(optimum) == pytest.approx(figures[k - 1], abs=tolerance)
    if corrected == "both" and hits == "kept":
        torch.testing.assert_close(F.softmax(optimum), P, atol=1e-6, rtol=0)
    if corrected == "neither":  # the optimum is p / q, normalised
        torch.testing.assert_close(F.softmax(optimum), P / Q / (P / Q).sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_sampled_softmax_on_distinct_sets(k):
    """Independent inclusion, corrected by log pi: exact if accidental hits are removed, and only then."""
    inclusion = -torch.expm1(-k * Q)
    ids, padding, probability = distinct_sets(inclusion)
    assert probability.sum().item() == pytest.approx(1)
    optimum = {
        hits: minimise(
            expectation(
                F.sampled_softmax_loss,
                ids,
                probability,
                padding,
                target_count=inclusion.log(),
                sampled_count=inclusion.log(),
                hits=hits,
            )
        )
        for hits in ("removed", "kept")
    }
    torch.testing.assert_close(F.softmax(optimum["removed"]), P, atol=1e-6, rtol=0)
    assert divergence(optimum["kept"]) > 1e-5


@pytest.mark.parametrize("k", [1, 2, 3])
def test_nce_on_independent_draws(k):
    ids, probability = multisets(k)
    log_count = (k * Q).log()
    optimum = minimise(expectation(F.nce_loss, ids, probability, target_count=log_count, sampled_count=log_count))
    torch.testing.assert_close(optimum, P.log(), atol=1e-6, rtol=0)
    without_log_k = minimise(expectation(F.nce_loss, ids, probability, target_count=Q.log(), sampled_count=Q.log()))
    torch.testing.assert_close(without_log_k, P.log() - math.log(k), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_nce_on_distinct_sets_keeps_hits(k):
    """The noise term needs the expected count of every class to be pi whatever the target: hits stay."""
    inclusion = -torch.expm1(-k * Q)
    ids, padding, probability = distinct_sets(inclusion)
    counts = {"target_count": inclusion.log(), "sampled_count": inclusion.log()}
    kept = minimise(expectation(F.nce_loss, ids, probability, padding, **counts))
    torch.testing.assert_close(kept, P.log(), atol=1e-6, rtol=0)
    removed = minimise(expectation(F.nce_loss, ids, probability, padding, **counts, hits="removed"))
    torch.testing.assert_close(removed, (P / (1 - P)).log(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_negative_sampling(k):
    ids, probability = multisets(k)

    def loss(target_logit, sampled_logit, _target_count, _sampled_count, **options):
        return F.negative_sampling_loss(target_logit, sampled_logit, **options)

    optimum = minimise(expectation(loss, ids, probability, target_count=NONE, sampled_count=NONE))
    torch.testing.assert_close(optimum, (P / (k * Q)).log(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 2])
def test_one_vs_each(k):
    """A loose bound whose optimum is the data's distribution: log p is best for every pair of classes."""
    ids, probability = multisets(k)
    log_count = (k * Q).log()

    def loss(target_logit, sampled_logit, _target_count, sampled_count, **options):
        return F.one_vs_each_loss(target_logit, sampled_logit, sampled_log_count=sampled_count, **options)

    optimum = minimise(
        expectation(loss, ids, probability, target_count=NONE, sampled_count=log_count, hits="removed")
    )
    torch.testing.assert_close(F.softmax(optimum), P, atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 0.6])
def test_weighted_negative_sampling(beta):
    ids, probability = multisets(2)

    def loss(target_logit, sampled_logit, _target_count, _sampled_count, **options):
        return F.negative_sampling_loss(target_logit, sampled_logit, positive_weight=beta, **options)

    optimum = minimise(expectation(loss, ids, probability, target_count=NONE, sampled_count=NONE))
    torch.testing.assert_close(optimum, (beta * P / (2 * Q)).log(), atol=1e-6, rtol=0)


def test_temperature_divides_the_logits_before_they_are_corrected():
    """Correcting first would divide the correction too, and the optimum would be off."""
    temperature, k = 0.5, 2
    ids, probability = multisets(k)
    log_count = (k * Q).log()

    def before(target_logit, sampled_logit, *counts, **options):
        return F.sampled_softmax_loss(target_logit / temperature, sampled_logit / temperature, *counts, **options)

    def after(target_logit, sampled_logit, target_count, sampled_count, **options):
        counts = target_count / temperature, sampled_count / temperature
        return before(target_logit, sampled_logit, *counts, **options)

    counts = {"target_count": log_count, "sampled_count": log_count}
    right = minimise(expectation(before, ids, probability, **counts))
    torch.testing.assert_close(F.softmax(right / temperature), P, atol=1e-6, rtol=0)
    wrong = minimise(expectation(after, ids, probability, **counts))
    assert divergence(wrong / temperature) > 0.1


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_mixture_is_corrected_by_its_own_q(share):
    """Whichever part drew a candidate: corrected by the part's q instead, the optimum is off."""
    other = torch.full((V,), 1 / V, dtype=torch.float64)
    mixture = share * Q + (1 - share) * other
    k = 2
    ids = torch.tensor(list(itertools.product(range(V), repeat=k)))
    probability = mixture[ids].prod(-1)
    log_count = (k * mixture).log()
    optimum = minimise(
        expectation(F.sampled_softmax_loss, ids, probability, target_count=log_count, sampled_count=log_count)
    )
    torch.testing.assert_close(F.softmax(optimum), P, atol=1e-6, rtol=0)
    part = (k * Q).log()
    wrong = minimise(expectation(F.sampled_softmax_loss, ids, probability, target_count=part, sampled_count=part))
    assert divergence(wrong) > 1e-3


# Classes that are known to be no negatives of a row are none of its candidates: the others' part of p is learned.

EXCLUDED = [1, 4]
REST = torch.tensor([0, 2, 3])
P_OF_REST = torch.zeros(V, dtype=torch.float64).index_copy(0, REST, P[REST] / P[REST].sum())


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("distinct", [False, True])
def test_sampled_softmax_without_excluded_classes_is_the_softmax_over_the_others(distinct, k):
    """The counts need no change: fewer draws from q of the others are draws from q of the others."""
    inclusion = -torch.expm1(-k * Q) if distinct else k * Q
    ids, padding, probability = distinct_sets(inclusion) if distinct else (multisets(k)[0], None, multisets(k)[1])
    counts = {"target_count": inclusion.log(), "sampled_count": inclusion.log()}
    counts |= {"hits": "removed" if distinct else "kept", "p": P_OF_REST}
    without = minimise(expectation(F.sampled_softmax_loss, ids, probability, padding, excluded=EXCLUDED, **counts))
    torch.testing.assert_close(F.softmax(without[REST]), P_OF_REST[REST], atol=1e-6, rtol=0)
    assert torch.equal(without[EXCLUDED], torch.zeros(2, dtype=torch.float64))  # where they began


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("distinct", [False, True])
def test_binary_losses_without_excluded_classes_are_those_of_the_others(distinct, k):
    inclusion = -torch.expm1(-k * Q) if distinct else k * Q
    ids, padding, probability = distinct_sets(inclusion) if distinct else (multisets(k)[0], None, multisets(k)[1])
    options = {"excluded": EXCLUDED, "p": P_OF_REST}
    counts = {"target_count": inclusion.log(), "sampled_count": inclusion.log(), **options}

    def negative_sampling(target_logit, sampled_logit, _target_count, _sampled_count, **options):
        return F.negative_sampling_loss(target_logit, sampled_logit, **options)

    nce = minimise(expectation(F.nce_loss, ids, probability, padding, **counts))
    torch.testing.assert_close(nce[REST], P_OF_REST[REST].log(), atol=1e-6, rtol=0)
    sgns = minimise(expectation(negative_sampling, ids, probability, padding, **counts))
    torch.testing.assert_close(sgns[REST], (P_OF_REST / inclusion)[REST].log(), atol=1e-6, rtol=0)
    for optimum in (nce, sgns):
        assert torch.equal(optimum[EXCLUDED], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 2])
def test_one_vs_each_and_importance_sampling_without_excluded_classes(k):
    """One-vs-each has its optimum at the others' distribution; the estimate of their Z has no bias."""
    ids, probability = multisets(k)
    log_count, excluded = (k * Q).log(), torch.tensor(EXCLUDED)

    def loss(target_logit, sampled_logit, _target_count, sampled_count, **options):
        return F.one_vs_each_loss(target_logit, sampled_logit, sampled_log_count=sampled_count, **options)

    options = {"target_count": NONE, "sampled_count": log_count, "hits": "removed"}
    optimum = minimise(expectation(loss, ids, probability, excluded=EXCLUDED, p=P_OF_REST, **options))
    torch.testing.assert_close(F.softmax(optimum[REST]), P_OF_REST[REST], atol=1e-6, rtol=0)
    s = torch.linspace(-1, 1, V, dtype=torch.float64)
    estimate = F.log_partition_estimate(s[ids], log_count[ids], mask=torch.isin(ids, excluded)).exp()
    torch.testing.assert_close((probability * estimate).sum(), s[REST].exp().sum())


# Label smoothing: each candidate is a target of the others.

SMOOTHED = 0.8 * P + 0.2 / V


def smoothed(ids, padding, probability, log_count, *, distinct):
    """The expected loss of the logits with a smoothing of 0.2, one of independent draws left out for the target."""
    count = log_count[ids].masked_fill(padding, torch.inf)

    def expected(logits):
        total = torch.zeros((), dtype=torch.float64)
        for y in range(V):
            rows = len(ids)
            mask = ids == y if distinct else (torch.arange(ids.shape[1]) == 0).expand(ids.shape)
            target = logits[y].expand(rows), log_count[y].expand(rows)
            loss = F.sampled_softmax_loss(
                target[0], logits[ids], target[1], count,
                target_mask=mask, label_smoothing=0.2, num_classes=V, reduction="none",
            )  # fmt: skip
            total = total + P[y] * (probability * loss).sum()
        return total

    return expected


@pytest.mark.parametrize(("distinct", "k"), [(False, 2), (False, 3), (True, 1), (True, 2), (True, 3)])
def test_smoothed_sampled_softmax(distinct, k):
    """Its expectation is that of the loss of targets from the smoothed distribution, and its optimum that."""
    inclusion = -torch.expm1(-k * Q) if distinct else k * Q
    if distinct:
        ids, padding, probability = distinct_sets(inclusion)
        rivals = ids, probability, padding
    else:
        ids, probability = multisets(k)
        padding = torch.zeros(ids.shape, dtype=torch.bool)
        rivals = multisets(k - 1)
    ours = smoothed(ids, padding, probability, inclusion.log(), distinct=distinct)
    counts = {"target_count": inclusion.log(), "sampled_count": inclusion.log()}
    hits = "removed" if distinct else "kept"
    theirs = expectation(F.sampled_softmax_loss, *rivals, **counts, hits=hits, p=SMOOTHED)
    s = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64, requires_grad=True)
    values = ours(s), theirs(s)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, s)[0] for value in values))
    torch.testing.assert_close(F.softmax(minimise(ours)), SMOOTHED, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("k", "figure"), [(1, 0.158), (2, 0.063), (3, 0.033)])
def test_what_smoothing_adds_to_the_exact_loss_is_no_smoothing_of_a_sampled_one(k, figure):
    """With its unbiased estimate, linear in the logits, the expectation is right and the optimum is off."""
    ids, probability = multisets(k)
    log_count = (k * Q).log()

    def linear(target_logit, sampled_logit, target_count, sampled_count, **options):
        plain = F.sampled_softmax_loss(target_logit, sampled_logit, target_count, sampled_count, **options)
        behind = target_logit.unsqueeze(-1) - sampled_logit
        return plain + 0.2 * (behind * (-sampled_count).exp() / V).sum(-1)

    optimum = minimise(expectation(linear, ids, probability, target_count=log_count, sampled_count=log_count))
    assert F.kl_divergence(optimum, SMOOTHED).item() == pytest.approx(figure, abs=5e-4)
