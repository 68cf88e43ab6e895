"""What every head promises, checked for every head of the table."""

import copy
import io
import pickle

import pytest
import torch
from conformance import CASES, D, V, counts
from torch import nn

from vastmax import samplers


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def batch(rows=(6,), dtype=torch.float64, seed=0, num_classes=V, dim=D):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*rows, dim, generator=g, dtype=dtype).requires_grad_()
    return hidden, torch.randint(num_classes, rows, generator=g), g


def call(case, head, hidden, target, seed=11, **options):
    """The loss, with its draws fixed by a seed."""
    if case.draws:
        options["generator"] = torch.Generator().manual_seed(seed)
    return head(hidden, target, **options)


def gradients(loss, inputs, upstream=None):
    found = torch.autograd.grad(loss, inputs, upstream, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g.to_dense() for g, x in zip(found, inputs, strict=True)]


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
    torch.testing.assert_close(loss["mean", False], per_row.sum() / counted.sum())
    torch.testing.assert_close(loss["mean", True], (w * per_row).sum() / w[counted].sum())


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


def test_casting_a_head_keeps_its_sampler(case):
    if not case.sampled or case.follows:
        pytest.skip("no sampler with tables of its own")
    head = case.make()
    before = head.log_expected_count(torch.arange(V))
    assert torch.equal(head.to(torch.bfloat16).log_expected_count(torch.arange(V)), before)


def test_non_contiguous_input(case):
    head = case.make()
    hidden, target, _ = batch((6,))
    strided = hidden.detach().t().contiguous().t().requires_grad_()
    assert not strided.is_contiguous()
    ours = call(case, head, strided, target.repeat_interleave(2)[::2])
    theirs = call(case, head, hidden, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*gradients(ours, [strided]), *gradients(theirs, [hidden]))


def test_double_backward_is_refused(case):
    head = case.make()
    hidden, target, _ = batch()
    (grad,) = torch.autograd.grad(call(case, head, hidden, target) ** 2, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_copies_and_round_trips(case):
    head = case.make()
    hidden, target, _ = batch()
    loss = call(case, head, hidden, target)
    saved = io.BytesIO()
    torch.save(head.state_dict(), saved)
    saved.seek(0)
    loaded = case.make()
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), loaded):
        assert torch.equal(call(case, other, hidden, target), loss)


def test_interchange_with_linear(case):
    if not case.flat:
        pytest.skip("not a flat head")
    head = case.make(dtype=torch.float32)
    linear = nn.Linear(D, V, bias=head.bias is not None)
    assert {n: p.shape for n, p in linear.state_dict().items()} == {
        n: p.shape for n, p in head.state_dict().items()
    }
    linear.load_state_dict(head.state_dict())
    head.load_state_dict(linear.state_dict())
    hidden, _, _ = batch(dtype=torch.float32)
    offset = head.log_prob_offset()
    logits = linear(hidden) if offset is None else linear(hidden) + offset.float()
    torch.testing.assert_close(head.log_prob(hidden), logits.log_softmax(-1))


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


def test_start_at(case):
    head = case.make()
    p = torch.rand(V).double()
    log_prob = (p / p.sum()).log()
    if not case.starts:
        pytest.skip("no bias per class")
    if case.options.get("bias") is False:
        with pytest.raises(ValueError, match="bias=True"):
            head.start_at(log_prob)
        return
    head.start_at(log_prob)
    torch.testing.assert_close(head.log_prob(torch.zeros(D).double()), log_prob)
    torch.testing.assert_close(head.log_partition(torch.zeros(D).double()), torch.tensor(0.0).double())


@pytest.mark.parametrize("rows", [(), (6,), (2, 3)])
def test_several_true_classes_share_a_row(case, rows):
    """The loss of T true classes is the mean of their losses; places of `ignore_index` do not count."""
    head = case.make(reduction="none")
    hidden, first, g = batch(rows)
    second = torch.randint(V, rows, generator=g)
    several = torch.stack([first, second, torch.full_like(first, -100)], -1)
    several[..., 1].masked_fill_(first == 0, -100)
    single = torch.where(first == 0, first, second)
    mean = (head.nll(hidden, first) + head.nll(hidden, single)) / 2
    torch.testing.assert_close(head.nll(hidden, several), mean)
    if case.follows or (case.draws and not getattr(head, "shared", False)):
        return  # its draws, or the rows' own, are others
    ours, w = call(case, head, hidden, several), torch.rand(rows, generator=g).double()
    theirs = (call(case, head, hidden, first) + call(case, head, hidden, single)) / 2
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        gradients(ours, [hidden, *head.parameters()], w),
        gradients(theirs, [hidden, *head.parameters()], w),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
    assert torch.equal(call(case, head, hidden, torch.full_like(several, -100)), torch.zeros(rows).double())


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
    torch.testing.assert_close(head(hidden, p), -(p * head.log_prob(hidden)).sum(-1))
    one_hot = nn.functional.one_hot(target, V).double()
    torch.testing.assert_close(head(hidden, one_hot), head(hidden, target))
    with pytest.raises(ValueError, match="target: expected probabilities that sum to 1, got a sum of 2"):
        head(hidden, 2 * p)
    with pytest.raises(ValueError, match=r"target: expected shape \(2, 3, 7\), the probability of every class"):
        head(hidden, p[..., :-1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look at it
def test_compiled_gives_the_same(case):
    """`torch.compile` leaves scoring as it is, as it would a kernel: neither loss nor gradients change."""
    head = case.make(reduction="none")
    hidden, target, g = batch()
    target[2] = -100
    upstream = torch.randn(6, generator=g, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(head, backend="aot_eager")
    if case.draws:  # the global generator: dynamo cannot hold one of its own
        torch.manual_seed(1)
        ours = compiled(hidden, target)
        torch.manual_seed(1)
        theirs = head(hidden, target)
    else:
        ours, theirs = compiled(hidden, target), head(hidden, target)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        gradients(ours, [hidden, *head.parameters()], upstream),
        gradients(theirs, [hidden, *head.parameters()], upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_every_keyword_changes_the_head(case):
    """Each option of the constructor is seen in the loss, the gradient's layout or the parameters."""
    hidden, target, _ = batch()
    target[0] = 1
    base = call(case, case.make(reduction="sum"), hidden, target)
    changes = [{"ignore_index": 1}, {"reduction": "mean"}]
    if case.sampled and case.draws:
        changes += [{"num_samples": 5}, {"sampler": samplers.Uniform(V, unique=case.unique)}]
    for change in changes:
        assert not torch.equal(call(case, case.make(**{"reduction": "sum", **change}), hidden, target), base)


def test_a_head_made_on_the_meta_device_can_be_filled(case):
    head = case.make(device="meta").to_empty(device="cpu")
    source = case.make()
    head.load_state_dict(source.state_dict())
    hidden, target, _ = batch()
    assert torch.equal(call(case, head, hidden, target), call(case, source, hidden, target))


def test_repr_can_be_read(case):
    text = repr(case.make())
    assert f"in_features={D}, num_classes={V}" in text
    if case.sampled:
        assert repr(case.make().sampler) in text.replace("\n  ", "\n")
        assert "num_samples=3" in text


BAD_CALLS = [
    ({"hidden": torch.zeros(6, D + 1)}, ValueError, r"hidden: expected shape \(\.\.\., 4\), got \(6, 5\)"),
    ({"hidden": torch.zeros(6, D, dtype=torch.int64)}, TypeError, "hidden: expected a floating-point tensor"),
    ({"hidden": torch.full((6, D), torch.nan)}, ValueError, r"hidden: expected finite values, got nan at \(0, 0\)"),
    ({"hidden": torch.full((6, D), -torch.inf)}, ValueError, "hidden: expected finite values, got -inf"),
    ({"target": torch.full((6,), V)}, ValueError, r"target: expected class ids in \[0, 7\), got 7 at \(0,\)"),
    ({"target": torch.full((6,), -1)}, ValueError, "got -1"),
    ({"target": torch.zeros(6)}, TypeError, "target: expected int64 class ids, got dtype torch.float32"),
    ({"target": torch.zeros(5, dtype=torch.int64)}, ValueError, r"target: expected shape \(6,\)"),
    ({"sample_weight": torch.ones(5)}, ValueError, r"sample_weight: expected shape \(6,\)"),
    ({"sample_weight": -torch.ones(6)}, ValueError, "sample_weight: expected weights of at least 0, got -1"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS, ids=[m for _, _, m in BAD_CALLS])
def test_bad_calls(case, change, error, message):
    head = case.make()
    hidden, target, _ = batch()
    arguments = {"hidden": hidden, "target": target, **change}
    with pytest.raises(error, match=message):
        head(**arguments)
    if "sample_weight" not in change:
        with pytest.raises(error, match=message):
            head.nll(**arguments)


BAD_SIZES = [
    ({"num_classes": -3}, ValueError, "num_classes: expected an integer of at least 1, got -3"),
    ({"num_classes": 3.0}, TypeError, "num_classes"),
]
BAD_OPTIONS = [
    ({"in_features": 0}, ValueError, "in_features: expected an integer of at least 1, got 0"),
    ({"reduction": "avg"}, ValueError, "reduction: expected one of none, mean, sum, got 'avg'"),
    ({"ignore_index": None}, TypeError, "ignore_index: expected an integer, got None"),
]
BAD_SAMPLED_OPTIONS = [
    ({"num_samples": 0}, ValueError, "num_samples: expected an integer of at least 1, got 0"),
    ({"num_samples": 2.5}, TypeError, "num_samples"),
    (
        {"sampler": samplers.Uniform(V + 1)},
        ValueError,
        r"sampler: expected one of num_classes=7 classes, got Uniform",
    ),
    ({"sampler": "uniform"}, TypeError, "sampler: expected a vastmax.samplers.Sampler, got str"),
    (
        {"sampler": samplers.Uniform(V, unique=True), "num_samples": V + 1},
        ValueError,
        "num_samples: expected at most 7",
    ),
]


def test_bad_options(case):
    cases = BAD_OPTIONS + (BAD_SIZES if case.sized else []) + (BAD_SAMPLED_OPTIONS if case.sampled else [])
    for change, error, message in cases:
        arguments = {"in_features": D, "num_classes": V, **case.options, **change}
        with pytest.raises(error, match=message):
            case.build(arguments.pop("in_features"), arguments.pop("num_classes"), **arguments)


def test_a_target_that_is_never_drawn_is_an_error(case):
    if not case.sampled:
        pytest.skip("no sampler")
    zero = counts(V)
    zero[3] = 0
    head = case.make(sampler=samplers.Unigram(zero, unique=case.unique), num_samples=2)
    hidden, target, _ = batch()
    target[2] = 3
    with pytest.raises(ValueError, match=r"target: expected classes that the sampler can draw, got 3.*Unigram"):
        head(hidden, target)
    assert head(hidden, target.masked_fill(target == 3, -100)).isfinite()
