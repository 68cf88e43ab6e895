"""AdaptiveSoftmax: torch's own module, without its limits."""

import math

import pytest
import torch
from largest_tensor import LargestTensor
from torch import nn

from vastmax.heads import Softmax
from vastmax.heads.adaptive import AdaptiveSoftmax
from vastmax.heads.cutoffs import adaptive_cutoffs

D, V = 8, 20
CUTOFFS = [[1], [6], [5, 9], [3, 4, 19]]


def pair(cutoffs, head_bias=True, **options):
    """Our head and torch's, with the same parameters."""
    torch.manual_seed(1)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(D, V, cutoffs, div_value=2.0, head_bias=head_bias, dtype=torch.float64)
    options = {"head_bias": head_bias, "dtype": torch.float64, **options}
    ours = AdaptiveSoftmax(D, V, cutoffs, 2.0, **options)
    assert ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batch(num_classes=V, rows=(12,)):
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(*rows, D, generator=g, dtype=torch.float64)
    return hidden, torch.randint(num_classes, rows, generator=g), g


@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_state_dicts_load_either_way(cutoffs, head_bias):
    ours, theirs = pair(cutoffs, head_bias)
    assert theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("head_bias", [True, False])
@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_equals_torch(cutoffs, head_bias, scale):
    ours, theirs = pair(cutoffs, head_bias)
    hidden, target, _ = batch()
    hidden = hidden * scale
    expected = theirs(hidden, target)
    torch.testing.assert_close(ours(hidden, target), expected.loss)
    torch.testing.assert_close(ours.nll(hidden, target), -expected.output)
    torch.testing.assert_close(ours.log_prob(hidden), theirs.log_prob(hidden))
    assert torch.equal(ours.topk(hidden, 1).indices.squeeze(-1), theirs.predict(hidden))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("num_classes", [V, 5])  # with 5, the last tails have no target
@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_gradients_equal_torch(cutoffs, num_classes, reduction):
    ours, theirs = pair(cutoffs, reduction=reduction)
    hidden, target, g = batch(num_classes)
    upstream = torch.randn(12 if reduction == "none" else (), generator=g, dtype=torch.float64)
    mine, other = (hidden.clone().requires_grad_() for _ in range(2))
    ours(mine, target).backward(upstream)
    expected = theirs(other, target)
    (-expected.output if reduction == "none" else expected.loss).backward(upstream)
    torch.testing.assert_close(mine.grad, other.grad)
    for name, parameter in theirs.named_parameters():
        gradient = ours.get_parameter(name).grad
        assert (gradient is None) == (parameter.grad is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, parameter.grad)


def test_no_cutoffs_make_it_the_softmax():
    flat = Softmax(D, V, dtype=torch.float64)
    head = AdaptiveSoftmax(D, V, [], head_bias=True, dtype=torch.float64)
    head.load_state_dict({f"head.{name}": value for name, value in flat.state_dict().items()})
    hidden, target, _ = batch()
    torch.testing.assert_close(head(hidden, target), flat(hidden, target))
    torch.testing.assert_close(head.log_prob(hidden), flat.log_prob(hidden))
    torch.testing.assert_close(head.topk(hidden, V), flat.topk(hidden, V))


def test_reduced_loss_is_that_of_the_rows():
    hidden, target, g = batch(rows=(3, 4))
    target[1, 2] = -100
    weight = torch.rand(3, 4, generator=g)
    rows = pair([5, 9], reduction="none")[0](hidden, target)
    for reduction, of_all, weighted in (
        ("sum", rows.sum(), (weight * rows).sum()),
        ("mean", rows.sum() / 11, (weight * rows).sum() / weight[target != -100].sum()),
    ):
        head, _ = pair([5, 9], reduction=reduction)
        torch.testing.assert_close(head(hidden, target), of_all)
        torch.testing.assert_close(head(hidden, target, sample_weight=weight), weighted)


def test_probabilities_and_several_classes_as_target():
    head, _ = pair([5, 9], reduction="none")
    hidden, target, _ = batch()
    one_hot = nn.functional.one_hot(target, V).double()
    torch.testing.assert_close(head(hidden, one_hot), head.nll(hidden, target))
    several = torch.stack([target, (target + 7) % V], -1)
    expected = (head.nll(hidden, several[:, 0]) + head.nll(hidden, several[:, 1])) / 2
    torch.testing.assert_close(head(hidden, several), expected)


@pytest.mark.parametrize("k", [1, 3, 8, V])
@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_topk_is_exact(cutoffs, k):
    for scale in (0.1, 1.0, 10.0):  # from all but uniform rows to peaked ones
        head, _ = pair(cutoffs)
        hidden, _, _ = batch(rows=(40,))
        values, indices = head.topk(scale * hidden, k)
        log_prob = head.log_prob(scale * hidden).detach()
        torch.testing.assert_close(values, log_prob.topk(k).values)
        torch.testing.assert_close(log_prob.gather(-1, indices), values)


def test_topk_leaves_out_tails_that_cannot_win():
    head, _ = pair([5, 9])
    with torch.no_grad():
        head.head.bias[6] = -1e3  # the second tail
        head.get_parameter("tail.1.1.weight").fill_(torch.nan)
    hidden, _, _ = batch()
    assert head.topk(hidden, 9).values.isfinite().all()
    assert (head.topk(hidden, 9).indices < 9).all()


def test_a_step_never_makes_rows_times_classes():
    rows, num_classes, cutoffs = 64, 4000, [40, 500]
    head = AdaptiveSoftmax(D, num_classes, cutoffs, 2.0, head_bias=True)
    target = torch.randint(40, (rows,))
    target[:2] = torch.tensor([100, 3999])
    head.start_at(torch.cat([torch.zeros(40), torch.full((num_classes - 40,), -20.0)]).log_softmax(0))
    hidden = torch.randn(rows, D, requires_grad=True)
    with LargestTensor() as made:
        head(hidden, target).backward()
        head.nll(hidden, target)
        head.topk(hidden, 3)
    assert made.largest < 3 * head.tail[1][1].weight.numel() < rows * num_classes / 8


def test_start_at():
    head, _ = pair([5, 9])
    p = torch.rand(V, dtype=torch.float64)
    p /= p.sum()
    head.start_at(p.log())
    expected = p.clone()
    for tail in (slice(5, 9), slice(9, V)):
        expected[tail] = p[tail].mean()
    torch.testing.assert_close(head.log_prob(torch.zeros(D).double()), expected.log())
    with pytest.raises(ValueError, match="head_bias=True"):
        pair([5], head_bias=False)[0].start_at(p.log())


def test_auto_cutoffs():
    counts = 1 / torch.arange(1, 200_001)
    head = AdaptiveSoftmax(16, len(counts), "auto", counts=counts, device="meta")
    assert head.cutoffs == adaptive_cutoffs(counts, 16)
    assert head.cutoffs


@pytest.mark.parametrize("k", [1, 2])
def test_sampled_tail_has_its_optimum_at_the_distribution(k):
    """The expected gradient, over targets and all draws, vanishes at the data's logits and not beside them."""
    p, q = (torch.tensor(x, dtype=torch.float64) for x in ([0.6, 0.3, 0.1, 0.0], [0.2, 0.3, 0.5, 0.0]))
    p, q = p[:3], q[:3]
    options = {"counts": [9, 2, 3, 5, 0.1][:4], "tail_samples": k, "dtype": torch.float64, "reduction": "none"}
    head = AdaptiveSoftmax(3, 4, [1], 1.0, **options)
    torch.testing.assert_close(head.samplers["0"].log_prob(torch.arange(3)).exp(), q)
    nn.init.eye_(head.get_parameter("tail.0.0.weight"))
    weight = head.get_parameter("tail.0.1.weight")
    draws = torch.cartesian_prod(*[torch.arange(3)] * k).view(-1, k)

    def gradient(logits):
        with torch.no_grad():
            weight[:, 0] = logits
        expected = 0.0
        hidden = torch.eye(3, dtype=torch.float64)[[0, 0, 0]]
        for draw in draws:
            head.samplers["0"]._draw = lambda shape, generator, draw=draw: draw.view(tuple(shape))
            expected = expected + q[draw].prod() * (p * head(hidden, torch.tensor([1, 2, 3]))).sum()
        return torch.autograd.grad(expected, weight)[0][:, 0]

    torch.testing.assert_close(gradient(p.log() + 2.0), torch.zeros(3, dtype=torch.float64))
    assert gradient(torch.tensor([0.3, -0.2, 0.0])).abs().max() > 0.01


def test_sampled_tails_leave_the_rest_as_it_is():
    exact, _ = pair([5, 9])
    head, _ = pair([5, 9], tail_samples=4, reduction="none")
    assert list(head.samplers) == ["1"]  # the other tail has four classes
    hidden, target, _ = batch()
    torch.testing.assert_close(head.nll(hidden, target), exact.nll(hidden, target))
    loss = head(hidden, target, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(loss[target < 9], exact.nll(hidden, target)[target < 9])
    assert (loss != exact.nll(hidden, target))[target >= 9].all()
    assert torch.equal(loss, head(hidden, target, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(loss, head(hidden, target, generator=torch.Generator().manual_seed(4)))


def test_sampled_tails_dense_and_sparse_gradients_agree():
    hidden, target, g = batch()
    upstream = torch.randn(12, generator=g, dtype=torch.float64)
    found = {}
    for sparse in (False, True):
        head, _ = pair([5, 9], tail_samples=2, sparse=sparse, reduction="none")
        loss = head(hidden, target, generator=torch.Generator().manual_seed(3))
        found[sparse] = torch.autograd.grad(loss, list(head.parameters()), upstream)
    layouts = [gradient.layout == torch.sparse_coo for gradient in found[True]]
    assert layouts == [False, False, False, True, False, True]
    for dense, sparse in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(sparse.to_dense(), dense)


BAD = [
    ({"cutoffs": [5, 3]}, ValueError, "cutoffs: expected increasing class ids, got 5 before 3"),
    ({"cutoffs": [5, 5]}, ValueError, "cutoffs: expected increasing class ids, got 5 before 5"),
    ({"cutoffs": [0, 5]}, ValueError, r"cutoffs: expected class ids in \[1, 20\), got 0"),
    ({"cutoffs": [V]}, ValueError, r"cutoffs: expected class ids in \[1, 20\), got 20"),
    ({"cutoffs": [2.0]}, TypeError, "cutoffs: expected an integer, got 2.0 of type float"),
    ({"cutoffs": "automatic"}, TypeError, "cutoffs: expected 'auto' or a sequence of integers, got 'automatic'"),
    ({"cutoffs": 5}, TypeError, "cutoffs: expected 'auto' or a sequence of integers, got 5"),
    ({"cutoffs": "auto"}, ValueError, "counts: expected the frequency of each class with cutoffs='auto'"),
    ({"counts": [1.0, 2.0]}, ValueError, r"counts: expected shape \(20,\), one per class, got \(2,\)"),
    ({"div_value": 8.0}, ValueError, "cutoffs: expected at most 1, got 2.*tail 1 would have width 0"),
    ({"div_value": math.nan}, ValueError, "div_value"),
    ({"tail_samples": 0}, ValueError, "tail_samples: expected an integer of at least 1, got 0"),
    ({"sparse": True}, ValueError, "sparse: expected tail_samples beside it"),
    (
        {"tail_samples": 2, "counts": [*[1] * 12, 0, *[1] * 7]},
        ValueError,
        "counts: expected counts greater than 0 in the tails, whose candidates they draw, got 0 at 12",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_options(change, error, message):
    with pytest.raises(error, match=message):
        AdaptiveSoftmax(**{"in_features": D, "num_classes": V, "cutoffs": [5, 9], "div_value": 2.0, **change})


def test_bad_k():
    with pytest.raises(ValueError, match="k: expected at most num_classes = 20, got 21"):
        pair([5])[0].topk(torch.zeros(2, D), 21)
