"""Identities of the sampled losses, and what they refuse."""

import pytest
import torch

from vastmax import functional as F

N, V = 6, 7


def logits(seed=0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(N, V, generator=g, dtype=torch.float64).requires_grad_(),
        torch.randint(V, (N,), generator=g),
        g,
    )


def test_all_classes_once_is_the_full_softmax_in_value_and_gradient():
    s, y, g = logits()
    every = torch.arange(V)
    none = torch.zeros(V, dtype=torch.float64)
    sampled = F.sampled_softmax_loss(
        s.gather(-1, y[:, None]).squeeze(-1), s, none[y], none, mask=every == y[:, None], reduction="none"
    )
    full = torch.nn.functional.cross_entropy(s, y, reduction="none")
    torch.testing.assert_close(sampled, full)
    upstream = torch.randn(N, generator=g, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s, upstream)[0] for loss in (sampled, full)))


def test_a_constant_in_the_log_counts_cancels_in_the_softmax_alone():
    s, _, g = logits()
    counts = torch.rand(V, generator=g).double().log()
    for shift in (-3.0, 7.0):
        plain = F.sampled_softmax_loss(s[:, 0], s[:, 1:], counts[:1].expand(N), counts[1:])
        shifted = F.sampled_softmax_loss(s[:, 0], s[:, 1:], counts[:1].expand(N) + shift, counts[1:] + shift)
        torch.testing.assert_close(plain, shifted)
        assert not torch.isclose(
            F.nce_loss(s[:, 0], s[:, 1:], counts[:1].expand(N), counts[1:]),
            F.nce_loss(s[:, 0], s[:, 1:], counts[:1].expand(N) + shift, counts[1:] + shift),
        )


def test_the_noise_term_is_a_sum():
    zero = torch.zeros(1)
    for k in (1, 5, 50):
        for loss in (
            F.nce_loss(zero, zero.expand(1, k), zero, zero.expand(k)),
            F.negative_sampling_loss(zero, zero.expand(1, k)),
        ):
            torch.testing.assert_close(loss, (1 + k) * torch.tensor(2.0).log())


@pytest.mark.parametrize("loss", [F.sampled_softmax_loss, F.nce_loss])
def test_an_infinite_count_counts_for_nothing(loss):
    s, _, g = logits()
    count = torch.rand(V - 1, generator=g).double().log()
    padded = torch.cat([count, torch.tensor([torch.inf]).double()])
    sampled = torch.cat([s[:, 1:], torch.full((N, 1), 5.0, dtype=torch.float64)], -1)
    ours = loss(s[:, 0], sampled, count[:1].expand(N), padded, reduction="none")
    torch.testing.assert_close(ours, loss(s[:, 0], s[:, 1:], count[:1].expand(N), count, reduction="none"))
    assert torch.autograd.grad(ours.sum(), s)[0].isfinite().all()


def test_smoothed_over_all_classes_once_is_torchs_smoothed_loss():
    s, y, g = logits()
    none = torch.zeros(V, dtype=torch.float64)
    ours = F.sampled_softmax_loss(
        s.gather(-1, y[:, None]).squeeze(-1), s, none[y], none,
        target_mask=torch.arange(V) == y[:, None], label_smoothing=0.3, num_classes=V, reduction="none",
    )  # fmt: skip
    theirs = torch.nn.functional.cross_entropy(s, y, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(N, generator=g, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(loss, s, upstream)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_smoothed_losses_are_bounded_by_zero(size):
    """Whatever the draws: also where candidates weigh more than their share, as rare classes do."""
    s, _, g = logits()
    count = (0.01 * torch.rand(V - 1, generator=g, dtype=torch.float64)).log()
    for shift in (0.0, -size, size):
        loss = F.sampled_softmax_loss(
            size * s[:, 0] + shift, size * s[:, 1:], count[:1].expand(N), count,
            label_smoothing=0.9, num_classes=V, reduction="none",
        )  # fmt: skip
        assert (loss >= 0).all()
        assert loss.isfinite().all()


def test_smoothing_needs_the_number_of_classes():
    zeros = torch.zeros(2, 3)
    for options, message in [
        ({"label_smoothing": 0.1}, "num_classes: expected V beside label_smoothing=0.1, got None"),
        ({"label_smoothing": 1.5}, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ({"label_smoothing": 0.1, "num_classes": 0}, "num_classes: expected an integer of at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            F.sampled_softmax_loss(zeros[:, 0], zeros, zeros[:, 0], zeros[0], **options)


def test_a_masked_target_is_infinitely_wrong():
    s = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0]])
    count = torch.zeros(3)
    assert F.sampled_softmax_loss(s[:, 0], s[:, 1:], count[:1], count).isposinf()
    assert F.importance_sampled_softmax_loss(s[:, 0], s[:, 1:], count).isposinf()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampled_logit": torch.zeros(3, 4)}, r"sampled_logit: expected shape \(2, 'K'\), got \(3, 4\)"),
        ({"target_log_count": torch.zeros(3)}, r"target_log_count: expected shape \(2,\)"),
        (
            {"sampled_log_count": torch.zeros(5)},
            r"sampled_log_count: expected shape \(4,\) or \(2, 4\), got \(5,\)",
        ),
        (
            {"target_log_count": torch.tensor([0.0, -torch.inf])},
            "target_log_count: expected finite values, got -inf",
        ),
        ({"mask": torch.zeros(2, 5, dtype=torch.bool)}, "mask: expected shape"),
        ({"reduction": "batch"}, "reduction: expected one of"),
    ],
)
@pytest.mark.parametrize("loss", [F.sampled_softmax_loss, F.nce_loss])
def test_errors(loss, change, message):
    good = {
        "target_logit": torch.zeros(2),
        "sampled_logit": torch.zeros(2, 4),
        "target_log_count": torch.zeros(2),
        "sampled_log_count": torch.zeros(4),
    }
    with pytest.raises(ValueError, match=message):
        loss(**{**good, **change})
