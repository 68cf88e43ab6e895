"""linear_cross_entropy at the edge: nothing to count, masks, half precision, autocast, wrong arguments."""

import pytest
import torch
from linear_problems import D, V, problem, torch_cross_entropy
from torch.nn import functional

from vastmax.scoring import blocks, linear_cross_entropy


@pytest.mark.parametrize("rows", [(5,), (0,), (0, 3)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_row_left_is_zero_and_attached(rows, reduction):
    hidden, weight, bias, target, _ = problem(rows)
    loss = linear_cross_entropy(
        hidden, weight, torch.full_like(target, -100), linear_bias=bias, reduction=reduction
    )
    assert loss.shape == (rows if reduction == "none" else ())
    assert torch.equal(loss, torch.zeros_like(loss))
    loss.sum().backward()
    for tensor in (hidden, weight, bias):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_ignored_rows_may_hold_anything():
    hidden, weight, bias, target, _ = problem()
    clean = linear_cross_entropy(hidden[1:], weight, target[1:], linear_bias=bias)
    target[0] = -100
    padded = torch.cat([torch.full((1, D), torch.nan), hidden[1:].detach()]).requires_grad_()
    loss = linear_cross_entropy(padded, weight, target, linear_bias=bias)
    torch.testing.assert_close(loss, clean)
    loss.backward()
    assert torch.equal(padded.grad[0], torch.zeros(D, dtype=torch.float64))


def test_large_logits_and_masked_classes():
    hidden = torch.tensor([[1.0], [1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1e4], [1e4 - 1], [-1e4]], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    for block_size in (1, 2, 3):
        loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]), linear_bias=bias, block_size=block_size)
        expected = (torch.tensor([0.0, 1.0]).exp().sum().log() + torch.tensor([1.0, 0.0]).exp().sum().log()) / 2
        torch.testing.assert_close(loss.float(), expected - 0.5)
        masked = linear_cross_entropy(
            hidden,
            weight,
            torch.tensor([1, 1]),
            linear_bias=torch.tensor([-torch.inf, 0.0, 0.0], dtype=torch.float64),
            block_size=block_size,
        )
        grads = torch.autograd.grad(masked, (hidden, weight))
        assert masked.item() == 0.0
        assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_float32_error_is_within_twice_torchs(reduction):
    hidden, weight, bias, target, g = problem((64,), num_classes=3000, dim=300)
    weight_scale = 0.2
    reference = [hidden, (weight.detach() * weight_scale).requires_grad_(), bias]
    single = [x.detach().float().requires_grad_() for x in reference]
    upstream = torch.randn(64 if reduction == "none" else (), generator=g, dtype=torch.float64)

    def run(function, inputs):
        loss = function(inputs[0], inputs[1], target, inputs[2])
        return [loss, *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))]

    def torchs(h, w, t, b):
        return torch_cross_entropy(h, w, t, b, reduction=reduction)

    def mine(h, w, t, b):
        return linear_cross_entropy(h, w, t, linear_bias=b, reduction=reduction)

    exact = run(torchs, reference)
    for ours, theirs, truth in zip(run(mine, single), run(torchs, single), exact, strict=True):
        assert (ours - truth).norm() <= 2 * (theirs - truth).norm() + 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_half_precision_is_computed_in_float32(dtype, reduction, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 100)
    hidden, weight, bias, target, _ = problem(dtype=torch.float32)
    half = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    full = [x.detach().double().requires_grad_() for x in half]
    ours = linear_cross_entropy(half[0], half[1], target, linear_bias=half[2], reduction=reduction)
    theirs = torch_cross_entropy(full[0], full[1], target, full[2], reduction=reduction)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    ours.sum().backward()
    theirs.sum().backward()
    for mine, other in zip(half, full, strict=True):
        assert mine.grad.dtype == dtype
        # One rounding to half precision, after arithmetic in float32.
        torch.testing.assert_close(
            mine.grad.double(), other.grad, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 100
        )


def test_autocast_keeps_float32_arithmetic():
    hidden, weight, bias, target, _ = problem(dtype=torch.float32)
    plain = linear_cross_entropy(hidden, weight, target, linear_bias=bias)
    with torch.autocast("cpu", torch.bfloat16):
        under = linear_cross_entropy(hidden, weight, target, linear_bias=bias)
    assert torch.equal(plain, under)


def test_autocast_in_backward_changes_nothing():
    hidden, weight, bias, target, _ = problem(dtype=torch.float32)
    for reduction in ("sum", "none"):
        grads = []
        for enabled in (False, True):
            loss = linear_cross_entropy(hidden, weight, target, linear_bias=bias, reduction=reduction).sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                grads.append(torch.autograd.grad(loss, (hidden, weight, bias)))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_half_precision_gradients_are_scaled_before_they_are_rounded():
    """What a gradient scaler relies on; and a sum whose gradient overflows fp16 unless it is divided first."""
    hidden = torch.ones(200_000, 4).half()
    weight = torch.zeros(2, 4).half().requires_grad_()
    target = torch.zeros(200_000, dtype=torch.int64)
    (linear_cross_entropy(hidden, weight, target, reduction="sum") / 200_000).backward()
    torch.testing.assert_close(weight.grad[:, 0].float(), torch.tensor([-0.5, 0.5]))
    tiny = torch.full((1, 4), 1e-4).half()
    weight.grad = None
    (
        linear_cross_entropy(tiny, weight, target[:1], sample_weight=torch.tensor([1e-4]), reduction="sum") * 1e6
    ).backward()
    torch.testing.assert_close(weight.grad[1].float(), 0.5 * 1e2 * tiny[0].float(), rtol=1e-3, atol=0)


def test_half_precision_weights_are_converted_block_by_block():
    weight = torch.zeros(40_000, 64).bfloat16()
    scorer = blocks.LinearScorer(torch.zeros(1, 64).bfloat16(), weight, None, torch.zeros(1, dtype=torch.int64))
    assert scorer.block_shape() == (1, 40_000, False)
    wide = blocks.LinearScorer(torch.zeros(1, 4096).bfloat16(), weight.new_zeros(9000, 4096), None, scorer.target)
    assert wide.block_shape().classes * 4096 <= blocks.CUT_ELEMENTS


@pytest.mark.parametrize("changed", ["weight", "class_weight"])
def test_an_input_changed_before_backward_is_noticed(changed):
    hidden, weight, bias, target, _ = problem()
    class_weight = torch.rand(V).double()
    tensors = {"weight": weight * 1, "class_weight": class_weight}
    loss = linear_cross_entropy(
        hidden,
        tensors["weight"],
        target,
        linear_bias=bias,
        weight=class_weight,
        label_smoothing=0.1,
        reduction="none",
        ignore_index=None,
    )
    with torch.no_grad():
        tensors[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_no_gradient_is_made_without_one_to_give():
    hidden, weight, bias, target, _ = problem()
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, target, linear_bias=bias).requires_grad


def test_a_softcap_leaves_masked_classes_masked():
    hidden, weight, _, _, _ = problem()
    mask = torch.zeros(V).double()
    mask[3] = -torch.inf
    target = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    keep = [c for c in range(V) if c != 3]
    for block_size in (2, V):
        capped = linear_cross_entropy(hidden, weight, target, linear_bias=mask, softcap=2.0, block_size=block_size)
        logits = 2.0 * torch.tanh(hidden @ weight.t() / 2.0)
        expected = functional.cross_entropy(logits[:, keep], torch.tensor([0, 1, 2, 3, 4, 5, 6]))
        torch.testing.assert_close(capped, expected)
        for mine, other in zip(
            torch.autograd.grad(capped, (hidden, weight)),
            torch.autograd.grad(expected, (hidden, weight)),
            strict=True,
        ):
            torch.testing.assert_close(mine, other)


def test_a_graph_may_be_walked_twice():
    hidden, weight, bias, target, _ = problem()
    loss = linear_cross_entropy(hidden, weight, target, linear_bias=bias)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, weight))
    for one, three in zip(first, second, strict=True):
        torch.testing.assert_close(3 * one, three)


GOOD = {
    "input": torch.zeros(3, D),
    "linear_weight": torch.zeros(V, D),
    "target": torch.zeros(3, dtype=torch.int64),
}
BAD = [
    ({"input": torch.zeros(3, D + 1)}, ValueError, r"input: expected shape \(\.\.\., 5\), got \(3, 6\)"),
    ({"input": torch.zeros(3, D, dtype=torch.int64)}, TypeError, "input: expected a floating-point"),
    ({"input": torch.full((3, D), torch.nan)}, ValueError, r"input: expected finite values, got nan at \(0, 0\)"),
    ({"input": torch.full((3, D), torch.inf)}, ValueError, "input: expected finite values, got inf"),
    ({"linear_weight": torch.zeros(V)}, ValueError, "linear_weight: expected shape"),
    ({"linear_weight": torch.zeros(0, D)}, ValueError, "at least one class"),
    ({"linear_bias": torch.full((V,), -torch.inf)}, ValueError, "linear_bias: expected a class that is not masked"),
    ({"label_smoothing": "a"}, TypeError, "label_smoothing: expected a number, got 'a'"),
    ({"linear_bias": torch.zeros(V + 1)}, ValueError, r"linear_bias: expected shape \(11,\)"),
    ({"target": torch.tensor([0, V, 0])}, ValueError, r"target: expected class ids in \[0, 11\), got 11 at \(1,\)"),
    ({"target": torch.tensor([0, -1, 0])}, ValueError, "got -1"),
    ({"target": torch.zeros(3)}, TypeError, "target: expected int64 class ids, got dtype torch.float32"),
    ({"target": torch.zeros(3, dtype=torch.int32)}, TypeError, "got dtype torch.int32"),
    ({"target": torch.zeros(4, dtype=torch.int64)}, ValueError, r"target: expected shape \(3,\)"),
    ({"weight": torch.zeros(V - 1)}, ValueError, "weight: expected shape"),
    ({"sample_weight": torch.zeros(2)}, ValueError, "sample_weight: expected shape"),
    (
        {"sample_weight": torch.tensor([1.0, -1.0, 1.0])},
        ValueError,
        "sample_weight: expected weights of at least 0",
    ),
    ({"sample_weight": torch.tensor([1.0, torch.nan, 1.0])}, ValueError, "sample_weight: expected finite"),
    ({"reduction": "avg"}, ValueError, "reduction: expected one of none, mean, sum, got 'avg'"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
    ({"temperature": 0.0}, ValueError, "temperature: expected a finite number greater than 0, got 0"),
    ({"softcap": -1.0}, ValueError, "softcap"),
    ({"z_loss": float("nan")}, ValueError, "z_loss"),
    ({"block_size": 0}, ValueError, "block_size: expected an integer of at least 1, got 0"),
    ({"block_size": 2.0}, TypeError, "block_size"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        linear_cross_entropy(**{**GOOD, **change})
