"""What every loss on logits promises, checked for every loss of the table."""

import pytest
import torch
from losses import LOG_COUNT, LOSSES, K

from vastmax import functional as F


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def loss(request):
    return request.param


@pytest.fixture
def sampled(loss):
    if not loss.sampled:
        pytest.skip("its candidates are all classes")
    return loss


def logits(*rows, seed=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*rows, 1 + K, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def upstream(loss):
    return torch.randn(loss.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(loss.dtype)


def gradient(loss, s):
    return torch.autograd.grad(loss, s, upstream(loss))[0]


@pytest.mark.parametrize("rows", [(), (6,), (2, 3), (1, 2, 3)])
def test_leading_axes_are_rows(loss, rows):
    s = logits(*rows)
    per_row = loss(s, reduction="none")
    assert per_row.shape == rows
    torch.testing.assert_close(loss(s.reshape(-1, 1 + K), reduction="none"), per_row.reshape(-1))


def test_reductions(loss):
    s = logits(5)
    per_row = loss(s, reduction="none")
    torch.testing.assert_close(loss(s), per_row.mean())
    torch.testing.assert_close(loss(s, reduction="mean"), per_row.mean())
    torch.testing.assert_close(loss(s, reduction="sum"), per_row.sum())
    with pytest.raises(ValueError, match="reduction: expected one of none, mean, sum, got 'batch'"):
        loss(s, reduction="batch")


def test_first_and_second_derivatives(loss):
    """Under the random directions that gradcheck takes; plain operations, so second derivatives too."""
    s = logits(3)
    assert torch.autograd.gradcheck(lambda x: loss(x, reduction="none"), s)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, reduction="none"), s)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    half = logits(40, dtype=dtype)
    ours = loss(half, reduction="none")
    assert ours.dtype == torch.float32
    full = half.detach().double().requires_grad_()
    theirs = loss(full, reduction="none")
    torch.testing.assert_close(ours.double(), theirs, rtol=3e-6, atol=3e-6)
    mine = gradient(ours, half)
    assert mine.dtype == dtype
    rounding = torch.finfo(dtype).eps
    other = torch.autograd.grad(theirs, full, upstream(ours).double())[0]
    torch.testing.assert_close(mine.double(), other, rtol=2 * rounding, atol=rounding)


def test_autocast_changes_nothing(loss):
    s = logits(5, dtype=torch.float32)
    plain = loss(s, reduction="none")
    with torch.autocast("cpu", torch.bfloat16):
        under = loss(s, reduction="none")
    assert torch.equal(under, plain)


def test_non_contiguous_logits(loss):
    s = logits(4)
    strided = s.detach().t().contiguous().t().requires_grad_()
    assert not strided.is_contiguous()
    ours, theirs = loss(strided, reduction="none"), loss(s, reduction="none")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, strided), gradient(theirs, s))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("rows", [(0,), (2, 0)])
def test_no_row(loss, rows, reduction):
    s = logits(*rows)
    value = loss(s, reduction=reduction)
    assert torch.equal(value, torch.zeros(rows if reduction == "none" else (), dtype=torch.float64))
    assert torch.autograd.grad(value.sum(), s)[0].shape == s.shape


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits_stay_finite(loss, size):
    signs = torch.tensor([[1, -1, 1, -1, 1, -1, 1], [-1, 1, -1, 1, -1, 1, -1]])
    s = (size * signs).float().requires_grad_()
    value = loss(s, reduction="none")
    assert value.isfinite().all()
    assert gradient(value, s).isfinite().all()


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("lead", [-8, 0, 8, 16, 24])
@pytest.mark.parametrize(
    "loss", [x for x in LOSSES.values() if x.shifts], ids=[n for n in LOSSES if LOSSES[n].shifts]
)
def test_an_offset_of_all_logits_costs_no_digit(loss, offset, lead):
    """Steps of 8 are exact in float32 beside 1e8, so that what is lost is lost by the loss; down to 1e-9 nats."""
    steps = 8 * torch.randint(-4, 1, (5, 1 + K), generator=torch.Generator().manual_seed(2))
    steps[:, 0], steps[:, 1] = lead, 0
    s = (steps + offset).float().requires_grad_()
    exact = steps.double().requires_grad_()
    ours, theirs = loss(s, reduction="none"), loss(exact, reduction="none")
    torch.testing.assert_close(ours.double(), theirs, rtol=3e-6, atol=0)
    found = gradient(ours, s)
    torch.testing.assert_close(found.double(), gradient(theirs, exact), rtol=3e-6, atol=1e-12)
    assert found.sum(-1).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look at it
def test_compiled_gives_the_same(loss):
    s = logits(5)
    torch._dynamo.reset()
    ours = torch.compile(lambda x: loss(x, reduction="none"), backend="aot_eager")(s)
    theirs = loss(s, reduction="none")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, s), gradient(theirs, s))


def test_a_mask_leaves_candidates_out(sampled):
    s = logits(4)
    mask = torch.zeros(4, K, dtype=torch.bool)
    mask[:, -2:] = True
    ours, theirs = sampled(s, mask=mask, reduction="none"), sampled(s[..., :-2], reduction="none")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, s), gradient(theirs, s))
    mask[1] = False
    some = sampled(s, mask=mask, reduction="none")
    torch.testing.assert_close(some[1], sampled(s, reduction="none")[1])
    assert some[1] != ours[1]


def test_no_candidate_left(sampled):
    s = logits(4)
    masked = sampled(s, mask=torch.ones(4, K, dtype=torch.bool), reduction="none")
    none = sampled(s[..., :1], reduction="none")
    torch.testing.assert_close(masked, none)
    found = gradient(masked, s)
    assert found.isfinite().all()
    assert torch.equal(found[..., 1:], torch.zeros(4, K, dtype=torch.float64))


def test_every_logit_matters(loss):
    if not loss.dense:
        pytest.skip("some classes have no part in it, on purpose")
    s = logits(4)
    found = gradient(loss(s, reduction="none"), s)
    assert (found != 0).all()


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.tensor([1.0, -1.0]), ValueError, "sample_weight: expected weights of at least 0, got -1"),
        (torch.tensor([1.0, torch.nan]), ValueError, "sample_weight: expected finite values, got nan"),
        (torch.ones(3), ValueError, r"sample_weight: expected shape \(2,\), one per row, got \(3,\)"),
        ([1.0, 1.0], TypeError, "sample_weight: expected a floating-point tensor"),
    ],
)
def test_weights_of_rows_are_checked(loss, weight, error, message):
    if loss.sampled:
        pytest.skip("it takes no weights")
    with pytest.raises(error, match=message):
        loss(logits(2), sample_weight=weight)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, y: F.cross_entropy(s, y),
        lambda s, y: F.kl_divergence(s, y),
        lambda s, y: F.focal_loss(s, y),
        lambda s, y: F.logit_adjusted_cross_entropy(s, y, LOG_COUNT),
        lambda s, y: F.topk_softmax_loss(s, y, 3),
        lambda s, y: F.sparsemax_loss(s, y),
        lambda s, y: F.entmax_loss(s, y, 1.5),
    ],
    ids=["cross_entropy", "kl_divergence", "focal", "logit_adjusted", "topk_softmax", "sparsemax", "entmax"],
)
@pytest.mark.parametrize("target", [[0, 1], None])
def test_a_target_that_is_no_tensor(call, target):
    with pytest.raises(TypeError, match=r"target: expected .*, got (list|NoneType)"):
        call(logits(2), target)
