"""One sigmoid per class against torch's binary cross-entropy, for every kind of label."""

import itertools
import math

import pytest
import torch
from largest_tensor import LargestTensor
from torch.nn import functional

from vastmax import heads, samplers
from vastmax.scoring import blocks

V, D, N = 7, 4, 5


@pytest.fixture
def hidden():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def build(**options):
    torch.manual_seed(5)
    return heads.OneVsAll(D, V, dtype=torch.float64, **options)


LABELS = torch.tensor([[0, 3, -100], [6, 2, -100], [-100, -100, -100], [1, -100, -100], [5, 4, 3]])
TRUTH = torch.zeros(N, V, dtype=torch.float64)
for row, labels in enumerate(LABELS):
    TRUTH[row, labels[labels >= 0]] = 1.0


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("as_ids", [True, False])
def test_is_the_binary_cross_entropy_of_every_label(hidden, as_ids, weighted, block, monkeypatch):
    """A row without a true label counts as any other."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    v = torch.linspace(0.5, 2.0, V, dtype=torch.float64) if weighted else None
    head = build(class_weight=v, reduction="none")
    logits = functional.linear(hidden, head.weight, head.bias)
    theirs = functional.binary_cross_entropy_with_logits(logits, TRUTH, weight=v, reduction="none").sum(-1)
    ours = head(hidden, LABELS if as_ids else TRUTH)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [hidden, head.weight, head.bias]
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(build(class_weight=v)(hidden, LABELS), theirs.mean())


def test_soft_labels(hidden):
    head = build(reduction="none")
    truth = torch.rand(N, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = functional.linear(hidden, head.weight, head.bias)
    theirs = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(-1)
    torch.testing.assert_close(head(hidden, truth), theirs)
    torch.testing.assert_close(head(hidden, torch.arange(V).expand(N, V), target_weight=truth), theirs)


def test_a_label_named_twice_is_as_true_as_its_larger_share(hidden):
    head = build(reduction="none")
    twice = torch.tensor([[6, 2, 6]]).expand(N, -1)
    share = torch.tensor([[0.3, 0.5, 0.9]], dtype=torch.float64).expand(N, -1)
    truth = torch.zeros(N, V, dtype=torch.float64)
    truth[:, 2], truth[:, 6] = 0.5, 0.9
    torch.testing.assert_close(head(hidden, twice, target_weight=share), head(hidden, truth))


@pytest.mark.parametrize("class_weight", [None, torch.linspace(0.5, 2.0, V, dtype=torch.float64)])
def test_labels_named_again_in_any_order(class_weight):
    """Beside padding, whose place is some class's: losses and gradients of a matrix of the largest shares."""
    g = torch.Generator().manual_seed(4)
    head = build(reduction="none", class_weight=class_weight)
    hidden = torch.randn(20, D, generator=g, dtype=torch.float64).requires_grad_()
    classes = torch.randint(-1, 3, (20, 6), generator=g)
    share = torch.randint(0, 5, (20, 6), generator=g).double() / 4
    truth = torch.zeros(20, V, dtype=torch.float64)
    for row, column in itertools.product(range(20), range(6)):
        if (label := classes[row, column]) >= 0:
            truth[row, label] = max(truth[row, label], share[row, column])
    upstream = torch.randn(20, generator=g, dtype=torch.float64)
    leaves = [hidden, *head.parameters()]
    ours, theirs = head(hidden, classes.where(classes >= 0, -100), target_weight=share), head(hidden, truth)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(x, leaves, upstream) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


def at_its_optimum(head, loss):
    """The head's scores where hidden is 0, after its biases are where `loss()` is least."""
    optimizer = torch.optim.LBFGS(
        [head.bias], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return head.bias.detach()


def test_the_optimum_of_one_true_class_is_its_probability():
    """Minimised over the exact expectation under p, the sigmoids are p, and so are their shares."""
    p = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02], dtype=torch.float64)
    head = build(reduction="none")
    hidden = torch.zeros(V, D, dtype=torch.float64)
    at_its_optimum(head, lambda: (p * head(hidden, torch.arange(V))).sum())
    torch.testing.assert_close(head.label_log_prob(hidden[0]).exp(), p, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(head.log_prob(hidden[0]).exp(), p, rtol=1e-5, atol=1e-9)


def test_negative_sampling_learns_something_else():
    """Labels that are true with .90, .50 and .30: every set of them by its probability, every class a candidate."""
    p = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    sets = [[c for c in range(3) if bits >> c & 1] for bits in range(8)]
    labels = torch.tensor([each + [-100] * (3 - len(each)) for each in sets])
    true = torch.tensor([[c in each for c in range(3)] for each in sets]).double()
    probability = (true * p + (1 - true) * (1 - p)).prod(-1)
    hidden = torch.zeros(8, D, dtype=torch.float64)

    one_vs_all = heads.OneVsAll(D, 3, reduction="none", dtype=torch.float64)
    scores = at_its_optimum(one_vs_all, lambda: (probability * one_vs_all(hidden, labels)).sum())
    torch.testing.assert_close(scores.sigmoid(), p, rtol=1e-6, atol=0)

    everything = samplers.Uniform(3, unique=True)
    head = heads.NegativeSampling(D, 3, sampler=everything, num_samples=3, reduction="none", dtype=torch.float64)
    scores = at_its_optimum(head, lambda: (probability * head(hidden, labels)).sum())
    share = (probability[1:, None] * true[1:] / true[1:].sum(-1, keepdim=True)).sum(0) / probability[1:].sum()
    torch.testing.assert_close(scores.sigmoid(), share / (share + 1), rtol=1e-6, atol=0)
    assert [round(each, 2) for each in scores.sigmoid().tolist()] == [0.38, 0.2, 0.12]
    torch.testing.assert_close(head.log_prob(hidden[0]).exp(), share, rtol=1e-6, atol=0)


def test_probabilities_are_shares_of_the_sigmoids(hidden):
    head = build(temperature=0.7)
    sigmoid = (functional.linear(hidden, head.weight, head.bias) / 0.7).sigmoid()
    torch.testing.assert_close(head.label_log_prob(hidden).exp(), sigmoid)
    torch.testing.assert_close(head.log_prob(hidden).exp(), sigmoid / sigmoid.sum(-1, keepdim=True))


def test_starts_at_one_true_label_a_row():
    head = heads.OneVsAll(D, 1001)
    assert head.bias.unique().item() == pytest.approx(-math.log(1000))
    with torch.no_grad():
        head.weight.zero_()
    expected = head.label_log_prob(torch.zeros(1, D)).exp().sum()
    torch.testing.assert_close(expected, torch.tensor(1.0), rtol=1e-4, atol=0.0)


def test_holds_no_tensor_of_all_logits(monkeypatch):
    num_rows, num_classes = 64, 1001
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1 << 12)
    head = heads.OneVsAll(8, num_classes)
    hidden = torch.randn(num_rows, 8, requires_grad=True)
    labels = torch.rand(num_rows, num_classes).topk(5).indices
    with LargestTensor() as made:
        head(hidden, labels).backward()
    assert made.largest <= 8 * num_classes < num_rows * num_classes


def test_labels_outside_their_range(hidden):
    head = build()
    with pytest.raises(ValueError, match=r"target: expected labels in \[0, 1\], got nan"):
        head(hidden, torch.full((N, V), torch.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"target: expected shape \(5, 7\), how true each label is, got \(5, 6\)"):
        head(hidden, TRUTH[:, 1:])


def test_shares_outside_their_range(hidden):
    with pytest.raises(ValueError, match=r"target_weight: expected labels in \[0, 1\], got 3"):
        build()(hidden, LABELS, target_weight=torch.full(LABELS.shape, 3.0))


def test_a_row_without_labels_is_checked_as_any_other(hidden):
    broken = hidden.detach().clone()
    broken[2] = torch.nan  # LABELS[2] has none
    with pytest.raises(ValueError, match=r"hidden: expected finite values, got nan at \(2, 0\)"):
        build()(broken, LABELS)
