"""Logits bounded by a soft cap: every method of a head by enumeration of its classes, and where the cap stands."""

import itertools

import pytest
import torch
from torch.nn import functional

from vastmax import functional as F
from vastmax import heads, samplers
from vastmax.samplers import Candidates

D, V, N, CAP, T = 3, 5, 4, 1.5, 0.7
KINDS = {
    "Softmax": heads.Softmax,
    "SampledSoftmax": heads.SampledSoftmax,
    "ImportanceSampledSoftmax": heads.ImportanceSampledSoftmax,
    "OneVsEach": heads.OneVsEach,
    "NCE": lambda d, v, **options: heads.NCE(d, v, log_partition=3.0, **options),  # which leaves room below the cap
}


def build(kind, **options):
    torch.manual_seed(4)
    head = kind(D, V, **{"dtype": torch.float64, "softcap": CAP, "temperature": T, "reduction": "none", **options})
    with torch.no_grad():
        head.weight.mul_(4)
        head.bias.copy_(torch.randn(V, dtype=torch.float64))
    return head


def problem():
    g = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randint(V, (N,), generator=g), g


def capped(head, hidden):
    return CAP * torch.tanh(functional.linear(hidden, head.weight, head.bias) / T / CAP)


def same(ours, theirs, inputs, g):
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, generator=g, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_probabilities_are_those_of_the_capped_logits(kind):
    head, (hidden, target, g) = build(kind), problem()
    logits = capped(head, hidden)
    assert logits.abs().max() > 1.2  # the cap is felt
    inputs = [hidden, head.weight, head.bias]
    same(head.log_prob(hidden), logits.log_softmax(-1), inputs, g)
    same(
        head.nll(hidden, target),
        functional.cross_entropy(capped(head, hidden), target, reduction="none"),
        inputs,
        g,
    )
    given = 3.0 if isinstance(head, heads.NCE) else 0.0
    same(head.log_partition(hidden), capped(head, hidden).logsumexp(-1) - given, inputs, g)
    for k in (1, V):
        values, indices = head.topk(hidden, k)
        expected = logits.log_softmax(-1).topk(k)
        torch.testing.assert_close(values, expected.values)
        assert torch.equal(indices, expected.indices)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0, "z_loss": 0.2}])
def test_the_exact_loss(options):
    head, (hidden, target, g) = build(heads.Softmax, **options), problem()
    inputs = [hidden, head.weight, head.bias]
    expected = F.linear_cross_entropy(
        hidden, head.weight, target, linear_bias=head.bias, temperature=T, softcap=CAP, reduction="none", **options
    )
    same(head(hidden, target), expected, inputs, g)
    if not options:
        own = functional.cross_entropy(capped(head, hidden), target, reduction="none")
        same(head(hidden, target), own, inputs, g)
        several = torch.stack([target, (target + 1) % V], -1)
        same(head(hidden, several), -capped(head, hidden).log_softmax(-1).gather(-1, several).mean(-1), inputs, g)


LOSSES = {
    heads.SampledSoftmax: lambda t, s, m, n, hit: F.sampled_softmax_loss(t, s, m, n, reduction="none"),
    heads.ImportanceSampledSoftmax: lambda t, s, m, n, hit: F.importance_sampled_softmax_loss(
        t, s, n, reduction="none"
    ),
    heads.NCE: lambda t, s, m, n, hit: F.nce_loss(t, s, m, n, reduction="none"),
    heads.OneVsEach: lambda t, s, m, n, hit: F.one_vs_each_loss(
        t, s, sampled_log_count=n, mask=hit, reduction="none"
    ),
}


@pytest.mark.parametrize("temperature", [T, "learned"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", LOSSES, ids=lambda kind: kind.__name__)
def test_a_sampled_loss_is_the_function_of_the_capped_logits(kind, sparse, temperature):
    """Over every pair of draws: the cap comes before the correction, on target and candidates."""
    noise = samplers.Unigram([5, 4, 3, 2, 1])
    options = {"log_partition": 0.0} if kind is heads.NCE else {}
    head = build(kind, sampler=noise, num_samples=2, sparse=sparse, softcap=9.0, temperature=temperature, **options)
    hidden, target, g = problem()
    if temperature == "learned":
        with torch.no_grad():
            head.log_temperature.fill_(torch.tensor(T).log())
    logits = 9.0 * torch.tanh(functional.linear(hidden, head.weight, head.bias) / head.temperature / 9.0)
    ours, theirs = [], []
    for drawn in itertools.product(range(V), repeat=2):
        ids = torch.tensor(drawn)
        log_count = noise.log_expected_count(ids, 2)
        head.sampler.sample = lambda *args, ids=ids, log_count=log_count, **kw: Candidates(
            ids, log_count, unique=False
        )
        ours.append(head(hidden, target))
        target_logit = logits.gather(-1, target[:, None]).squeeze(-1)
        hit = ids == target[:, None]
        theirs.append(
            LOSSES[kind](target_logit, logits[:, ids], noise.log_expected_count(target, 2), log_count, hit)
        )
    ours, theirs = torch.stack(ours), torch.stack(theirs)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(ours.shape, generator=g, dtype=torch.float64)
    inputs = [hidden, *head.parameters()]
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine.to_dense(), other)


def test_all_classes_drawn_once_give_the_exact_loss():
    hidden, target, g = problem()
    sampled = build(heads.SampledSoftmax, sampler=samplers.Uniform(V, unique=True), num_samples=V)
    exact = build(heads.Softmax)
    exact.load_state_dict(sampled.state_dict())
    upstream = torch.randn(N, generator=g, dtype=torch.float64)
    ours, theirs = sampled(hidden, target), exact(hidden, target)
    torch.testing.assert_close(ours, theirs)
    mine = torch.autograd.grad(ours, [hidden, sampled.weight, sampled.bias], upstream)
    for found, expected in zip(
        mine, torch.autograd.grad(theirs, [hidden, exact.weight, exact.bias], upstream), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_linear_topk_takes_a_softcap():
    hidden, _, _ = problem()
    head = build(heads.Softmax, temperature=1.0)
    found = F.linear_topk(hidden, head.weight, 3, linear_bias=head.bias, softcap=CAP, block_size=2)
    torch.testing.assert_close(found, head.topk(hidden, 3))
    with pytest.raises(ValueError, match="softcap: expected a finite number greater than 0, got -1"):
        F.linear_topk(hidden, head.weight, 3, softcap=-1.0)


def test_logits_at_the_cap_are_equal_and_go_by_id():
    """Far beyond the cap all logits are the cap itself: the larger score is not the more probable class."""
    head = heads.Softmax(1, 4, softcap=2.0)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[50.0], [0.0], [90.0], [70.0]]))
        head.bias.zero_()
    assert head.topk(torch.ones(1, 1), 2).indices.tolist() == [[0, 2]]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_start_undoes_the_cap_or_says_that_it_cannot(kind):
    head = build(kind)
    p = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1], dtype=torch.float64)
    below = p.log() - p.log().amax()
    if isinstance(head, heads.NCE):  # what it starts at is log p and the log-partition it is given
        with pytest.raises(
            ValueError, match=r"log_prob: expected logits of a size below softcap = 1.5, got one of 1\.79"
        ):
            head.start_at(p.log())
        return
    head.start_at(below)
    torch.testing.assert_close(head.log_prob(torch.zeros(D).double()), p.log())
    with pytest.raises(
        ValueError, match=r"log_prob: expected logits of a size below softcap = 1.5, got one of 2\.3"
    ):
        head.start_at(p.log())


@pytest.mark.parametrize("softcap", [0.0, float("inf"), "30"])
def test_bad_caps(softcap):
    with pytest.raises((TypeError, ValueError), match="softcap: expected a"):
        heads.Softmax(D, V, softcap=softcap)


def test_repr():
    assert "softcap=1.5" in repr(build(heads.Softmax))
    assert "softcap" not in repr(heads.Softmax(D, V))
