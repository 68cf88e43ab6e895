import copy

import pytest
import torch
from row_gradients import random_rows, sparse
from torch import Tensor, nn
from torch.testing import assert_close

from vastmax.optim import LazyAdamW

OPTIONS = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}


def reference(weight: Tensor, grads: list[Tensor], lr, betas, eps, weight_decay) -> tuple[Tensor, Tensor, Tensor]:
    """AdamW row by row, in loops: a touched row makes the steps it missed, one by one, and then its own."""
    beta1, beta2 = betas
    weight, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    last = [0] * len(weight)
    for t, grad in enumerate(grads, start=1):
        touched = grad.coalesce().indices()[0].tolist() if grad.is_sparse else range(len(weight))
        for r in touched:
            g = grad.to_dense()[r]
            first, missed = last[r] + 1, t - 1 - last[r]
            start = (m[r] / (1 - beta1**first)) / ((v[r] / (1 - beta2**first)).sqrt() + eps)
            for _ in range(missed):
                weight[r] *= 1 - lr * weight_decay
            for j in range(1, missed + 1):
                weight[r] -= lr * start * (beta1 / beta2**0.5) ** j
            m[r] = beta1 ** (missed + 1) * m[r] + (1 - beta1) * g
            v[r] = beta2 ** (missed + 1) * v[r] + (1 - beta2) * g**2
            weight[r] *= 1 - lr * weight_decay
            weight[r] -= lr * (m[r] / (1 - beta1**t)) / ((v[r] / (1 - beta2**t)).sqrt() + eps)
            last[r] = t
    return weight, m, v


def run(weight: Tensor, grads: list[Tensor], optimizer_class=LazyAdamW, **options):
    """The weight and the state after a step with each gradient."""
    param = nn.Parameter(weight.clone())
    optimizer = optimizer_class([param], **options)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach(), optimizer.state[param]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_dense_gradients_follow_torch_adamw(dtype, rtol):
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 33), (7,), (), (3, 4, 2)]
    start = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    start.append(torch.randn(6, 8, generator=generator, dtype=dtype).t())
    ours, theirs = ([nn.Parameter(p.clone(memory_format=torch.preserve_format)) for p in start] for _ in range(2))
    assert not ours[-1].is_contiguous()

    def groups(params):
        return [{"params": params[:2], "lr": 0.1, "weight_decay": 0.3}, {"params": params[2:], "betas": (0.5, 0.7)}]

    optimizers = [LazyAdamW(groups(ours)), torch.optim.AdamW(groups(theirs))]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=dtype)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=rtol, atol=rtol)
        for name in ("exp_avg", "exp_avg_sq"):
            assert_close(optimizers[0].state[a][name], optimizers[1].state[b][name], rtol=rtol, atol=rtol)


def test_dense_gradient_of_other_strides_than_its_parameter():
    weight = torch.randn(6, 4, dtype=torch.float64)
    grad = torch.randn(4, 6, dtype=torch.float64).t()
    param = nn.Parameter(weight.clone())
    optimizer = LazyAdamW([param], **OPTIONS)
    for _ in range(2):
        param.grad = grad
        assert not param.grad.is_contiguous()
        optimizer.step()
    expected, _, _ = reference(weight, [grad, grad], **OPTIONS)
    assert_close(param.detach(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(9, 5), (9,)])
def test_rows_touched_at_every_step_follow_torch_adamw(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    grads = [random_rows(shape, 9, generator, torch.float64) for _ in range(6)]
    ours, state = run(weight, grads, **OPTIONS)
    theirs, expected = run(weight, [grad.to_dense() for grad in grads], torch.optim.AdamW, **OPTIONS)
    assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    for name in ("exp_avg", "exp_avg_sq"):
        assert_close(state[name], expected[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("touched", [[0, 1, 2], [0, 4, 9], [3, 9], [9]])
def test_moments_after_gaps_are_those_of_torch_adamw_with_zero_gradients_between(touched):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    grads = [random_rows((4, 3), 4 if t in touched else 0, generator, torch.float64) for t in range(10)]
    # A row outside the gradient is as untouched as one outside a gradient with entries elsewhere.
    _, state = run(weight, grads[: touched[-1] + 1], **OPTIONS)
    _, expected = run(weight, [g.to_dense() for g in grads[: touched[-1] + 1]], torch.optim.AdamW, **OPTIONS)
    for name in ("exp_avg", "exp_avg_sq"):
        assert_close(state[name], expected[name], rtol=1e-13, atol=1e-15)


def test_weight_decay_over_a_gap_is_that_of_torch_adamw_while_the_moments_are_zero():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    grads = [sparse([0], torch.randn(1, 3, generator=generator, dtype=torch.float64), 2) for _ in range(7)]
    grads.append(sparse([1], torch.randn(1, 3, generator=generator, dtype=torch.float64), 2))
    ours, _ = run(weight, grads, **OPTIONS)
    theirs, _ = run(weight, [grad.to_dense() for grad in grads], torch.optim.AdamW, **OPTIONS)
    assert_close(ours[1], theirs[1], rtol=1e-13, atol=1e-13)
    decay = (1 - OPTIONS["lr"] * OPTIONS["weight_decay"]) ** 8
    assert not torch.allclose(ours[1], weight[1] * decay), "the row moved, not only decayed"


def test_a_row_follows_torch_adamw_through_its_gaps():
    """Past the first steps, where bias corrections still change, and without weight decay."""
    generator = torch.Generator().manual_seed(7)
    options = {"lr": 0.03, "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.0}
    grads = [random_rows((4, 3), 4, generator, torch.float64)]
    grads += [random_rows((4, 3), 4 if t % 9 == 0 else 0, generator, torch.float64) for t in range(1, 46)]
    params = [nn.Parameter(torch.ones(4, 3, dtype=torch.float64)) for _ in range(2)]
    lazy, adamw = LazyAdamW([params[0]], **options), torch.optim.AdamW([params[1]], **options)
    for optimizer, param in ((lazy, params[0]), (adamw, params[1])):
        for number, grad in enumerate(grads):
            param.grad = grad.clone() if optimizer is lazy else grad.to_dense()
            optimizer.step()
            if number == 0:  # as if a million steps had been made
                optimizer.state[param]["step"].fill_(1e6)
                optimizer.state[param]["exp_avg_sq"].fill_(1.0)
                if optimizer is lazy:
                    optimizer.state[param]["last_step"].fill_(10**6)
    assert_close(params[0].detach(), params[1].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_parameter_with_sparse_empty_and_dense_gradients_in_turn(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 3)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    grads = [random_rows(shape, k, generator, torch.float64) for k in (2, 0, 3, 1, 2, 0, 0, 2, 4)]
    for t in (3 - seed, 7):
        grads.insert(t, torch.randn(shape, generator=generator, dtype=torch.float64))

    ours, state = run(weight, grads, **OPTIONS)
    expected = reference(weight, grads, **OPTIONS)
    rows = grads[-1].coalesce().indices()[0]
    for value, exact in zip((ours, state["exp_avg"], state["exp_avg_sq"]), expected, strict=True):
        assert_close(value[rows], exact[rows], rtol=1e-12, atol=1e-14)

    grads.append(torch.randn(shape, generator=generator, dtype=torch.float64))  # brings every row up to date
    ours, state = run(weight, grads, **OPTIONS)
    expected = reference(weight, grads, **OPTIONS)
    for value, exact in zip((ours, state["exp_avg"], state["exp_avg_sq"]), expected, strict=True):
        assert_close(value, exact, rtol=1e-12, atol=1e-14)


def test_state_has_torch_names_and_counts_rows_in_int32():
    param = nn.Parameter(torch.randn(5, 2))
    optimizer = LazyAdamW([param])
    param.grad = torch.randn(5, 2)
    optimizer.step()
    assert set(optimizer.state[param]) == {"step", "exp_avg", "exp_avg_sq"}
    param.grad = sparse([1, 3], torch.randn(2, 2), 5)
    optimizer.step()
    assert optimizer.state[param]["last_step"].dtype == torch.int32
    assert optimizer.state[param]["last_step"].tolist() == [1, 2, 1, 2, 1]


def test_a_long_gap_loses_no_digits_in_float32():
    param = nn.Parameter(torch.ones(2, 1))
    optimizer = LazyAdamW([param], lr=0.0, weight_decay=0.0)
    param.grad = sparse([0], torch.full((1, 1), 3.0), 2)
    optimizer.step()
    optimizer.state[param]["step"].fill_(5000)
    param.grad = sparse([0], torch.zeros(1, 1), 2)
    optimizer.step()
    assert_close(optimizer.state[param]["exp_avg_sq"][0].item(), 0.001 * 9 * 0.999**5000, rtol=1e-6, atol=0.0)


def test_steps_are_counted_past_the_integers_of_float32():
    param = nn.Parameter(torch.ones(1, 1))
    optimizer = LazyAdamW([param], lr=0.5, weight_decay=0.5)
    param.grad = sparse([0], torch.zeros(1, 1), 1)
    optimizer.step()
    optimizer.state[param]["step"].fill_(2**24 + 4)
    optimizer.state[param]["last_step"].fill_(2**24 + 1)
    param.data.fill_(1.0)
    optimizer.step()
    assert optimizer.state[param]["step"].item() == optimizer.state[param]["last_step"].item() == 2**24 + 5
    assert param.item() == 0.75**4


def test_a_checkpoint_of_torch_adamw_goes_on():
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    grads = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    grads.append(random_rows((5, 3), 5, generator, torch.float64))
    theirs, ours = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    adamw, lazy = torch.optim.AdamW([theirs], **OPTIONS), LazyAdamW([ours])
    for grad in grads[:2]:
        theirs.grad = grad
        adamw.step()
    lazy.load_state_dict(copy.deepcopy(adamw.state_dict()))
    ours.data.copy_(theirs.data)
    for grad in grads[2:]:
        ours.grad, theirs.grad = grad, grad.to_dense()
        lazy.step()
        adamw.step()
    assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr: expected a finite number of at least 0, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr: expected a finite number of at least 0, got nan"),
        ({"lr": torch.full((2,), 0.1)}, TypeError, "lr: expected a number"),
        ({"eps": -1e-8}, ValueError, "eps: expected a finite number of at least 0"),
        ({"weight_decay": float("inf")}, ValueError, "weight_decay: expected a finite number of at least 0"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\]: expected .* of at least 0 and less than 1, got 1.0"),
        ({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\]: expected .* of at least 0 and less than 1, got -0.1"),
        ({"betas": (0.9,)}, ValueError, r"betas: expected two numbers, got \(0.9,\)"),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        LazyAdamW([nn.Parameter(torch.zeros(2))], **options)
    with pytest.raises(error, match=message):
        LazyAdamW([{"params": [nn.Parameter(torch.zeros(2))], **options}])
