"""What every head promises of masked classes, whose bias is -inf, for every head of the table.

They have probability 0: log_prob is -inf, nll and the loss of such a target are inf; topk has each once, last.
"""

import pytest
import torch
from conformance import CASES, D, V, batch, call, gradients

MASKABLE = {name: case for name, case in CASES.items() if case.mask is not None and case.options.get("bias", True)}


@pytest.fixture(params=MASKABLE.values(), ids=MASKABLE)
def case(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["one class", "most classes"])
def most(request):
    return request.param


def masked_head(case, most, **options):
    """The head and which of its classes are masked: (V,) bool."""
    head = case.make(**options)
    masked = torch.zeros(V, dtype=torch.bool)
    with torch.no_grad():
        masked[case.mask(head, most)] = True
    return head, masked


def unmasked_batch(masked):
    """Rows whose targets are not masked."""
    hidden, target, g = batch()
    kept = (~masked).nonzero().squeeze(-1)
    return hidden, kept[target % len(kept)], g


def test_they_have_probability_zero(case, most):
    head, masked = masked_head(case, most)
    hidden, _, _ = batch((V,))
    before = case.make().log_prob(hidden)
    log_prob = head.log_prob(hidden)
    assert log_prob[:, masked].isneginf().all()
    assert case.zeros or log_prob[:, ~masked].isfinite().all()
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(V, dtype=torch.float64))
    if case.flat and not case.zeros:
        torch.testing.assert_close(log_prob, before.masked_fill(masked, -torch.inf).log_softmax(-1))
    every_class = torch.arange(V)
    for shift in range(V):
        target = (every_class + shift) % V
        torch.testing.assert_close(head.nll(hidden, target), -log_prob[every_class, target])
    assert head.log_partition(hidden).isfinite().all()


def test_they_are_last_in_topk_once_each(case, most):
    head, masked = masked_head(case, most)
    hidden, _, _ = batch((2, 3))
    log_prob = head.log_prob(hidden)
    everything = head.topk(hidden, V)
    assert torch.equal(everything.indices.sort(-1).values, torch.arange(V).expand(2, 3, V))
    last = everything.indices[..., V - int(masked.sum()) :]
    assert torch.equal(last, masked.nonzero().squeeze(-1).expand(last.shape))
    for k in range(1, V + 1):
        values, indices = head.topk(hidden, k)
        assert torch.equal(indices, everything.indices[..., :k])
        torch.testing.assert_close(values, log_prob.gather(-1, indices))
        assert (values[..., 1:] <= values[..., :-1]).all()


def test_equals_go_by_id(case, most):
    """Whatever is asked for: of rows of zeros, which are equal where the biases are."""
    head, masked = masked_head(case, most)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.masked_fill_(parameter.isfinite(), 0.0)
    hidden = torch.zeros(2, D, dtype=torch.float64)
    log_prob = head.log_prob(hidden)
    order = torch.where(masked, -torch.inf, log_prob.masked_fill(log_prob.isneginf(), -1e9))
    order = order.sort(dim=-1, descending=True, stable=True).indices
    for k in range(1, V + 1):
        assert torch.equal(head.topk(hidden, k).indices, order[:, :k])


def test_they_have_no_part_in_training(case, most):
    head, masked = masked_head(case, most, reduction="none")
    hidden, target, g = unmasked_batch(masked)
    loss = call(case, head, hidden, target)
    smoothed = case.options.get("label_smoothing") and not case.sampled  # of samples, they have no share
    if smoothed:
        assert loss.isposinf().all()  # for a share of every target is theirs
    else:
        assert loss.isfinite().all()
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    found = gradients(loss, [hidden, *head.parameters()], upstream)
    assert all(gradient.isfinite().all() for gradient in found)
    if case.flat and not smoothed:
        for gradient in found[1:]:
            assert not gradient[masked].any()
    if case.draws or smoothed:
        return
    weight = torch.rand(6, generator=g, dtype=torch.float64)
    mean, _ = masked_head(case, most)
    mass = weight * case.row_mass(target)
    torch.testing.assert_close(mean(hidden, target, sample_weight=weight), (weight * loss).sum() / mass.sum())


def test_the_loss_of_a_masked_target_is_infinite(case, most):
    """No gradient is, and other rows are as if it were ignored."""
    head, masked = masked_head(case, most, reduction="none")
    hidden, target, g = unmasked_batch(masked)
    target[[1, 4]] = masked.nonzero()[[0, -1], 0]
    ignored = torch.where(masked[target], -100, target)
    loss, usual = (call(case, head, hidden, y) for y in (target, ignored))
    assert loss[[1, 4]].isposinf().all()
    torch.testing.assert_close(loss[[0, 2, 3, 5]], usual[[0, 2, 3, 5]])
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    inputs = [hidden, *head.parameters()]
    for gradient in gradients(call(case, head, hidden, target), inputs, upstream):
        assert gradient.isfinite().all()
    upstream[[1, 4]] = 0.0
    for mine, theirs in zip(gradients(loss, inputs, upstream), gradients(usual, inputs, upstream), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_nll_of_other_rows_keeps_its_gradient(case, most):
    head, masked = masked_head(case, most)
    hidden, target, g = unmasked_batch(masked)
    if case.zeros:
        target = head.log_prob(hidden).argmax(-1)
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    found = gradients(head.nll(hidden, target), [hidden, *head.parameters()], upstream)
    of_log_prob = -head.log_prob(hidden).gather(-1, target[:, None]).squeeze(-1)
    expected = gradients(of_log_prob, [hidden, *head.parameters()], upstream)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.isfinite().all()


def test_probabilities_as_target_leave_them_out(case, most):
    head, masked = masked_head(case, most, reduction="none")
    if not head.takes_probabilities or case.options.get("label_smoothing"):
        pytest.skip("takes no probabilities, or spreads them")
    hidden, _, g = batch()
    p = torch.rand(6, V, generator=g, dtype=torch.float64).masked_fill(masked, 0.0)
    p = p / p.sum(-1, keepdim=True)
    loss = head(hidden, p)
    assert loss.isfinite().all()
    for gradient in gradients(loss.sum(), [hidden, *head.parameters()]):
        assert gradient.isfinite().all()
    p[2] = torch.nn.functional.one_hot(masked.nonzero()[0, 0], V)
    assert head(hidden, p).isposinf().tolist() == [False, False, True, False, False, False]


def test_a_start_unmasks(case, most):
    if not case.starts:
        pytest.skip("no bias per class")
    head, _ = masked_head(case, most)
    log_prob = torch.rand(V, dtype=torch.float64).log_softmax(-1)
    head.start_at(log_prob)
    torch.testing.assert_close(head.log_prob(torch.zeros(D).double()), log_prob)


def test_every_class_masked_is_refused(case):
    head = case.make()
    owner = getattr(head, "head", head)
    if hasattr(head, "tree"):
        pytest.skip("a turn that is closed opens the other")
    with torch.no_grad():
        owner.bias.fill_(-torch.inf)
    hidden, target, _ = batch()
    for ask in (lambda: head.log_prob(hidden), lambda: head.topk(hidden, 2), lambda: head.nll(hidden, target)):
        with pytest.raises(ValueError, match="bias: expected a class that is not masked"):
            ask()
    if not (case.sampled or case.draws):  # whose loss is that of masked targets
        with pytest.raises(ValueError, match="bias: expected a class that is not masked"):
            head(hidden, target)
