import pytest
import torch
from row_gradients import random_rows
from torch import Tensor, nn
from torch.testing import assert_close

from vastmax.optim import RowwiseAdagrad

OPTIONS = {"lr": 0.3, "eps": 1e-2, "initial_accumulator_value": 0.1}


def reference(
    weight: Tensor,
    grads: list[Tensor],
    *,
    elementwise: bool,
    lr: float,
    eps: float,
    initial_accumulator_value: float,
) -> tuple[Tensor, Tensor]:
    """Adagrad number by number, in float64."""
    weight = weight.double().clone()
    num_rows, dim = weight.shape
    total = torch.full((num_rows, dim if elementwise else 1), initial_accumulator_value, dtype=torch.float64)
    for grad in grads:
        touched = set(grad.coalesce().indices()[0].tolist()) if grad.is_sparse else set(range(num_rows))
        dense = grad.to_dense() if grad.is_sparse else grad
        for r in touched:
            g = dense[r].tolist()
            for j in range(total.shape[1]):
                total[r, j] += g[j] ** 2 if elementwise else sum(x**2 for x in g) / dim
            for j in range(dim):
                weight[r, j] -= lr * g[j] / (total[r, j if elementwise else 0].item() ** 0.5 + eps)
    return weight, total


def run(weight: Tensor, grads: list[Tensor], optimizer_class=RowwiseAdagrad, **options):
    """The weight and the accumulator after a step with each gradient."""
    param = nn.Parameter(weight.clone())
    optimizer = optimizer_class([param], **options)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach(), optimizer.state[param]["sum"]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_dense_gradients_follow_torch_adagrad(dtype, rtol):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(5, 33), (7,), (), (3, 4, 2)]]
    start.append(torch.randn(6, 8, generator=generator, dtype=dtype).t())
    ours, theirs = ([nn.Parameter(p.clone(memory_format=torch.preserve_format)) for p in start] for _ in range(2))

    def groups(params):
        return [{"params": params[:2], "lr": 0.1}, {"params": params[2:]}]

    optimizers = [RowwiseAdagrad(groups(ours), **OPTIONS), torch.optim.Adagrad(groups(theirs), **OPTIONS)]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=dtype)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=rtol, atol=rtol)
        assert_close(optimizers[0].state[a]["sum"], optimizers[1].state[b]["sum"], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("first", ["sparse", "dense"])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_gradient_decides_the_accumulator_and_every_later_one_follows(first, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 3)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    grads = [random_rows(shape, k, generator, torch.float64) for k in (2, 4, 0, 3, 1)]
    dense = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    grads = [*grads[:2], *dense, *grads[2:]] if first == "sparse" else [dense[0], *grads, dense[1]]
    ours, total = run(weight, grads, **OPTIONS)
    assert total.shape == ((6, 1) if first == "sparse" else (6, 3))
    expected, expected_total = reference(weight, grads, elementwise=first == "dense", **OPTIONS)
    assert_close(ours, expected, rtol=1e-13, atol=1e-14)
    assert_close(total, expected_total, rtol=1e-13, atol=1e-14)


def test_a_row_wise_parameter_takes_a_dense_gradient_as_every_row():
    generator = torch.Generator().manual_seed(1)
    shape = (6, 3)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    grads = [random_rows(shape, k, generator, torch.float64) for k in (2, 6, 6)]
    as_rows, as_rows_total = run(weight, grads, **OPTIONS)
    as_dense, as_dense_total = run(weight, [grads[0], *(grad.to_dense() for grad in grads[1:])], **OPTIONS)
    assert_close(as_rows, as_dense, rtol=1e-14, atol=1e-15)
    assert_close(as_rows_total, as_dense_total, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_rows_of_one_element_follow_torch_adagrad(shape):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    grads = [random_rows(shape, k, generator, torch.float64) for k in (3, 7, 2, 4)]
    ours, total = run(weight, grads, **OPTIONS)
    theirs, expected_total = run(weight, [grad.to_dense() for grad in grads], torch.optim.Adagrad, **OPTIONS)
    assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    assert_close(total, expected_total, rtol=1e-13, atol=1e-14)


def test_rows_of_equal_squares_follow_torch_adagrad():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    signs = torch.randn(5, 4, generator=generator, dtype=torch.float64).sign()
    grads = [random_rows((5, 1), k, generator, torch.float64).to_dense() * signs for k in (3, 2, 5)]
    ours, total = run(weight, [grad.to_sparse(1) for grad in grads], **OPTIONS)
    theirs, expected_total = run(weight, grads, torch.optim.Adagrad, **OPTIONS)
    assert total.shape == (5, 1)
    assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    assert_close(total.expand(5, 4), expected_total, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["lr", "eps", "initial_accumulator_value"])
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf")])
def test_options_out_of_range(name, value):
    message = f"{name}: expected a finite number of at least 0, got {value}"
    with pytest.raises(ValueError, match=message):
        RowwiseAdagrad([nn.Parameter(torch.zeros(2))], **{name: value})
    with pytest.raises(ValueError, match=message):
        RowwiseAdagrad([{"params": [nn.Parameter(torch.zeros(2))], name: value}])
