"""What every head promises of its loss, its gradients and its probabilities, for every head of the table."""

import pytest
import torch
from conformance import CASES, D, V, batch, call, class_weight, gradients
from torch import nn

from vastmax import optim


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


@pytest.mark.parametrize("rows", [(), (6,), (2, 3), (2, 1, 3)])
def test_leading_axes_are_rows(case, rows):
    head = case.make(reduction="none")
    hidden, target, _ = batch(rows)
    flat = call(case, head, hidden.reshape(-1, D), target.reshape(-1))
    torch.testing.assert_close(call(case, head, hidden, target), flat.view(rows))
    assert head.nll(hidden, target).shape == rows
    assert head.log_prob(hidden).shape == (*rows, V)
    assert head.topk(hidden, 3).indices.shape == (*rows, 3)
    assert head.log_partition(hidden).shape == rows


def test_reductions_and_row_weights(case):
    hidden, target, g = batch()
    target[1] = -100
    w = torch.rand(6, generator=g).double()
    loss = {
        (r, weighted): call(case, case.make(reduction=r), hidden, target, sample_weight=w if weighted else None)
        for r in ("none", "mean", "sum")
        for weighted in (False, True)
    }
    per_row, counted = loss["none", False], target != -100
    assert per_row[1] == 0
    torch.testing.assert_close(loss["none", True], w * per_row)
    torch.testing.assert_close(loss["sum", False], per_row.sum())
    torch.testing.assert_close(loss["sum", True], (w * per_row).sum())
    mass = case.row_mass(target.clamp(min=0)) * counted
    torch.testing.assert_close(loss["mean", False], per_row.sum() / mass.sum())
    torch.testing.assert_close(loss["mean", True], (w * per_row).sum() / (w * mass).sum())


def test_ignored_rows_count_for_nothing(case):
    head = case.make(reduction="sum", ignore_index=2)
    if case.draws and not getattr(head, "shared", False):
        pytest.skip("the rows' own draws shift when a row is left out")
    hidden, target, _ = batch()
    target[:] = torch.tensor([2, 0, 1, 2, 3, 4])
    filled = hidden.detach().clone()
    filled[[0, 3]] = torch.nan
    filled.requires_grad_()
    kept = hidden[[1, 2, 4, 5]].detach().requires_grad_()
    ours = call(case, head, filled, target)
    theirs = call(case, head, kept, target[[1, 2, 4, 5]])
    torch.testing.assert_close(ours, theirs)
    (mine,), (other,) = gradients(ours, [filled]), gradients(theirs, [kept])
    torch.testing.assert_close(mine[[1, 2, 4, 5]], other)
    assert torch.equal(mine[[0, 3]], torch.zeros(2, D, dtype=torch.float64))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("rows", [(0,), (4,), (2, 0)])
def test_no_row_left_is_zero_and_attached(case, rows, reduction):
    head = case.make(reduction=reduction)
    hidden, target, _ = batch(rows)
    loss = call(case, head, hidden, torch.full_like(target, -100))
    assert loss.shape == (rows if reduction == "none" else ())
    assert torch.equal(loss, torch.zeros_like(loss))
    for gradient in gradients(loss.sum(), [hidden, *head.parameters()]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(case, reduction):
    if case.follows:
        pytest.skip("where its candidates come from is no part of the gradient")
    head = case.make(reduction=reduction, **({"sparse": False} if case.sparse else {}))
    hidden, target, _ = batch((3,))
    names = list(dict(head.named_parameters()))

    def loss(hidden, *parameters):
        options = {"generator": torch.Generator().manual_seed(3)} if case.draws else {}
        return torch.func.functional_call(
            head, dict(zip(names, parameters, strict=True)), (hidden, target), options
        )

    assert torch.autograd.gradcheck(loss, (hidden, *head.parameters()))


def test_dense_and_sparse_gradients_agree(case):
    if not case.sparse:
        pytest.skip("its gradient has every row")
    hidden, target, g = batch()
    found = {}
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    for sparse in (False, True):
        head = case.make(sparse=sparse, reduction="none")
        found[sparse] = torch.autograd.grad(call(case, head, hidden, target), list(head.parameters()), upstream)
    for parameter, dense, sparse in zip(head.parameters(), found[False], found[True], strict=True):
        assert not dense.is_sparse
        if parameter.shape[:1] == (V,):
            assert sparse.is_coalesced()
        torch.testing.assert_close(sparse.to_dense(), dense)


def test_gradients_add_up_after_a_batch_without_rows(case):
    head = case.make(sparse=True) if case.sparse else case.make()
    hidden, target, g = batch()
    upstream = torch.randn((), generator=g, dtype=torch.float64)
    (call(case, head, hidden, torch.full_like(target, head.ignore_index)) * upstream).backward()
    (call(case, head, hidden, target) * upstream).backward()
    expected = gradients(call(case, head, hidden, target), list(head.parameters()), upstream)
    for parameter, grad in zip(head.parameters(), expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
        torch.testing.assert_close(found, grad)


def test_memory_can_be_resized_after_use(case):
    """As FSDP does with the parameters that are not in use; an array of NumPy's would hold on to it."""
    head = case.make(sparse=True) if case.sparse else case.make()
    hidden, target, _ = batch()
    call(case, head, hidden, target).backward()
    head.nll(hidden, target)
    head.topk(hidden, 2)
    optimizers = [kind(head.parameters()) for kind in (optim.SGD, optim.LazyAdamW, optim.RowwiseAdagrad)]
    for optimizer in optimizers:
        optimizer.step()
    state = (x for optimizer in optimizers for of_one in optimizer.state.values() for x in of_one.values())
    grads = (x.grad._values() if x.grad.is_sparse else x.grad for x in head.parameters() if x.grad is not None)
    for tensor in (hidden, target, *head.parameters(), *grads, *state):
        assert tensor.untyped_storage().resizable()


def test_exact_probabilities(case):
    head = case.make()
    hidden, target, _ = batch((2, 3))
    log_prob = head.log_prob(hidden)
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(head.nll(hidden, target), -log_prob.gather(-1, target[..., None]).squeeze(-1))
    values, indices = head.topk(hidden, V)
    torch.testing.assert_close(values, log_prob.sort(-1, descending=True).values)
    torch.testing.assert_close(log_prob.gather(-1, indices), values)
    ignored = torch.full_like(target, -100)
    assert torch.equal(head.nll(hidden, ignored), torch.zeros(2, 3, dtype=torch.float64))


def test_nll_is_differentiable(case):
    head = case.make(dim=2)
    hidden, target, _ = batch((3,), dim=2)
    if not case.zeros:  # the infinite have no finite differences
        assert torch.autograd.gradcheck(lambda h: head.nll(h, target), hidden)
    assert torch.autograd.gradcheck(head.log_partition, hidden)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_one_and_two_classes(case, num_classes):
    head = case.make(num_classes, reduction="none")
    hidden, target, _ = batch(num_classes=num_classes)
    loss = call(case, head, hidden, target)
    assert loss.isfinite().all()
    for gradient in gradients(loss.sum(), [hidden, *head.parameters()]):
        assert gradient.isfinite().all()
    torch.testing.assert_close(head.log_prob(hidden).exp().sum(-1), torch.ones(6, dtype=torch.float64))
    if num_classes == 1:
        torch.testing.assert_close(head.nll(hidden, target), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_against_float64(case, dtype):
    half = case.make(dtype=dtype)
    full = case.make()
    full.load_state_dict({name: value.double() for name, value in half.state_dict().items()})
    hidden, target, _ = batch(dtype=dtype)
    ours, theirs = call(case, half, hidden, target), call(case, full, hidden.double(), target)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    ours.backward()
    assert hidden.grad.dtype == dtype
    assert all(p.grad.dtype == dtype for p in half.parameters())
    exact = full.log_prob(hidden.double())
    torch.testing.assert_close(half.log_prob(hidden).double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        half.nll(hidden, target).double(), full.nll(hidden.double(), target), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(half.topk(hidden, 2).values.double(), exact.topk(2).values, rtol=1e-5, atol=1e-5)
    assert half.log_prob(hidden).dtype == half.nll(hidden, target).dtype == torch.float32


def test_mixed_precision(case):
    """Half-precision or double rows under a float32 head, as autocast or numpy make them."""
    head = case.make(dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        hidden, target, _ = batch(dtype=dtype)
        call(case, head, hidden, target).backward()
        assert hidden.grad.dtype == dtype
        torch.testing.assert_close(head.nll(hidden, target), -head.log_prob(hidden)[range(6), target])
        torch.testing.assert_close(head.topk(hidden, 1).values[:, 0], head.log_prob(hidden).amax(-1))


def test_autocast_changes_nothing(case):
    head = case.make(dtype=torch.float32)
    hidden, target, _ = batch(dtype=torch.float32)
    plain = call(case, head, hidden, target)
    (gradient,) = torch.autograd.grad(plain, hidden)
    exact = head.log_prob(hidden), head.topk(hidden, 3).values, head.nll(hidden, target)
    with torch.autocast("cpu", torch.bfloat16):
        under = call(case, head, hidden, target)
        assert torch.equal(under, plain)
        assert torch.equal(torch.autograd.grad(under, hidden)[0], gradient)
        for value, same in zip(
            (head.log_prob(hidden), head.topk(hidden, 3).values, head.nll(hidden, target)), exact, strict=True
        ):
            assert torch.equal(value, same)


def test_non_contiguous_input(case):
    head = case.make()
    hidden, target, _ = batch((6,))
    strided = hidden.detach().t().contiguous().t().requires_grad_()
    assert not strided.is_contiguous()
    ours = call(case, head, strided, target.repeat_interleave(2)[::2])
    theirs = call(case, head, hidden, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*gradients(ours, [strided]), *gradients(theirs, [hidden]))


def test_draws_are_reproducible(case):
    if not case.draws:
        pytest.skip("draws nothing")
    head = case.make(num_classes=200, **({"num_samples": 20} if case.sampled else {}))
    hidden, target, _ = batch(num_classes=200)
    assert torch.equal(call(case, head, hidden, target, seed=1), call(case, head, hidden, target, seed=1))
    assert not torch.equal(call(case, head, hidden, target, seed=1), call(case, head, hidden, target, seed=2))
    torch.manual_seed(9)
    first = head(hidden, target)
    torch.manual_seed(9)
    assert torch.equal(head(hidden, target), first)


def several_targets(rows, g):
    """Up to two true classes per row, in three places."""
    first = torch.randint(V, rows, generator=g)
    second = (first + torch.randint(1, V, rows, generator=g)) % V
    several = torch.stack([first, second, torch.full_like(first, -100)], -1)
    several[..., 1].masked_fill_(first == 0, -100)
    return several, first, torch.where(first == 0, first, second)


@pytest.mark.parametrize("rows", [(), (6,), (2, 3)])
def test_several_true_classes_share_a_row(case, rows):
    """The loss of T true classes is the mean of their losses; places of `ignore_index` do not count."""
    head = case.make(reduction="none")
    hidden, _, g = batch(rows)
    several, first, second = several_targets(rows, g)
    if case.sampled and not head.sampler.takes_several:
        with pytest.raises(ValueError, match="target: expected one true class per row beside InBatch"):
            head(hidden, several)
        return
    mean = (head.nll(hidden, first) + head.nll(hidden, second)) / 2
    torch.testing.assert_close(head.nll(hidden, several), mean)
    if case.follows or case.labels or (case.draws and not getattr(head, "shared", False)):
        return  # its draws, or the rows' own, are others; or labels do not share
    ours, w = call(case, head, hidden, several), torch.rand(rows, generator=g).double()
    theirs = (call(case, head, hidden, first) + call(case, head, hidden, second)) / 2
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        gradients(ours, [hidden, *head.parameters()], w),
        gradients(theirs, [hidden, *head.parameters()], w),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
    assert torch.equal(call(case, head, hidden, torch.full_like(several, -100)), torch.zeros(rows).double())
    mass = (case.row_mass(first) + case.row_mass(second)) / 2
    mean = call(case, case.make(), hidden, several, sample_weight=w)
    torch.testing.assert_close(mean, (w * ours).sum() / (w * mass).sum())


def test_target_weights_are_shares_of_the_row(case):
    """Shares that do not sum to one are taken as they are, as a teacher's best few probabilities."""
    head = case.make(reduction="none")
    hidden, _, g = batch()
    several, first, second = several_targets((6,), g)
    share = torch.rand(6, 3, generator=g, dtype=torch.float64)
    both = share[:, 1].masked_fill(first == 0, 0.0)
    wanted = share[:, 0] * head.nll(hidden, first) + torch.where(both == 0, 0, both * head.nll(hidden, second))
    torch.testing.assert_close(head.nll(hidden, several, target_weight=share), wanted)
    if case.follows or case.labels or (case.draws and not getattr(head, "shared", False)):
        return
    ours = call(case, head, hidden, several, target_weight=share)
    theirs = share[:, 0] * call(case, head, hidden, first) + both * call(case, head, hidden, second)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    for mine, other in zip(
        gradients(ours, [hidden, *head.parameters()], upstream),
        gradients(theirs, [hidden, *head.parameters()], upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def same_as_named_shares(head, hidden, p, g):
    """Probabilities are the shares of all classes, in value and in every gradient."""
    every_class = torch.arange(V).expand(p.shape)
    ours, theirs = head(hidden, p), head(hidden, every_class, target_weight=p)
    torch.testing.assert_close(ours, theirs)
    inputs, upstream = [hidden, *head.parameters()], torch.randn(ours.shape, generator=g).double()
    for mine, other in zip(gradients(ours, inputs, upstream), gradients(theirs, inputs, upstream), strict=True):
        torch.testing.assert_close(mine, other)


def test_probabilities_as_target(case):
    """The exact cross-entropy of a distribution, or a clear refusal by losses that do not score every class."""
    head = case.make(reduction="none")
    hidden, target, g = batch((2, 3))
    p = torch.rand(2, 3, V, generator=g, dtype=torch.float64)
    p = p / p.sum(-1, keepdim=True)
    if not head.takes_probabilities:
        with pytest.raises(TypeError, match=f"float64 probabilities, which {type(head).__name__} cannot train on"):
            head(hidden, p)
        return
    if case.plain and not case.labels:
        weight = class_weight(V) if case.weighted else torch.ones(V, dtype=torch.float64)
        torch.testing.assert_close(head(hidden, p), -(weight * p * head.log_prob(hidden)).sum(-1))
    if not case.zeros:  # whose own loss is less by the entropy of the target
        same_as_named_shares(head, hidden, p, g)
    one_hot, mean = nn.functional.one_hot(target, V).double(), case.make()
    torch.testing.assert_close(head(hidden, one_hot), head(hidden, target))
    torch.testing.assert_close(mean(hidden, one_hot), mean(hidden, target))
    if case.labels:
        with pytest.raises(ValueError, match=r"target: expected labels in \[0, 1\], got"):
            head(hidden, p + 1)
        return
    with pytest.raises(ValueError, match="target: expected probabilities that sum to 1, got a sum of 2"):
        head(hidden, 2 * p)
    with pytest.raises(ValueError, match=r"target: expected shape \(2, 3, 7\), the probability of every class"):
        head(hidden, p[..., :-1])
