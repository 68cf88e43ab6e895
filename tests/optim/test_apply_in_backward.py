"""Steps within the backward pass: those of `backward()` and `step()`, without a gradient in between."""

import gc
import weakref

import pytest
import torch
from row_gradients import OPTIMIZERS, assert_same, bits
from torch import nn
from torch.testing import assert_close

from vastmax import kernels
from vastmax.heads import HierarchicalSoftmax, SampledSoftmax
from vastmax.optim import LazyAdamW, RowwiseAdagrad, apply_in_backward
from vastmax.scoring import chosen_logits
from vastmax.trees import balanced

every_optimizer = pytest.mark.parametrize("optimizer_class", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
NUM_CLASSES, SIZE = 30, 5


class Model(nn.Module):
    """A body, class rows and a bias, in float64 unless otherwise said."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.body = nn.Linear(SIZE, SIZE, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(NUM_CLASSES, SIZE, generator=g).to(dtype))
        self.bias = nn.Parameter(torch.randn(NUM_CLASSES, generator=g).to(dtype))
        with torch.no_grad():
            self.body.weight.copy_(torch.randn(SIZE, SIZE, generator=g))
            self.body.bias.copy_(torch.randn(SIZE, generator=g))

    def backward(self, generator):
        """Logits of shared classes and of each row's own, some repeated, under a random upstream gradient."""
        hidden = self.body(torch.randn(4, SIZE, generator=generator, dtype=torch.float64))
        shared = torch.randint(NUM_CLASSES, (6,), generator=generator)
        own = torch.randint(NUM_CLASSES, (4, 3), generator=generator)
        logits = chosen_logits(hidden, self.weight, shared, own, linear_bias=self.bias, sparse=True)
        upstream = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in logits]
        torch.autograd.backward(logits, upstream)


@every_optimizer
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_it_is_the_deferred_step(optimizer_class, backend):
    deferred, fused = Model(), Model()
    optimizers = [optimizer_class(model.parameters(), lr=0.1) for model in (deferred, fused)]
    apply_in_backward(optimizers[1], fused.weight, fused.bias)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    with kernels.use(backend):
        for _ in range(5):
            for model, optimizer, generator in zip((deferred, fused), optimizers, generators, strict=True):
                optimizer.zero_grad()
                model.backward(generator)
                optimizer.step()
                assert model.weight.grad is None or model is deferred
                assert model.bias.grad is None or model is deferred
    for name in ("body.weight", "body.bias", "weight", "bias"):
        ours, theirs = fused.get_parameter(name), deferred.get_parameter(name)
        mine, expected = bits(ours, optimizers[1]), bits(theirs, optimizers[0])
        assert mine.keys() == expected.keys()
        for key in mine:
            assert_close(mine[key], expected[key], rtol=1e-12, atol=1e-13)
    assert optimizers[1].state[fused.weight]["step"] == 5


@every_optimizer
def test_weight_and_state_move_within_backward_and_not_in_step(optimizer_class):
    model = Model()
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    apply_in_backward(optimizer, model.weight)
    before = model.weight.detach().clone()
    model.backward(torch.Generator().manual_seed(1))
    assert model.bias.grad is not None, "it is not among the parameters"
    assert not torch.equal(model.weight, before)
    after = bits(model.weight, optimizer)
    optimizer.step()
    assert_same(bits(model.weight, optimizer), after)


@every_optimizer
def test_half_precision(optimizer_class):
    """The gradient reaches the update unrounded: in float32, of which a deferred one keeps eight bits."""
    deferred, fused = Model(torch.bfloat16), Model(torch.bfloat16)
    optimizers = [optimizer_class(model.parameters(), lr=0.1) for model in (deferred, fused)]
    apply_in_backward(optimizers[1], fused.weight, fused.bias)
    for model, optimizer in zip((deferred, fused), optimizers, strict=True):
        model.backward(torch.Generator().manual_seed(1))
        optimizer.step()
    for ours, theirs in ((fused.weight, deferred.weight), (fused.bias, deferred.bias)):
        assert ours.dtype == torch.bfloat16
        assert_close(ours, theirs, rtol=2**-6, atol=2**-6)
        assert_close(ours.norm(), theirs.norm(), rtol=2**-8, atol=0.0)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_heads_train_so(sparse, shared):
    heads = [SampledSoftmax(SIZE, NUM_CLASSES, num_samples=8, shared=shared, sparse=sparse) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    optimizers = [RowwiseAdagrad(head.parameters(), lr=0.3) for head in heads]
    apply_in_backward(optimizers[1], *heads[1].parameters())
    hidden, target = torch.randn(7, SIZE), torch.randint(NUM_CLASSES, (7,))
    for head, optimizer in zip(heads, optimizers, strict=True):
        torch.manual_seed(5)
        head(hidden, target).backward()
        grad = head.weight.grad
        if grad is not None and not grad.is_sparse:
            head.weight.grad, head.bias.grad = grad.to_sparse(1), head.bias.grad.to_sparse(1)
        optimizer.step()
    assert all(param.grad is None for param in heads[1].parameters())
    for a, b in zip(*(head.parameters() for head in heads), strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_nodes_of_a_tree_are_class_rows_too():
    head = HierarchicalSoftmax(SIZE, balanced(NUM_CLASSES), sparse=True)
    optimizer = RowwiseAdagrad(head.parameters())
    apply_in_backward(optimizer, *head.parameters())
    before = [param.detach().clone() for param in head.parameters()]
    head(torch.randn(3, SIZE), torch.tensor([1, 2, 3])).backward()
    for param, old in zip(head.parameters(), before, strict=True):
        assert param.grad is None
        assert not torch.equal(param, old)


def test_the_learning_rate_of_the_time_of_backward():
    model = Model()
    optimizer = RowwiseAdagrad(model.parameters(), lr=0.1)
    apply_in_backward(optimizer, model.weight)
    optimizer.param_groups[0]["lr"] = 0.0
    before = model.weight.detach().clone()
    model.backward(torch.Generator().manual_seed(1))
    assert torch.equal(model.weight, before)


def test_autograd_notices_that_a_saved_weight_is_gone():
    model = Model()
    apply_in_backward(optimizer := RowwiseAdagrad(model.parameters()), model.weight)
    version = model.weight._version
    first, second = (
        chosen_logits(torch.randn(2, SIZE).double().requires_grad_(), model.weight, torch.tensor([1, 2]))[0].sum()
        for _ in range(2)
    )
    first.backward()
    assert model.weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()
    assert optimizer.state[model.weight]["step"] == 1


@every_optimizer
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_so_does_it_after_a_deferred_step(optimizer_class, backend):
    """Kernels that write behind torch's back count the versions as torch's own operators do."""
    param = nn.Parameter(torch.ones(4, 2))
    optimizer = optimizer_class([param])
    loss = param.square().sum()
    param.grad = torch.ones(4, 2).to_sparse(1)
    with kernels.use(backend):
        optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_gradient_of_another_way_waits_for_step():
    model = Model()
    optimizer = LazyAdamW(model.parameters())
    apply_in_backward(optimizer, model.weight)
    model.weight.square().sum().backward()
    assert model.weight.grad is not None
    optimizer.step()
    assert optimizer.state[model.weight]["step"] == 1


def test_closing_ends_it():
    model = Model()
    optimizer = RowwiseAdagrad(model.parameters())
    generator = torch.Generator().manual_seed(1)
    with apply_in_backward(optimizer, model.weight, model.bias):
        model.backward(generator)
        assert model.weight.grad is None
    model.backward(generator)
    assert model.weight.grad is not None
    model.weight.grad = None
    handle = apply_in_backward(optimizer, model.weight)
    handle.close()
    model.backward(generator)
    assert model.weight.grad is not None


def test_parameters_and_optimizer_are_free_to_go():
    model = Model()
    optimizer = RowwiseAdagrad(model.parameters())
    apply_in_backward(optimizer, model.weight)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="expected the optimizer to be kept, got none"):
        model.backward(torch.Generator().manual_seed(1))
    gone = weakref.ref(model.weight)
    del model
    gc.collect()
    assert gone() is None


def test_what_cannot_work_is_refused_and_leaves_nothing_behind():
    model, other = Model(), nn.Parameter(torch.ones(3, 2))
    optimizer = RowwiseAdagrad(model.parameters())
    with pytest.raises(TypeError, match=r"optimizer: expected one of vastmax\.optim, got Adagrad"):
        apply_in_backward(torch.optim.Adagrad(model.parameters()), model.weight)
    with pytest.raises(ValueError, match="parameters: expected at least one, got none"):
        apply_in_backward(optimizer)
    with pytest.raises(TypeError, match="parameters: expected tensors, got generator"):
        apply_in_backward(optimizer, model.parameters())
    with pytest.raises(
        ValueError, match=r"parameter of shape \(3, 2\): expected one of the optimizer's, got another"
    ):
        apply_in_backward(optimizer, model.weight, other)
    cube = nn.Parameter(torch.ones(3, 2, 2))
    with pytest.raises(ValueError, match=r"parameter of shape \(3, 2, 2\): expected class rows \(V, d\) or a bias"):
        apply_in_backward(RowwiseAdagrad([cube]), cube)
    frozen = torch.ones(3, 2)
    with pytest.raises(ValueError, match="expected one that requires a gradient, got requires_grad=False"):
        apply_in_backward(RowwiseAdagrad([frozen]), frozen)
    model.bias.grad = torch.ones(NUM_CLASSES, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"\(30,\): expected no gradient that waits for its step, got one in .grad"
    ):
        apply_in_backward(optimizer, model.weight, model.bias)
    model.bias.grad = None
    with pytest.raises(ValueError, match="expected one that is not updated in backward yet, got one that is"):
        apply_in_backward(optimizer, model.weight, model.weight)
    apply_in_backward(optimizer, model.weight)
    with pytest.raises(ValueError, match="expected one that is not updated in backward yet, got one that is"):
        apply_in_backward(RowwiseAdagrad(model.parameters()), model.bias, model.weight)
    apply_in_backward(optimizer, model.bias)


def test_a_gradient_that_is_to_be_differentiated_is_no_step():
    """The weight that it is a function of must stay."""
    model = Model()
    optimizer = RowwiseAdagrad(model.parameters(), lr=0.1)
    apply_in_backward(optimizer, model.weight, model.bias)
    before = model.weight.detach().clone()
    (logits,) = chosen_logits(torch.ones(1, SIZE).double(), model.weight, torch.tensor([2, 3]), sparse=True)
    (gradient,) = torch.autograd.grad(logits.square().sum(), model.weight, create_graph=True)
    assert torch.equal(model.weight, before)
    assert_close(gradient[2], 2 * logits[0, 0] * torch.ones(SIZE).double())
