import pytest
import torch
from row_gradients import random_rows
from torch import nn
from torch.testing import assert_close

from vastmax import kernels
from vastmax.optim import LazyAdamW

OPTIONS = {"lr": 0.03, "eps": 1e-3, "weight_decay": 0.2}


def reference(weight, grads, betas, lr, eps, weight_decay):
    """AdamW in loops with one second moment per row; a touched row makes the steps it missed, one by one, first."""
    beta1, beta2 = betas
    weight, m, v = weight.clone(), torch.zeros_like(weight), [0.0] * len(weight)
    last = [0] * len(weight)
    for t, grad in enumerate(grads, start=1):
        touched = grad.coalesce().indices()[0].tolist() if grad.is_sparse else range(len(weight))
        for r in touched:
            g = grad.to_dense()[r]
            first, missed = last[r] + 1, t - 1 - last[r]
            start = (m[r] / (1 - beta1**first)) / ((v[r] / (1 - beta2**first)) ** 0.5 + eps)
            for _ in range(missed):
                weight[r] *= 1 - lr * weight_decay
            for j in range(1, missed + 1):
                weight[r] -= lr * start * (beta1 / beta2**0.5) ** j
            m[r] = beta1 ** (missed + 1) * m[r] + (1 - beta1) * g
            v[r] = beta2 ** (missed + 1) * v[r] + (1 - beta2) * g.square().mean().item()
            weight[r] *= 1 - lr * weight_decay
            weight[r] -= lr * (m[r] / (1 - beta1**t)) / ((v[r] / (1 - beta2**t)) ** 0.5 + eps)
            last[r] = t
    return weight, m, torch.tensor(v, dtype=weight.dtype).view(-1, 1)


def run(weight, grads, **options):
    param = nn.Parameter(weight.clone())
    optimizer = LazyAdamW([param], **OPTIONS, **options)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach(), optimizer.state[param]


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.0, 0.95)])
@pytest.mark.parametrize("seed", range(3))
def test_one_second_moment_per_row(betas, seed, backend):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 3, generator=g, dtype=torch.float64)
    grads = [random_rows((6, 3), k, g, torch.float64) for k in (2, 0, 3, 1, 2, 0, 0, 2, 4)]
    grads += [torch.randn(6, 3, generator=g, dtype=torch.float64)]  # dense, and so of every row
    with kernels.use(backend):
        ours, state = run(weight, grads, betas=betas, rowwise_second_moment=True)
    expected, m, v = reference(weight, grads, betas, **OPTIONS)
    assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    assert_close(state["exp_avg_sq"], v, rtol=1e-12, atol=1e-14)
    if betas[0]:
        assert_close(state["exp_avg"], m, rtol=1e-12, atol=1e-14)
    else:
        assert "exp_avg" not in state


def test_of_rows_of_equal_squares_it_is_the_second_moment_of_each_element():
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 4, generator=g, dtype=torch.float64)
    signs = torch.randn(5, 4, generator=g, dtype=torch.float64).sign()
    grads = [(random_rows((5, 1), k, g, torch.float64).to_dense() * signs).to_sparse(1) for k in (3, 2, 5, 1, 4)]
    by_row, by_row_state = run(weight, grads, rowwise_second_moment=True)
    by_element, by_element_state = run(weight, grads)
    assert by_row_state["exp_avg_sq"].shape == (5, 1)
    assert_close(by_row, by_element, rtol=1e-13, atol=1e-14)
    assert_close(by_row_state["exp_avg_sq"].expand(5, 4), by_element_state["exp_avg_sq"], rtol=1e-13, atol=0.0)


def test_without_a_first_moment_a_step_is_the_one_with_a_first_moment_that_is_the_gradient():
    g = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 4, generator=g, dtype=torch.float64)
    grads = [random_rows((5, 4), k, g, torch.float64) for k in (3, 2, 5, 1, 4)]
    lean, lean_state = run(weight, grads, betas=(0.0, 0.9))
    assert set(lean_state) == {"step", "exp_avg_sq", "last_step"}
    param = nn.Parameter(weight.clone())
    optimizer = LazyAdamW([param], **OPTIONS, betas=(0.0, 0.9))
    param.grad = torch.zeros_like(param)
    optimizer._new_state(param, optimizer.param_groups[0], sparse=False)
    optimizer.state[param] = optimizer._new_state(param, optimizer.param_groups[0], sparse=False)
    for grad in grads:
        param.grad = grad
        optimizer.step()
    assert "exp_avg" in optimizer.state[param]
    assert_close(param.detach(), lean, rtol=1e-13, atol=1e-14)


def test_a_first_moment_that_is_switched_on_later():
    g = torch.Generator().manual_seed(5)
    param = nn.Parameter(torch.ones(4, 2))
    optimizer = LazyAdamW([param], betas=(0.0, 0.9))
    for beta1 in (0.0, 0.9):
        optimizer.param_groups[0]["betas"] = (beta1, 0.9)
        param.grad = random_rows((4, 2), 2, g, torch.float32)
        optimizer.step()
    assert_close(optimizer.state[param]["exp_avg"], 0.1 * param.grad.to_dense())


def test_a_parameter_whose_gradient_is_dense_follows_torch_adamw():
    g = torch.Generator().manual_seed(6)
    ours, theirs = nn.Parameter(torch.ones(4, 3).double()), nn.Parameter(torch.ones(4, 3).double())
    options = {"betas": (0.0, 0.9)}
    optimizers = LazyAdamW([ours], rowwise_second_moment=True, **options), torch.optim.AdamW([theirs], **options)
    for _ in range(3):
        ours.grad = torch.randn(4, 3, generator=g, dtype=torch.float64)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


def test_the_option_is_a_flag():
    with pytest.raises(TypeError, match="rowwise_second_moment: expected True or False, got 'yes' of type str"):
        LazyAdamW([nn.Parameter(torch.zeros(2))], rowwise_second_moment="yes")
