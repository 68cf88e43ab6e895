"""Functions asked for more than a gradient, with respect to everything that may want one: the right value."""

import math

import pytest
import torch
from torch.nn import functional as torchs

from derivatives import REFUSED, TORCHS_WARNINGS, assert_products, assert_slopes, differences, of_vector
from vastmax import functional as F
from vastmax.heads import InfoNCE
from vastmax.scoring import chosen_logits, linear_cross_entropy, linear_log_partition, linear_logits, linear_loss
from vastmax.scoring.blocks import LinearScorer
from vastmax.scoring.every_class import row_statistics
from vastmax.scoring.links import Sig
from vastmax.scoring.soft_cross_entropy import linear_soft_cross_entropy

pytestmark = [pytest.mark.filterwarnings(f"ignore:{warning}") for warning in TORCHS_WARNINGS]

N, D, V = 3, 4, 6
TARGET = torch.tensor([4, 0, 4])
IDS, OWN = torch.tensor([1, 4, 4]), torch.tensor([[0, 3], [2, 2], [5, 1]])
UPSTREAM = torch.linspace(-1.0, 2.0, N, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, WEIGHT, BIAS = normal(N, D), normal(V, D, seed=1), normal(V, seed=2)
KEY, NEGATIVES, LOGITS = normal(N, D, seed=3), normal(2, D, seed=5), normal(N, V)
CLASS_WEIGHT, ROW_WEIGHT = normal(V, seed=4).exp(), UPSTREAM.exp()
LINEAR = (HIDDEN, WEIGHT, BIAS)


def cross_entropy(reduction, **options):
    """Of hidden, weight, bias, class weights and the rows' weights."""

    def loss(hidden, weight, bias, class_weight, row_weight):
        found = linear_cross_entropy(
            hidden, weight, TARGET, linear_bias=bias, weight=class_weight, sample_weight=row_weight,
            reduction=reduction, **options,
        )  # fmt: skip
        return (UPSTREAM * found).sum() if reduction == "none" else found

    return loss, (*LINEAR, CLASS_WEIGHT, ROW_WEIGHT)


def hinge(logits, target, margin):
    return torchs.softplus(margin + logits - logits.gather(-1, target[:, None])).sum(-1)


def log_partition(link=None):
    def loss(hidden, weight, bias):
        log_z, logit = linear_log_partition(hidden, weight, TARGET, linear_bias=bias, link=link)
        return (UPSTREAM * log_z**2 - logit * log_z).sum()

    return loss, LINEAR


def chosen(sparse):
    def loss(hidden, weight, bias):
        found = chosen_logits(hidden, weight, IDS, OWN, linear_bias=bias, sparse=sparse)
        return sum((one.softmax(-1)[:, 0] * UPSTREAM).sum() for one in found)

    return loss, LINEAR


def statistics(hidden, weight, bias, class_weight):
    scorer = LinearScorer(hidden, weight, bias, TARGET, class_weight, temperature=0.7, block_size=4)
    return sum((UPSTREAM * (one / 10).sin()).sum() for one in row_statistics(scorer))


def contrast(loss, **options):
    """Of queries, keys and the temperature."""
    return lambda q, k, t: (UPSTREAM * loss(q, k, temperature=t.exp(), reduction="none", **options)).sum()


T = torch.tensor(math.log(0.5)).double()
PAIRS = (HIDDEN, KEY, T)
SHARE = WEIGHT[:, :N].t().softmax(-1)

CASES = {
    **{f"cross-entropy, {r}": cross_entropy(r) for r in ("none", "mean", "sum")},
    **{
        f"cross-entropy, all of it, {r}": cross_entropy(
            r, label_smoothing=0.1, z_loss=0.2, temperature=0.8, softcap=3.0, block_size=2
        )
        for r in ("none", "mean", "sum")
    },
    "cross-entropy, focal": cross_entropy("mean", focal_gamma=1.5, label_smoothing=0.2),
    "cross-entropy, one weight wanted": (
        lambda h, w: linear_cross_entropy(h, WEIGHT, TARGET, linear_bias=BIAS, sample_weight=w),
        (HIDDEN, ROW_WEIGHT),
    ),
    "cross-entropy, upstream": (
        lambda h, w, u: (u * linear_cross_entropy(h, w, TARGET, reduction="none")).sum(),
        (HIDDEN, WEIGHT, UPSTREAM),
    ),
    "cross-entropy of rows with themselves": (
        lambda x: linear_cross_entropy(x, x, torch.arange(N), temperature=2.0),
        (HIDDEN,),
    ),
    "cross-entropy of rows made of the classes": (
        lambda w: linear_cross_entropy(w[:N] * w[N:], w, TARGET, reduction="sum"),
        (WEIGHT,),
    ),
    "log-partition": log_partition(),
    "log-partition, sigsoftmax": log_partition(Sig()),
    "statistics": (statistics, (*LINEAR, CLASS_WEIGHT)),
    "logits": (lambda h, w, b: linear_logits(h, w, linear_bias=b).softmax(-1)[:, 0] @ UPSTREAM, LINEAR),
    "linear loss": (
        lambda h, w, b, m: UPSTREAM @ linear_loss(hinge, h, w, linear_bias=b, rows=(TARGET,), shared=(m,)),
        (*LINEAR, T),
    ),
    "soft cross-entropy": (
        lambda h, w, b, p: UPSTREAM @ linear_soft_cross_entropy(h, w, p, linear_bias=b, focal_gamma=0.5),
        (*LINEAR, SHARE),
    ),
    "chosen logits": chosen(sparse=False),
    "info_nce": (contrast(F.info_nce), PAIRS),
    "info_nce, hard": (contrast(F.info_nce, hard_negative_weight=0.5, labels=TARGET), PAIRS),
    "info_nce, negatives": (
        lambda q, k, n: F.info_nce(q, k, n, temperature=0.5),
        (HIDDEN, KEY, NEGATIVES),
    ),
    "info_nce of rows with themselves": (lambda x: F.info_nce(x, x, temperature=0.5), (HIDDEN,)),
    "InfoNCE, learned temperature": (
        lambda q, k, t: torch.func.functional_call(
            InfoNCE(0.5, learn_temperature=True), {"log_temperature": t}, (q, k)
        ),
        PAIRS,
    ),
    "clip_loss": (contrast(F.clip_loss), PAIRS),
    "siglip_loss": (
        lambda x, y, t, b: F.siglip_loss(x, y, temperature=t.exp(), bias=b, reduction="sum"),
        (*PAIRS, torch.tensor(-1.0).double()),
    ),
    "entmax_loss, both parts of the order": (
        lambda s, a: F.entmax_loss(s, TARGET, a, reduction="sum"),
        (BIAS + LOGITS, torch.tensor([[1.2], [1.7], [2.6]]).double()),
    ),
    "entmax": (
        lambda s, a: (F.entmax(s, a)[:, :2].sin().sum(-1) * UPSTREAM).sum(),
        (LOGITS / 2, torch.tensor([[1.2], [1.7], [2.6]]).double()),
    ),
    "log_entmax": (
        lambda s: (F.log_entmax(s, 1.3).masked_fill(F.entmax(s, 1.3) == 0, 0.0).sin().sum(-1) * UPSTREAM).sum(),
        (LOGITS / 2,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    loss, inputs = CASES[name]
    f, x = of_vector(loss, inputs)
    v = normal(len(x), seed=9)
    wanted = differences(f, x, v)
    assert wanted.abs().max() > 1e-3
    assert_products(f, x, v, wanted)
    assert_slopes(f, x, v)


def test_torch_agrees():
    """The Hessian of torch's own operators, not only central differences of this library's gradient."""
    f, x = of_vector(*cross_entropy("none"))

    def dense(hidden, weight, bias, class_weight, row_weight):
        rows = torchs.cross_entropy(torchs.linear(hidden, weight, bias), TARGET, reduction="none")
        return UPSTREAM @ (row_weight * class_weight[TARGET] * rows)

    wanted = torch.autograd.functional.hessian(of_vector(dense, CASES["cross-entropy, none"][1])[0], x)
    torch.testing.assert_close(torch.autograd.functional.hessian(f, x), wanted)


@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_gradients_are_differentiated_as_dense_ones(sparse):
    leaves = [x.clone().requires_grad_() for x in LINEAR]
    found = torch.autograd.grad(chosen(sparse)[0](*leaves), leaves, create_graph=True)
    assert not any(one.is_sparse for one in found)
    second = torch.autograd.grad(sum(one.square().sum() for one in found), leaves)
    f, x = of_vector(*chosen(sparse=False))
    g = torch.cat([one.detach().reshape(-1) for one in found])
    torch.testing.assert_close(torch.cat([one.to_dense().reshape(-1) for one in second]), 2 * differences(f, x, g))


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_gradients_keep_their_dtypes(reduction):
    """Half precision in, as autocast makes it, under a float32 layer: as without create_graph."""
    dtypes = (torch.bfloat16, torch.float32, torch.float32)
    leaves = [x.to(dtype).requires_grad_() for x, dtype in zip(LINEAR, dtypes, strict=True)]
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = linear_cross_entropy(*leaves[:2], TARGET, linear_bias=leaves[2], reduction=reduction).sum()
            once = torch.autograd.grad(loss, leaves, retain_graph=True)
            twice = torch.autograd.grad(loss, leaves, create_graph=True)
        for one, other in zip(once, twice, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other.detach())


@pytest.mark.parametrize(
    ("name", "loss", "batched"),
    [
        ("input", lambda h: linear_cross_entropy(h, WEIGHT, TARGET), HIDDEN),
        ("linear_bias", lambda b: linear_cross_entropy(HIDDEN, WEIGHT, TARGET, linear_bias=b), BIAS),
        ("target", lambda t: linear_cross_entropy(HIDDEN, WEIGHT, t), TARGET),
        ("sample_weight", lambda w: linear_cross_entropy(HIDDEN, WEIGHT, TARGET, sample_weight=w), ROW_WEIGHT),
        ("input", lambda h: linear_log_partition(h, WEIGHT).log_partition, HIDDEN),
        ("ids", lambda ids: chosen_logits(HIDDEN, WEIGHT, ids)[0], IDS),
        ("query", lambda q: F.info_nce(q, KEY), HIDDEN),
        ("temperature", lambda t: F.info_nce(HIDDEN, KEY, temperature=t.exp()), T),
        ("labels", lambda labels: F.info_nce(HIDDEN, KEY, labels=labels), TARGET),
        ("image", lambda x: F.clip_loss(x, KEY), HIDDEN),
        ("text", lambda y: F.siglip_loss(HIDDEN, y), KEY),
        ("logits", lambda s: F.entmax_loss(s, TARGET, 1.5), LOGITS),
        ("alpha", lambda a: F.entmax(LOGITS, a.exp() + 1), T),
    ],
)
def test_vmap_is_refused_by_name(name, loss, batched):
    with pytest.raises(NotImplementedError, match=f"^{name}: {REFUSED}"):
        torch.func.vmap(loss)(torch.stack([batched, batched]))


@pytest.mark.parametrize(
    ("loss", "batched"),
    [
        (lambda w: linear_cross_entropy(HIDDEN, w, TARGET), WEIGHT),
        (lambda w: linear_cross_entropy(HIDDEN, w, TARGET, reduction="none"), WEIGHT),
        (lambda w: linear_log_partition(HIDDEN, w).log_partition, WEIGHT),
        (lambda h: chosen_logits(h, WEIGHT, IDS, OWN), HIDDEN),
        (lambda h: linear_loss(hinge, h, WEIGHT, rows=(TARGET,), shared=(T,)), HIDDEN),
    ],
)
def test_vmap_of_what_is_not_looked_at(loss, batched):
    """Many layers at a time, as `stack_module_state` makes them."""
    both = torch.stack([batched, -2 * batched])
    ours = torch.func.vmap(loss)(both)
    theirs = tuple(loss(one) for one in both)
    if not isinstance(ours, tuple):
        ours, theirs = (ours,), tuple((one,) for one in theirs)
    for i, of_both in enumerate(ours):
        torch.testing.assert_close(of_both, torch.stack([one[i] for one in theirs]))


@pytest.mark.parametrize("gamma", [0.5, 1.5])
def test_the_focal_term_of_a_certain_class(gamma):
    """Where 1 - p is 0 the derivatives of its power are infinite, and those by the logits 0."""
    logits = torch.tensor([[0.0, -60.0, -60.0], [0.3, 0.0, 1.0]], dtype=torch.float64)

    def loss(weight):
        return linear_cross_entropy(torch.eye(2).double(), weight, TARGET[:2] * 0, focal_gamma=gamma)

    v = normal(3, 2)
    f, x = of_vector(loss, [logits.t().contiguous()])
    assert_products(f, x, v.reshape(-1), differences(f, x, v.reshape(-1)))
