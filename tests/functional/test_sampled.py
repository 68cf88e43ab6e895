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


def test_nce_gradient_tends_to_maximum_likelihoods():
    """In expectation over the noise, and at self-normalised logits, the gradient nears softmax - onehot."""
    g = torch.Generator().manual_seed(3)
    s = torch.randn(50, generator=g, dtype=torch.float64).log_softmax(-1).requires_grad_()
    q = torch.rand(50, generator=g).double()
    q = q / q.sum()
    target = 4
    exact = s.softmax(-1).detach() - torch.nn.functional.one_hot(torch.tensor(target), 50)
    cosines = []
    for k in (1, 10, 100, 1000, 10_000):
        log_count = (k * q).log()
        # Every class stands for its expected count of draws: the loss is linear in the noise term.
        positive = F.nce_loss(s[target], s[:0], log_count[target], log_count[:0])
        noise = F.nce_loss(
            s.new_full((50,), 60.0), s[:, None], s.new_zeros(50), log_count[:, None], reduction="none"
        )
        (grad,) = torch.autograd.grad(positive + (k * q * noise).sum(), s)
        cosines.append(torch.cosine_similarity(grad, exact, dim=0).item())
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.995
    assert cosines[-1] > 0.99999


def test_first_nce_loss_with_and_without_a_start_at_uniform():
    v, k = 10_000, 100
    log_count = torch.tensor([k / v], dtype=torch.float64).log()
    for start, figure in ((torch.zeros(1).double(), 461.5), (-torch.tensor([v]).double().log(), 5.6)):
        loss = F.nce_loss(start, start.expand(1, k), log_count, log_count.expand(k))
        assert loss.item() == pytest.approx(figure, abs=0.05)


def test_the_noise_term_is_a_sum():
    zero = torch.zeros(1)
    for k in (1, 5, 50):
        for loss in (
            F.nce_loss(zero, zero.expand(1, k), zero, zero.expand(k)),
            F.negative_sampling_loss(zero, zero.expand(1, k)),
        ):
            torch.testing.assert_close(loss, (1 + k) * torch.tensor(2.0).log())


LOSSES = {
    "sampled_softmax": F.sampled_softmax_loss,
    "nce": F.nce_loss,
    "negative_sampling": lambda t, s, _tc, _sc, **options: F.negative_sampling_loss(t, s, **options),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("own_counts", [False, True])
def test_gradcheck_and_mask_is_subset(loss, own_counts):
    s, _, g = logits(1)
    target_count = torch.rand(N, generator=g).double().log()
    sampled_count = torch.rand(*((N,) if own_counts else ()), V - 1, generator=g).double().log()
    mask = torch.zeros(N, V - 1, dtype=torch.bool)
    mask[:, 2] = True

    def rows(s):
        return loss(s[:, 0], s[:, 1:], target_count, sampled_count, mask=mask, reduction="none")

    assert torch.autograd.gradcheck(rows, s)
    keep = [0, 1, 3, 4, 5]
    subset = loss(s[:, 0], s[:, 1:][:, keep], target_count, sampled_count[..., keep], reduction="none")
    torch.testing.assert_close(rows(s), subset)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_no_candidate_left(loss):
    s, _, _ = logits()
    none = torch.zeros(N).double()
    everything = torch.ones(N, V - 1, dtype=torch.bool)
    masked = loss(s[:, 0], s[:, 1:], none, none.new_zeros(V - 1), mask=everything, reduction="none")
    empty = loss(s[:, 0], s[:, :0], none, none[:0], reduction="none")
    torch.testing.assert_close(masked, empty)
    (grad,) = torch.autograd.grad(masked.sum(), s)
    assert grad.isfinite().all()


@pytest.mark.parametrize("loss", [F.sampled_softmax_loss, F.nce_loss])
def test_an_infinite_count_counts_for_nothing(loss):
    s, _, g = logits()
    count = torch.rand(V - 1, generator=g).double().log()
    padded = torch.cat([count, torch.tensor([torch.inf]).double()])
    sampled = torch.cat([s[:, 1:], torch.full((N, 1), 5.0, dtype=torch.float64)], -1)
    ours = loss(s[:, 0], sampled, count[:1].expand(N), padded, reduction="none")
    torch.testing.assert_close(ours, loss(s[:, 0], s[:, 1:], count[:1].expand(N), count, reduction="none"))
    assert torch.autograd.grad(ours.sum(), s)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_is_computed_in_float32(loss, dtype):
    s = logits()[0].detach().to(dtype)
    count = torch.rand(N).log()
    ours = loss(s[:, 0], s[:, 1:], count, count)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, loss(s[:, 0].float(), s[:, 1:].float(), count, count))


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
