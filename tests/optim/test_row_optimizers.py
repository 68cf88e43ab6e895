"""What holds for every optimizer of the package."""

import pytest
import torch
from row_gradients import OPTIMIZERS, assert_same, bits, random_rows, sparse
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vastmax import kernels

pytestmark = pytest.mark.parametrize("optimizer_class", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
EXACT = {"rtol": 0.0, "atol": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(9, 3), (9,)])
def test_untouched_rows_and_their_state_keep_their_bits(optimizer_class, shape, dtype):
    g = generator()
    param = nn.Parameter(torch.randn(shape, generator=g).to(dtype))
    optimizer = optimizer_class([param], lr=0.1)
    for _ in range(3):
        param.grad = random_rows(shape, 4, g, dtype)
        optimizer.step()
    before = bits(param, optimizer)
    rows = torch.tensor([2, 5])
    param.grad = sparse(rows, torch.randn(2, *shape[1:], generator=g).to(dtype), 9)
    optimizer.step()
    after = bits(param, optimizer)
    untouched = torch.ones(9, dtype=torch.bool).index_fill(0, rows, False)
    for name in before.keys() - {"step"}:
        assert_close(after[name][untouched], before[name][untouched], **EXACT)
        assert (after[name][rows] != before[name][rows]).all(), name


def test_an_uncoalesced_gradient_is_its_coalesced_one(optimizer_class):
    g = generator()
    weight = torch.randn(6, 3, generator=g, dtype=torch.float64)
    results = []
    grads = [sparse([4, 0, 4, 4], torch.randn(4, 3, generator=g, dtype=torch.float64), 6) for _ in range(3)]
    for kind in ("uncoalesced", "coalesced"):
        param = nn.Parameter(weight.clone())
        optimizer = optimizer_class([param], lr=0.1)
        for grad in grads:
            assert not grad.is_coalesced()
            param.grad = grad.clone() if kind == "uncoalesced" else grad.coalesce()
            optimizer.step()
        results.append(bits(param, optimizer))
    assert_same(*results)


def test_a_sparse_gradient_without_rows_changes_no_row(optimizer_class):
    param = nn.Parameter(torch.randn(6, 3))
    optimizer = optimizer_class([param])
    for _ in range(2):
        before = param.detach().clone()
        param.grad = sparse([], torch.zeros(0, 3), 6)
        optimizer.step()
        assert torch.equal(param, before)
    assert optimizer.state[param]["step"] == 2


def test_axes_behind_the_first_are_one_row(optimizer_class):
    g = generator()
    weight = torch.randn(6, 2, 3, generator=g, dtype=torch.float64)
    folded, flat = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    optimizer = optimizer_class([folded, flat], lr=0.1)
    for _ in range(3):
        folded.grad = random_rows((6, 2, 3), 3, g, torch.float64)
        grad = folded.grad.coalesce()
        flat.grad = sparse(grad.indices()[0], grad.values().flatten(1), 6)
        optimizer.step()
    folded.grad, flat.grad = weight, weight.flatten(1)
    optimizer.step()
    assert_close(folded.flatten(1), flat, rtol=1e-14, atol=1e-15)


def test_a_parameter_that_is_not_contiguous(optimizer_class):
    g = generator()
    weight = torch.randn(3, 6, generator=g, dtype=torch.float64).t()
    strided, contiguous = (
        nn.Parameter(weight.clone(memory_format=torch.preserve_format)),
        nn.Parameter(weight.clone(memory_format=torch.contiguous_format)),
    )
    assert not strided.is_contiguous()
    optimizer = optimizer_class([strided, contiguous], lr=0.1)
    for touched in (2, 3, None, 4):
        grad = torch.randn(6, 3, generator=g, dtype=torch.float64)
        grad = grad if touched is None else random_rows((6, 3), touched, g, torch.float64)
        strided.grad, contiguous.grad = grad, grad.clone()
        optimizer.step()
    assert_close(strided, contiguous, rtol=1e-13, atol=1e-14)


def test_sparse_values_that_are_not_contiguous(optimizer_class):
    values = torch.randn(4, 3, generator=generator(), dtype=torch.float64).t()
    params = [nn.Parameter(torch.zeros(6, 4, dtype=torch.float64)) for _ in range(2)]
    optimizer = optimizer_class(params, lr=0.1)
    for param, entries in zip(params, (values, values.contiguous()), strict=True):
        rows = torch.tensor([[0, 2, 5]])
        param.grad = torch.sparse_coo_tensor(rows, entries, param.shape, is_coalesced=True, check_invariants=True)
    assert not params[0].grad.values().is_contiguous()
    optimizer.step()
    assert_close(*params, rtol=1e-13, atol=1e-14)


class LargeTensors(TorchDispatchMode):
    """Collects which operations read, write or return a dense tensor of at least `size` elements."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.takers, self.makers = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        inputs = self._large(args, kwargs)
        result = func(*args, **(kwargs or {}))
        if inputs:
            self.takers.add(name)
        if self._large(result) - inputs:
            self.makers.add(name)
        return result

    def _large(self, *values):
        tensors = [v for v in tree_leaves(values) if isinstance(v, torch.Tensor) and v.layout == torch.strided]
        return {v.untyped_storage().data_ptr() for v in tensors if v.numel() >= self.size}


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_sparse_step_neither_makes_nor_walks_a_tensor_of_the_number_of_rows(optimizer_class, backend):
    num_rows, g = 10_000, generator()
    weight, bias = nn.Parameter(torch.randn(num_rows, 8, generator=g)), nn.Parameter(torch.zeros(num_rows))
    optimizer = optimizer_class([weight, bias])

    def step():
        weight.grad = sparse([7, 9_999, 7], torch.randn(3, 8, generator=g), num_rows)
        bias.grad = sparse([0, 9_999], torch.randn(2, generator=g), num_rows)
        with kernels.use(backend), LargeTensors(num_rows) as large:
            optimizer.step()
        return large

    assert step().makers, "the first step makes the state, so the check has something to see"
    large = step()
    assert large.makers == set()
    by_row = {"index_select", "index_copy_", "index_fill_"} if backend == "torch" else set()
    assert large.takers >= by_row - {"index_fill_"}
    assert large.takers - by_row <= {"detach", "alias"}


def test_one_optimizer_serves_a_model_as_one_for_each_parameter_would(optimizer_class):
    torch.manual_seed(0)
    together = nn.Sequential(nn.Embedding(8, 3, sparse=True), nn.Linear(3, 4), nn.Linear(4, 2).bfloat16())
    apart = nn.Sequential(nn.Embedding(8, 3, sparse=True), nn.Linear(3, 4), nn.Linear(4, 2).bfloat16())
    apart.load_state_dict(together.state_dict())
    optimizers = [optimizer_class(together.parameters(), lr=0.1)]
    optimizers += [optimizer_class([param], lr=0.1) for param in apart.parameters()]
    for ids in torch.randint(8, (3, 5)):
        for model in (together, apart):
            model.zero_grad()
            hidden = model[1](model[0](ids)).tanh()
            model[2](hidden.bfloat16()).float().logsumexp(dim=-1).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_updated_in_float32_and_rounded_once(optimizer_class, dtype):
    g = generator()
    half = nn.Parameter(torch.randn(6, 3, generator=g).to(dtype))
    single = nn.Parameter(half.detach().float())
    optimizer = optimizer_class([half, single], lr=0.1)
    for touched in (3, None, 2, 4):
        if touched is None:
            half.grad = torch.randn(6, 3, generator=g).to(dtype)
        else:
            half.grad = random_rows((6, 3), touched, g, dtype)
        single.grad = half.grad.float()
        with kernels.use("torch"):  # the same arithmetic for both, so that nothing but the rounding differs
            optimizer.step()
        assert_close(half.detach(), single.detach().to(dtype), **EXACT)
        single.data = half.detach().float()
    for name, value in optimizer.state[half].items():
        assert value.dtype == optimizer.state[single][name].dtype
        assert_close(value, optimizer.state[single][name], **EXACT)


def test_a_scheduler_sets_the_learning_rate(optimizer_class):
    moved = []
    for scheduled in (True, False):
        param = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        optimizer = optimizer_class([param], lr=0.1)
        scheduler = StepLR(optimizer, step_size=1, gamma=0.5)
        for lr in (0.1, 0.05, 0.025):
            param.grad = sparse([1], torch.ones(1, 2, dtype=torch.float64), 3)
            if not scheduled:
                optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            if scheduled:
                scheduler.step()
        moved.append(param.detach())
    assert torch.equal(*moved)
    assert (moved[0][1] != 1).all()


def test_a_closure_computes_the_gradients_and_the_loss(optimizer_class):
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = optimizer_class(embedding.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = embedding(torch.tensor([1, 3])).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure) for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    optimizer.zero_grad(set_to_none=True)
    assert embedding.weight.grad is None
    before = embedding.weight.detach().clone()
    assert optimizer.step() is None
    assert torch.equal(embedding.weight, before)


def test_a_gradient_that_is_not_of_whole_rows_is_refused_before_any_update(optimizer_class):
    good, bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    optimizer = optimizer_class([{"params": [good]}, {"params": [bad]}])
    good.grad, bad.grad = torch.ones(2), torch.ones(3, 2).to_sparse(2)
    with pytest.raises(ValueError, match=r"parameter of shape \(3, 2\): expected .*whole rows.* got sparse_dim 2"):
        optimizer.step()
    assert torch.equal(good, torch.ones(2))
    assert not optimizer.state[good]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_a_group_that_is_refused_is_not_added(optimizer_class, dtype):
    param = nn.Parameter(torch.zeros(2))
    optimizer = optimizer_class([param])
    with pytest.raises(
        TypeError, match=rf"params: expected real floating-point parameters, got {dtype} of shape \(4,\)"
    ):
        optimizer.add_param_group({"params": [torch.zeros(4, dtype=dtype)]})
    with pytest.raises(ValueError, match="lr: expected a finite number of at least 0, got -1"):
        optimizer.add_param_group({"params": [torch.zeros(4)], "lr": -1.0})
    assert [group["params"] for group in optimizer.param_groups] == [[param]]
