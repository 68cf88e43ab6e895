"""The softmax and the information measures: published values, shifts, masks, identities."""

import pytest
import torch

from vastmax import functional as F

LOGITS = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1.0, 2.0, 3.0], [0.09003057, 0.24472847, 0.66524096]),
        ([1000.0, 1001.0, 1002.0], [0.09003057, 0.24472847, 0.66524096]),
        ([0.2, 0.3, 0.5], [0.2894, 0.3199, 0.3907]),
        ([1e4, -1e4, 0.0], [1.0, 0.0, 0.0]),
        ([0.0, -torch.inf, 0.0], [0.5, 0.0, 0.5]),
    ],
)
def test_softmax_values(logits, expected):
    torch.testing.assert_close(F.softmax(torch.tensor(logits)), torch.tensor(expected), atol=5e-5, rtol=0)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_class_axis(dim):
    moved = LOGITS.movedim(dim, -1)
    for function in (F.hardmax, F.softmax, F.log_softmax):
        torch.testing.assert_close(function(LOGITS, dim).movedim(dim, -1), function(moved))
    torch.testing.assert_close(F.entropy(LOGITS, dim), F.entropy(moved))


def test_softmax_is_shift_invariant_and_sums_to_one():
    shifted = LOGITS + torch.randn(3, 4, 1, dtype=torch.float64)
    torch.testing.assert_close(F.softmax(LOGITS), F.softmax(shifted))
    torch.testing.assert_close(F.softmax(LOGITS).sum(-1), torch.ones(3, 4, dtype=torch.float64))
    torch.testing.assert_close(F.log_softmax(LOGITS).exp(), F.softmax(LOGITS))


def test_hardmax_is_the_cold_limit():
    torch.testing.assert_close(F.hardmax(LOGITS), F.softmax(LOGITS * 1e6))
    assert torch.equal(F.hardmax(torch.tensor([2.0, 2.0])).sum(), torch.tensor(1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = LOGITS.to(dtype)
    assert F.softmax(logits).dtype == dtype
    assert torch.equal(F.softmax(logits), logits.float().softmax(-1).to(dtype))
    assert torch.equal(F.entropy(logits), F.entropy(logits.float()))


def test_cross_entropy_is_entropy_plus_divergence():
    other = torch.randn(3, 4, 6, dtype=torch.float64)
    p = F.softmax(other)
    torch.testing.assert_close(
        F.cross_entropy(LOGITS, p, reduction="none"),
        F.entropy(other) + F.kl_divergence(LOGITS, p, reduction="none"),
    )
    assert (F.kl_divergence(LOGITS, p, reduction="none") > 0).all()
    torch.testing.assert_close(F.kl_divergence(other, p), torch.tensor(0.0, dtype=torch.float64))


def test_known_cross_entropies():
    p, q = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.3, 0.4, 0.3])
    torch.testing.assert_close(F.cross_entropy(q.log(), p), torch.tensor(0.9163), atol=5e-5, rtol=0)
    assert F.cross_entropy(p.log(), p).item() == 0.0
    assert F.kl_divergence(p.log(), p).item() == 0.0
    assert F.entropy(p.log()).item() == 0.0
    torch.testing.assert_close(F.entropy(torch.zeros(7)), torch.tensor(7.0).log())


def test_class_ids_are_one_hot_targets():
    target = torch.randint(6, (3, 4))
    torch.testing.assert_close(
        F.cross_entropy(LOGITS, target, reduction="none"),
        F.cross_entropy(LOGITS, torch.nn.functional.one_hot(target, 6).double(), reduction="none"),
    )


def test_weights_and_ignored_rows():
    target, w = torch.randint(6, (3, 4)), torch.rand(3, 4).double()
    target[0] = -100
    per_row = F.cross_entropy(LOGITS, target, reduction="none")
    assert torch.equal(per_row[0], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(F.cross_entropy(LOGITS, target, sample_weight=w), (w * per_row).sum() / w[1:].sum())
    torch.testing.assert_close(F.cross_entropy(LOGITS, target, reduction="sum"), per_row.sum())
    assert torch.equal(
        F.cross_entropy(LOGITS[1:], target[1:], ignore_index=None), F.cross_entropy(LOGITS[1:], target[1:])
    )
    nothing = F.cross_entropy(LOGITS.clone().requires_grad_(), torch.full_like(target, -100))
    assert nothing.item() == 0.0
    assert nothing.requires_grad


@pytest.mark.parametrize("function", [F.entropy, F.log_softmax, F.softmax])
def test_gradcheck(function):
    assert torch.autograd.gradcheck(function, LOGITS.clone().requires_grad_())


def test_gradients_are_finite_where_a_class_is_masked():
    logits = torch.tensor([[0.3, -torch.inf, 1.0]], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([[0.4, 0.0, 0.6]], dtype=torch.float64)
    for loss in (F.entropy(logits).sum(), F.cross_entropy(logits, p), F.kl_divergence(logits, p)):
        (grad,) = torch.autograd.grad(loss, logits)
        assert grad.isfinite().all()
        assert grad[0, 1] == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: F.softmax(torch.full((2, 3), -torch.inf)), ValueError, "logits: expected a finite largest logit"),
        (lambda: F.softmax(torch.tensor([0.0, torch.nan])), ValueError, "got nan"),
        (
            lambda: F.softmax(torch.tensor([0, 1])),
            TypeError,
            "logits: expected a floating-point tensor, got torch.int",
        ),
        (lambda: F.softmax(torch.zeros(2, 0)), ValueError, "at least one class"),
        (lambda: F.cross_entropy(LOGITS, torch.zeros(3, dtype=torch.int64)), ValueError, "target: expected shape"),
        (lambda: F.cross_entropy(LOGITS[0, 0], torch.tensor(6)), ValueError, r"target: .* \[0, 6\), got 6"),
        (lambda: F.cross_entropy(LOGITS, LOGITS), ValueError, "probabilities that sum to 1"),
        (
            lambda: F.kl_divergence(LOGITS, F.softmax(LOGITS)[0]),
            ValueError,
            r"target: expected shape \(3, 4, 6\), the probability",
        ),
        (lambda: F.kl_divergence(LOGITS, -F.softmax(LOGITS)), ValueError, "smallest entry of -"),
        (lambda: F.softmax(LOGITS, 3), ValueError, r"dim: expected an axis of logits of shape \(3, 4, 6\), got 3"),
        (lambda: F.entropy(LOGITS, -4), ValueError, r"dim: expected an axis of .*, got -4"),
        (lambda: F.kl_divergence(LOGITS[0, 0], torch.arange(6)), TypeError, "target: .* got dtype torch.int64"),
        (lambda: F.kl_divergence(LOGITS[0, 0], [1.0] + [0.0] * 5), TypeError, "target: .* got list"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num_classes", [3, 2000, 60_000])
def test_probabilities_are_accepted_as_their_dtype_rounds_them_and_no_further(num_classes, dtype):
    g = torch.Generator().manual_seed(0)
    logits = torch.zeros(num_classes)
    p = (2 * torch.randn(num_classes, generator=g, dtype=torch.float64)).softmax(-1).to(dtype)
    assert F.cross_entropy(logits, p).isfinite()
    for factor in (0.0, 0.9, 1.1, 2.0):
        with pytest.raises(ValueError, match="target: expected probabilities that sum to 1"):
            F.cross_entropy(logits, (factor * p.double()).to(dtype))
