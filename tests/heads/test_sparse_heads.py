"""The heads of sparse distributions against the functions of their logits, in value and in every gradient."""

import pytest
import torch
from largest_tensor import LargestTensor

from vastmax import functional as F
from vastmax.functional import entmax, entmax_loss, log_entmax, topk_softmax, topk_softmax_loss
from vastmax.heads import Entmax, TopKSoftmax
from vastmax.scoring import blocks

D, V, K = 4, 9, 3


def entmax_head(alpha=1.5, **options):
    torch.manual_seed(3)
    return Entmax(D, options.pop("num_classes", V), alpha, **{"dtype": torch.float64, **options})


def topk_head(k=K, **options):
    torch.manual_seed(3)
    return TopKSoftmax(D, options.pop("num_classes", V), k, **{"dtype": torch.float64, **options})


CASES = {
    **{f"Entmax {a}": (lambda a=a, **o: entmax_head(a, **o)) for a in (1.0, 1 + 1e-7, 1.5, 2.0, 3.0)},
    "Entmax learned": lambda **o: entmax_head(1.3, learn_alpha=True, **o),
    "Entmax, no bias, T": lambda **o: entmax_head(1.3, bias=False, temperature="learned", **o),
    "TopKSoftmax": topk_head,
    "TopKSoftmax, T": lambda **o: topk_head(5, temperature=0.5, **o),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def make(request):
    return request.param


@pytest.fixture(autouse=True)
def one_row_at_a_time(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 4 * V)


def batch(*rows):
    g = torch.Generator().manual_seed(0)
    hidden = 2 * torch.randn(*rows, D, generator=g, dtype=torch.float64)
    return hidden.requires_grad_(), torch.randint(V, rows, generator=g), g


def logits_of(head, hidden):
    return torch.nn.functional.linear(hidden, head.weight, head.bias) / head.temperature


def loss_of(head, hidden, target, **options):
    logits = logits_of(head, hidden)
    if isinstance(head, Entmax):
        return entmax_loss(logits, target, head.alpha, **options)
    return topk_softmax_loss(logits, target, head.k, **options)


def probabilities_of(head, hidden):
    logits = logits_of(head, hidden)
    return entmax(logits, head.alpha) if isinstance(head, Entmax) else topk_softmax(logits, head.k)


def assert_same(ours, theirs, inputs, upstream):
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(x, inputs, upstream) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [(), (6,), (2, 3)])
def test_loss_is_the_function_of_the_logits(make, rows):
    head, (hidden, target, g) = make(reduction="none"), batch(*rows)
    u = torch.randn(rows, generator=g, dtype=torch.float64)
    expected = loss_of(head, hidden, target, reduction="none")
    assert_same(head(hidden, target), expected, [hidden, *head.parameters()], u)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reductions(make, reduction):
    head, (hidden, target, g) = make(reduction=reduction, ignore_index=4), batch(5)
    target[1] = 4
    w = torch.rand(5, generator=g, dtype=torch.float64)
    options = {"ignore_index": 4, "sample_weight": w, "reduction": reduction}
    ours, theirs = head(hidden, target, sample_weight=w), loss_of(head, hidden, target, **options)
    assert_same(ours, theirs, [hidden, *head.parameters()], torch.ones_like(ours))


def test_distribution(make):
    head, (hidden, target, _) = make(), batch(2, 3)
    p = probabilities_of(head, hidden).detach()
    log_p = head.log_prob(hidden)
    torch.testing.assert_close(log_p.exp(), p)
    assert torch.equal(log_p.isneginf(), p == 0)
    nll = head.nll(hidden, target)
    torch.testing.assert_close(nll, -p.gather(-1, target.unsqueeze(-1)).squeeze(-1).log())
    for k in (1, 4, V):
        values, indices = head.topk(hidden, k)
        torch.testing.assert_close(values, log_p.gather(-1, indices))
        torch.testing.assert_close(values.exp(), p.topk(k).values)
        assert all(len(set(row)) == k for row in indices.reshape(-1, k).tolist())


def test_gradient_of_nll(make):
    head, (hidden, _, g) = make(), batch(6)
    target = logits_of(head, hidden).argmax(-1)
    u = torch.randn(6, generator=g, dtype=torch.float64)
    log_p = probabilities_of(head, hidden).gather(-1, target.unsqueeze(-1)).squeeze(-1).log()
    assert_same(head.nll(hidden, target), -log_p, [hidden, *head.parameters()], u)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 3.0])
def test_log_partition_normalises_entmax(alpha):
    head, (hidden, _, _) = entmax_head(alpha), batch(2, 3)
    s = logits_of(head, hidden) - head.log_partition(hidden).unsqueeze(-1)
    p = s.exp() if alpha == 1 else (1 + (alpha - 1) * s).clamp(min=0) ** (1 / (alpha - 1))
    torch.testing.assert_close(p, probabilities_of(head, hidden))
    u = torch.randn(2, 3, dtype=torch.float64)
    slope = torch.where(p > 0, p ** (2 - alpha), 0.0)
    (found,) = torch.autograd.grad(head.log_partition(hidden), head.bias, u)
    torch.testing.assert_close(found, (u.unsqueeze(-1) * slope / slope.sum(-1, keepdim=True)).sum((0, 1)))


def test_log_partition_of_topk():
    head, (hidden, _, _) = topk_head(), batch(2, 3)
    expected = logits_of(head, hidden).topk(K).values.logsumexp(-1)
    inputs = [hidden, *head.parameters()]
    assert_same(head.log_partition(hidden), expected, inputs, torch.randn(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-9, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_start_at_gives_these_probabilities(alpha, temperature):
    head = entmax_head(alpha, temperature=temperature)
    p = torch.tensor([0.5, 0.2, 0.1, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01], dtype=torch.float64)
    head.start_at(p.log() + 3.0)
    zero = torch.zeros(D, dtype=torch.float64)
    torch.testing.assert_close(head.log_prob(zero).exp(), p)
    torch.testing.assert_close(head.log_partition(zero).item(), 0.0, atol=1e-12, rtol=0)
    top = topk_head(temperature=temperature)
    top.start_at(p.log())
    torch.testing.assert_close(top.log_prob(zero).exp(), torch.tensor([0.5, 0.2, 0.1] + [0.0] * 6).double() / 0.8)


@pytest.mark.parametrize("weighted", [False, True])
def test_entmax_trains_on_probabilities(weighted):
    v = torch.rand(V).double() if weighted else None
    for learn in (False, True):
        head, (hidden, _, g) = entmax_head(1.4, learn_alpha=learn, class_weight=v), batch(2, 3)
        target = F.softmax(torch.randn(2, 3, V, generator=g, dtype=torch.float64))
        target[0, 0] = torch.eye(V)[2]
        w = torch.rand(2, 3, generator=g, dtype=torch.float64)
        rows = loss_of(head, hidden, target, reduction="none")
        mass = (target * v).sum(-1) if weighted else torch.ones_like(rows)
        expected = (w * mass * rows).sum() / (w * mass).sum()
        ours = head(hidden, target, sample_weight=w)
        assert_same(ours, expected, [hidden, *head.parameters()], torch.ones_like(ours))


def test_topk_takes_no_probabilities():
    hidden, _, _ = batch(2)
    with pytest.raises(TypeError, match="TopKSoftmax"):
        topk_head()(hidden, torch.full((2, V), 1 / V).double())


def test_learned_alpha():
    head = entmax_head(1.25, learn_alpha=True)
    torch.testing.assert_close(head.alpha.item(), 1.25)
    assert set(dict(head.named_parameters())) == {"weight", "bias", "raw_alpha"}
    assert "raw_alpha" not in entmax_head().state_dict()
    hidden, target, _ = batch(4)
    before = head(hidden, target)
    before.backward()
    with torch.no_grad():
        head.raw_alpha -= 1e-3 * head.raw_alpha.grad.sign()
    assert head(hidden, target) < before
    with torch.no_grad():
        head.raw_alpha.fill_(-50.0)
    assert head.alpha.item() >= 1.0
    torch.testing.assert_close(head.log_prob(hidden), log_entmax(logits_of(head, hidden), 1.0))
    head.reset_parameters()
    torch.testing.assert_close(head.alpha.item(), 1.25)
    assert "alpha=1.25, learn_alpha=True" in repr(head)
    assert "k=3" in repr(topk_head())


@pytest.mark.parametrize("make_half", [entmax_head, topk_head, lambda **o: entmax_head(1.3, learn_alpha=True, **o)])
def test_half_precision_is_computed_in_float32(make_half):
    head = make_half(dtype=torch.bfloat16)
    wide = make_half(dtype=torch.float32)
    wide.load_state_dict(head.state_dict())
    hidden, target, _ = batch(5)
    hidden = hidden.detach().bfloat16()
    loss = head(hidden, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wide(hidden.float(), target))
    torch.testing.assert_close(head.log_prob(hidden), wide.log_prob(hidden.float()))
    for a, b in zip(
        *(
            torch.autograd.grad(h(x, target), list(h.parameters()))
            for h, x in ((head, hidden), (wide, hidden.float()))
        ),
        strict=True,
    ):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b.bfloat16(), rtol=2**-7, atol=1e-6)


def test_no_tensor_of_all_rows_and_classes(make):
    head, (hidden, target, _) = make(), batch(60)
    with LargestTensor() as memory:
        head(hidden, target).backward()
        head.nll(hidden, target)
        head.topk(hidden, 3)
        head.log_partition(hidden)
    assert memory.largest < 60 * V


def test_one_class():
    for head in (entmax_head(num_classes=1), topk_head(1, num_classes=1)):
        hidden = torch.randn(3, D, dtype=torch.float64)
        target = torch.zeros(3, dtype=torch.int64)
        assert head(hidden, target) == 0
        assert torch.equal(head.log_prob(hidden), torch.zeros(3, 1, dtype=torch.float64))
        assert torch.equal(head.nll(hidden, target), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (1, ValueError), (V + 1, ValueError), (2.0, TypeError)])
def test_bad_k(k, error):
    with pytest.raises(error, match="k: expected"):
        topk_head(k)


@pytest.mark.parametrize("k", [0, V + 1])
def test_bad_k_of_topk(make, k):
    with pytest.raises(ValueError, match="k: expected"):
        make().topk(batch(2)[0], k)


@pytest.mark.parametrize(("alpha", "error"), [(0.5, ValueError), (float("inf"), ValueError), ("2", TypeError)])
def test_bad_alpha(alpha, error):
    with pytest.raises(error, match="alpha: expected"):
        entmax_head(alpha)


def test_bad_start_of_alpha():
    with pytest.raises(ValueError, match="alpha: expected a start above 1"):
        entmax_head(1.0, learn_alpha=True)
    with pytest.raises(ValueError, match="log_prob"):
        entmax_head().start_at(torch.zeros(3))


def test_repr_on_the_meta_device():
    assert "learn_alpha=True" in repr(Entmax(D, V, learn_alpha=True, device="meta"))
    assert "alpha=1.5, learn_alpha=True" in repr(Entmax(D, V, learn_alpha=True))


@pytest.mark.parametrize("k", [2, 3, 7])
def test_equals_at_the_edge_are_the_same_whatever_is_asked(k):
    """Loss, nll, log_prob, log_partition and topk, of any k, share one choice among equal logits: by id."""
    head = topk_head(k, num_classes=17)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, -torch.inf] + [0.0, 1.0, -1.0] + [0.0] * 8))
    chosen = sorted(range(17), key=lambda c: (-head.bias[c].item(), c))
    hidden, every_class = torch.zeros(17, D, dtype=torch.float64), torch.arange(17)
    log_prob = head.bias[chosen[:k]].detach().log_softmax(-1)
    expected = torch.full((17,), -torch.inf).double().index_put((torch.tensor(chosen[:k]),), log_prob)
    torch.testing.assert_close(head.log_prob(hidden[0]), expected)
    torch.testing.assert_close(head.nll(hidden, every_class), -expected)
    torch.testing.assert_close(head.log_partition(hidden[0]), head.bias[chosen[:k]].logsumexp(-1))
    torch.testing.assert_close(topk_softmax(head.bias, k).log(), expected)
    for asked in range(1, 18):
        values, indices = head.topk(hidden[0], asked)
        assert indices.tolist() == chosen[:asked]
        torch.testing.assert_close(values, expected[indices])
    loss = head(hidden[:k], torch.tensor(chosen[:k]))  # of targets among the k: it is their nll
    torch.testing.assert_close(loss, head.nll(hidden[:k], torch.tensor(chosen[:k])).mean())
    logits, target = head.bias.detach().expand(k, 17).clone().requires_grad_(), torch.tensor(chosen[:k])
    (found,) = torch.autograd.grad(topk_softmax_loss(logits, target, k, reduction="sum"), logits)
    p = expected.exp()
    torch.testing.assert_close(found, p - torch.nn.functional.one_hot(target, 17))
