"""ClassFactoredSoftmax against its formula, against the plain softmax, and by enumeration."""

import math

import pytest
import torch
from largest_tensor import LargestTensor
from torch import nn

from vastmax.heads import Softmax
from vastmax.heads.class_factored import ClassFactoredSoftmax
from vastmax.heads.clusters import sqrt_clusters
from vastmax.samplers import Candidates

D = 4
SCATTERED = [1, 0, 2, 1, 1, 0, 2, 3]
RUNS = [0, 0, 0, 1, 2, 2, 2, 2]
V = 8


def make(clusters, **options):
    torch.manual_seed(1)
    return ClassFactoredSoftmax(D, clusters, **{"dtype": torch.float64, "reduction": "none", **options})


def batch(rows=(12,), num_classes=V):
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(*rows, D, generator=g, dtype=torch.float64)
    return hidden, torch.randint(num_classes, rows, generator=g), g


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("clusters", [SCATTERED, RUNS])
def test_probabilities_are_the_formula(clusters, bias):
    head = make(clusters, bias=bias).requires_grad_(False)
    hidden, target, _ = batch((3,))
    log_prob = head.log_prob(hidden)

    def scores(row, weight, bias):
        dots = [sum(h * w for h, w in zip(row, class_row, strict=True)) for class_row in weight.tolist()]
        biases = [0.0] * len(dots) if bias is None else bias.tolist()
        return [math.exp(dot + b) for dot, b in zip(dots, biases, strict=True)]

    for r, row in enumerate(hidden.tolist()):
        u, s = scores(row, head.group_weight, head.group_bias), scores(row, head.weight, head.bias)
        for c, g in enumerate(clusters):
            inside = sum(s[j] for j in range(V) if clusters[j] == g)
            assert float(log_prob[r, c]) == pytest.approx(math.log(u[g] / sum(u)) + math.log(s[c] / inside))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    expected = -log_prob.gather(-1, target[:, None]).squeeze(-1)
    torch.testing.assert_close(head.nll(hidden, target), expected)
    torch.testing.assert_close(head(hidden, target), expected)


@pytest.mark.parametrize("clusters", [[0] * V, list(range(V))], ids=["one group", "groups of one"])
def test_trivial_groups_make_it_the_softmax(clusters):
    flat = Softmax(D, V, dtype=torch.float64, reduction="none")
    head = make(clusters)
    used = ("weight", "bias") if clusters[-1] == 0 else ("group_weight", "group_bias")
    with torch.no_grad():
        for name, parameter in zip(used, (flat.weight, flat.bias), strict=True):
            head.get_parameter(name).copy_(parameter)
    hidden, target, g = batch()
    upstream = torch.randn(12, generator=g, dtype=torch.float64)
    mine, other = (hidden.clone().requires_grad_() for _ in range(2))
    ours, theirs = head(mine, target), flat(other, target)
    torch.testing.assert_close(ours, theirs)
    ours.backward(upstream)
    theirs.backward(upstream)
    torch.testing.assert_close(mine.grad, other.grad)
    for name, parameter in zip(used, (flat.weight, flat.bias), strict=True):
        torch.testing.assert_close(head.get_parameter(name).grad, parameter.grad)
    for name in {"weight", "bias", "group_weight", "group_bias"} - set(used):  # the other factor is 1
        assert head.get_parameter(name).grad.abs().max() < 1e-14
    torch.testing.assert_close(head.topk(hidden, V).values, flat.topk(hidden, V).values)


@pytest.mark.parametrize("clusters", [SCATTERED, RUNS])
def test_gradients_are_those_of_the_log_probabilities(clusters):
    """log_prob is written with torch's own operations on all classes; the loss scores groups by hand."""
    head = make(clusters)
    hidden, target, g = batch()
    hidden.requires_grad_()
    upstream = torch.randn(12, generator=g, dtype=torch.float64)
    inputs = [hidden, *head.parameters()]
    found = torch.autograd.grad(head(hidden, target), inputs, upstream)
    picked = -head.log_prob(hidden).gather(-1, target[:, None]).squeeze(-1)
    for mine, theirs in zip(found, torch.autograd.grad(picked, inputs, upstream), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("within", ["exact", "sampled", "nce"])
@pytest.mark.parametrize("clusters", [SCATTERED, RUNS])
def test_dense_and_sparse_gradients_agree(clusters, within):
    hidden, target, g = batch()
    target = torch.where(torch.tensor(clusters)[target] == 1, 2, target)  # group 1 has no target
    upstream = torch.randn(12, generator=g, dtype=torch.float64)
    found = {}
    for sparse in (False, True):
        head = make(clusters, sparse=sparse, within=within, num_samples=3)
        loss = head(hidden, target, generator=torch.Generator().manual_seed(3))
        gradients = torch.autograd.grad(loss, list(head.parameters()), upstream)
        found[sparse] = dict(zip(dict(head.named_parameters()), gradients, strict=True))
    present = [c for c in range(V) if clusters[c] in {clusters[y] for y in target.tolist()}]
    for name, dense in found[False].items():
        sparse = found[True][name]
        assert sparse.is_sparse == (not name.startswith("group"))
        torch.testing.assert_close(sparse.to_dense(), dense)
        if sparse.is_sparse:
            assert sparse.is_coalesced()
            touched = sparse.indices()[0].tolist()
            assert touched == present if within == "exact" else set(touched) <= set(present)
            assert touched == sorted(set(touched))


@pytest.mark.parametrize("k", [1, 3, V])
@pytest.mark.parametrize("clusters", [SCATTERED, RUNS, [0] * V, list(range(V))])
def test_topk_is_exact(clusters, k):
    head = make(clusters)
    hidden, _, _ = batch((40,))
    for scale in (0.1, 1.0, 20.0):
        values, indices = head.topk(scale * hidden, k)
        log_prob = head.log_prob(scale * hidden).detach()
        torch.testing.assert_close(values, log_prob.topk(k).values)
        torch.testing.assert_close(log_prob.gather(-1, indices), values)


def test_topk_leaves_out_groups_that_cannot_win():
    head = make(SCATTERED)
    with torch.no_grad():
        head.group_bias[2] = -1e3
        head.weight[torch.tensor(SCATTERED) == 2] = torch.nan
    hidden, _, _ = batch()
    values, indices = head.topk(hidden, 6)
    assert values.isfinite().all()
    assert not torch.isin(indices, torch.tensor([2, 6])).any()
    with pytest.raises(ValueError, match="k: expected at most num_classes = 8, got 9"):
        head.topk(hidden, 9)


def test_a_sparse_step_makes_nothing_of_the_size_of_the_classes():
    rows, num_classes = 64, 10_000
    head = ClassFactoredSoftmax(D, sqrt_clusters(num_classes), sparse=True)
    hidden, target = torch.randn(rows, D, requires_grad=True), torch.randint(800, (rows,))  # of 8 groups
    with LargestTensor() as made:
        head(hidden, target).backward()
        head.nll(hidden, target)
    assert made.largest < num_classes
    with LargestTensor() as made:
        head.topk(hidden, 3)
    assert made.largest <= rows * 100


def test_start_at():
    head = make(SCATTERED)
    p = torch.rand(V, dtype=torch.float64)
    head.start_at((p / p.sum()).log())
    zero = torch.zeros(D, dtype=torch.float64)
    torch.testing.assert_close(head.log_prob(zero), (p / p.sum()).log())
    for g in range(4):  # each group is normalised by itself
        inside = torch.tensor(SCATTERED) == g
        torch.testing.assert_close(head.bias[inside].exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="bias=True"):
        make(SCATTERED, bias=False).start_at(p.log())


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("within", ["sampled", "nce"])
def test_sampled_loss_has_its_optimum_at_the_distribution(within, k):
    """Over targets and all draws within the group, the expected gradient vanishes at p(c | g), not beside it."""
    members, counts = torch.tensor([0, 3, 4]), torch.tensor([2.0, 1.0, 1.0, 3.0, 5.0, 1.0, 1.0, 1.0]).double()
    p, q = torch.tensor([0.6, 0.3, 0.1]).double(), counts[members] / counts[members].sum()
    head = make(SCATTERED, within=within, num_samples=k, counts=counts)
    nn.init.zeros_(head.weight)
    every = torch.cartesian_prod(*[torch.arange(3)] * (k + 1))  # a target and k draws
    target, drawn = members[every[:, 0]], members[every[:, 1:]]
    head.clusters.sample = lambda target, k, generator: Candidates(
        drawn, head.clusters.log_expected_count(drawn, k), unique=False
    )
    probability = p[every[:, 0]] * q[every[:, 1:]].prod(-1)
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0).double())
    hidden = torch.zeros(len(every), D, dtype=torch.float64)

    def gradient(bias):
        with torch.no_grad():
            head.bias[members] = bias
        return torch.autograd.grad(head(hidden, target), head.bias, probability)[0]

    torch.testing.assert_close(gradient(p.log()), torch.zeros(V, dtype=torch.float64))
    shifted = gradient(p.log() + 1.0)[members]  # NCE learns the normalisation too, the softmax leaves it free
    assert (shifted.abs().max() > 0.01) == (within == "nce")
    assert gradient(torch.zeros(3).double()).abs().max() > 0.01


@pytest.mark.parametrize("within", ["sampled", "nce"])
def test_draws_change_the_loss_alone(within):
    exact, head = make(SCATTERED), make(SCATTERED, within=within, num_samples=4)
    head.load_state_dict(exact.state_dict())
    hidden, target, _ = batch((3, 4))
    torch.testing.assert_close(head.nll(hidden, target), exact.nll(hidden, target))
    torch.testing.assert_close(head.log_prob(hidden), exact.log_prob(hidden))
    torch.testing.assert_close(head.topk(hidden, 3), exact.topk(hidden, 3))
    first, again, other = (head(hidden, target, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    one_hot = nn.functional.one_hot(target, V).double()
    torch.testing.assert_close(exact(hidden, one_hot), exact.nll(hidden, target))
    with pytest.raises(TypeError, match="target: expected int64 class ids"):
        head(hidden, one_hot)


def test_nce_starts_at_the_noise():
    counts = [2.0, 1.0, 1.0, 3.0, 5.0, 1.0, 1.0, 4.0]
    head = make(SCATTERED, within="nce", counts=counts)
    mass = torch.zeros(4).index_add(0, torch.tensor(SCATTERED), torch.tensor(counts))[SCATTERED]
    torch.testing.assert_close(head.bias.exp(), (torch.tensor(counts) / mass).double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"within": "exactly"}, "within: expected one of exact, sampled, nce, got 'exactly'"),
        ({"within": "nce", "bias": False}, "bias: expected True with within='nce'"),
        ({"num_samples": 0}, "num_samples: expected an integer of at least 1, got 0"),
        ({"clusters": [0, 2, 2]}, "clusters: expected a class in every group from 0 to 2, got none in 1"),
        ({"counts": [1.0] * 7 + [0.0]}, "counts: expected counts greater than 0, got 0 at 7"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        ClassFactoredSoftmax(**{"in_features": D, "clusters": SCATTERED, **change})


@pytest.mark.parametrize("within", ["exact", "sampled", "nce"])
def test_a_group_of_masked_classes_is_masked_with_them_or_refused(within):
    """A group that has mass and no class to give it to is not a distribution."""
    head = make(SCATTERED, within=within)
    hidden, target, _ = batch()
    with torch.no_grad():
        head.bias[torch.tensor(SCATTERED) == 2] = -torch.inf
        head.group_bias[2] = 1.5
    message = "bias: expected a class that is not masked in every group.*every class of group 2.*group_bias is 1.5"
    for ask in (lambda: head.log_prob(hidden), lambda: head.topk(hidden, 1), lambda: head.nll(hidden, target)):
        with pytest.raises(ValueError, match=message):
            ask()
    if within == "exact":
        with pytest.raises(ValueError, match=message):
            head(hidden, target)
    with torch.no_grad():
        head.group_bias[2] = -torch.inf
    masked = torch.tensor(SCATTERED) == 2
    both = head.log_prob(hidden)
    assert torch.equal(both.isneginf(), masked.expand(12, V))
    with torch.no_grad():
        head.bias[masked] = 0.0
    torch.testing.assert_close(head.log_prob(hidden), both)  # a masked group's classes need not be
    torch.testing.assert_close(head.nll(hidden, target), -both.gather(-1, target[:, None]).squeeze(-1))
    assert torch.equal(head.topk(hidden, V).indices[:, -2:], torch.tensor([2, 6]).expand(12, 2))


def test_masked_groups_leave_the_others_as_they_are():
    """The probabilities are those of a head that never had the group."""
    kept = [c for c in range(V) if SCATTERED[c] != 3]
    head, smaller = make(SCATTERED), make([SCATTERED[c] for c in kept])
    with torch.no_grad():
        smaller.weight.copy_(head.weight[kept])
        smaller.bias.copy_(head.bias[kept])
        smaller.group_weight.copy_(head.group_weight[:3])
        smaller.group_bias.copy_(head.group_bias[:3])
        head.group_bias[3] = -torch.inf
        head.bias[7] = -torch.inf
    hidden, _, _ = batch()
    torch.testing.assert_close(head.log_prob(hidden)[:, kept], smaller.log_prob(hidden))
    torch.testing.assert_close(head.topk(hidden, 7).values, smaller.topk(hidden, 7).values)
