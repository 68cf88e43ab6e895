"""What every sampled head promises of a class whose count is 0, for every one of the table."""

from functools import partial

import conformance
import pytest
import torch
from conformance import CASES, D, V, batch, call, counts, gradients

from vastmax import calibration, heads, samplers

NEVER = 3
OTHERS = [c for c in range(V) if c != NEVER]


def counts_with_a_zero(num_classes):
    return counts(num_classes).index_fill(0, torch.tensor([NEVER]), 0)


@pytest.fixture(
    params={name: case for name, case in CASES.items() if case.sampled}.items(), ids=lambda item: item[0]
)
def case(request, monkeypatch):
    monkeypatch.setattr(conformance, "counts", counts_with_a_zero)
    _, found = request.param
    if found.make().sampler.never_drawn() is None:
        pytest.skip("its sampler draws every class")
    return found


def a_batch(rows=(6,)):
    hidden, target, _ = batch(rows)
    return hidden, torch.tensor(OTHERS)[target % len(OTHERS)]


def test_it_has_probability_0_and_comes_last(case):
    head = case.make()
    hidden, target = a_batch((2, 3))
    log_prob = head.log_prob(hidden)
    assert torch.equal(log_prob.isneginf(), (torch.arange(V) == NEVER).expand(2, 3, V))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    values, indices = head.topk(hidden, V)
    assert torch.equal(indices.sort(-1).values, torch.arange(V).expand(2, 3, V))
    assert (indices[..., -1] == NEVER).all()
    torch.testing.assert_close(values, log_prob.gather(-1, indices))
    torch.testing.assert_close(head.nll(hidden, target), -log_prob.gather(-1, target[..., None]).squeeze(-1))
    nll = head.nll(hidden, torch.full_like(target, NEVER))
    assert nll.isposinf().all()
    for gradient in gradients(nll, [hidden, *head.parameters()], torch.ones_like(nll)):
        assert not gradient.isnan().any()


def test_its_row_has_no_part_in_anything(case):
    """What its row holds, were it the largest score of all, changes neither a loss nor a probability."""
    hidden, target = a_batch()
    found = []
    for score in (None, -3.0, 40.0):
        head = case.make(reduction="none")
        if score is not None:
            with torch.no_grad():
                head.weight[NEVER] = 0.0 if head.bias is not None else score
                if head.bias is not None:
                    head.bias[NEVER] = score
        loss = call(case, head, hidden, target)
        upstream = torch.linspace(-1, 1, 6, dtype=torch.float64)
        moved = gradients(loss, [hidden, head.weight], upstream)
        assert not moved[1][NEVER].any()
        found.append([loss, *moved, head.log_prob(hidden), head.nll(hidden, target), head.log_partition(hidden)])
    for others in found[1:]:
        for mine, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(other, mine)


def test_it_is_no_target_of_a_loss(case):
    head = case.make()
    hidden, target = a_batch()
    target[2] = NEVER
    with pytest.raises(ValueError, match=f"target: expected classes that the sampler can draw, got {NEVER}"):
        head(hidden, target)
    assert call(case, head, hidden, target.masked_fill(target == NEVER, -100)).isfinite()


def test_start_at_leaves_it_out(case):
    head = case.make()
    if head.bias is None:
        pytest.skip("no bias per class")
    p = torch.rand(V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = p / p[OTHERS].sum()
    head.start_at(p.log())
    found = head.log_prob(torch.zeros(D, dtype=torch.float64)).exp()
    torch.testing.assert_close(found, p.index_fill(0, torch.tensor([NEVER]), 0.0))


SETS_OF_ALL = {
    "SampledSoftmax": heads.SampledSoftmax,
    "ImportanceSampledSoftmax": heads.ImportanceSampledSoftmax,
}


@pytest.mark.parametrize("kind", SETS_OF_ALL.values(), ids=SETS_OF_ALL)
def test_the_set_of_all_that_can_be_drawn_is_the_exact_softmax(kind):
    """What is estimated is the softmax of the classes that can be drawn, and nll is exactly that."""
    noise = samplers.Unigram(counts_with_a_zero(V), unique=True)
    torch.manual_seed(0)
    head = kind(D, V, sampler=noise, num_samples=V - 1, reduction="none", dtype=torch.float64)
    hidden, target = a_batch()
    torch.testing.assert_close(head(hidden, target), head.nll(hidden, target))
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)[:, OTHERS]
    label = torch.tensor([OTHERS.index(c) for c in target.tolist()])
    exact = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    torch.testing.assert_close(head.nll(hidden, target), exact)


def test_nce_starts_normalised_over_the_classes_that_can_be_drawn():
    head = heads.NCE(D, V, sampler=samplers.Unigram(counts_with_a_zero(V), power=1.0), dtype=torch.float64)
    with torch.no_grad():
        head.weight.zero_()
    hidden, _ = a_batch()
    torch.testing.assert_close(head.log_partition(hidden), torch.zeros(6, dtype=torch.float64))
    assert head.bias.isfinite().all()


@pytest.mark.parametrize("scaling", [calibration.TemperatureScaling, partial(calibration.VectorScaling, V)])
def test_a_scaling_leaves_it_out_too(scaling):
    torch.manual_seed(0)
    head = heads.SampledSoftmax(D, V, sampler=samplers.Unigram(counts_with_a_zero(V)), dtype=torch.float64)
    hidden, _ = a_batch((60,))
    with torch.no_grad():
        head.weight.mul_(6)
        right = (head.log_prob(hidden) / 3).softmax(-1)  # which the head is surer than
    target = right.multinomial(1, generator=torch.Generator().manual_seed(1)).squeeze(-1)
    found = scaling(dtype=torch.float64)
    fit = found.fit_head(head, hidden.detach(), target)
    assert fit.nll_before == pytest.approx(head.nll(hidden, target).mean().item(), rel=1e-12)
    found.apply_to(head)
    assert fit.nll_after == pytest.approx(head.nll(hidden, target).mean().item(), rel=1e-12)
    assert head.log_prob(hidden)[:, NEVER].isneginf().all()
