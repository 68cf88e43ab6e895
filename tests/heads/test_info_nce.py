"""The InfoNCE module: what it adds to the function of the same name."""

import copy
import math

import pytest
import torch
from largest_tensor import LargestTensor
from torch.nn import functional

from vastmax.contrastive.key_queue import KeyQueue
from vastmax.functional.contrastive import clip_loss, info_nce
from vastmax.heads.info_nce import InfoNCE

N, K, D = 6, 4, 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


QUERY, KEY, NEGATIVES = draw(N, D, seed=1), draw(N, D, seed=2), draw(K, D, seed=3)


def test_cosines_by_default_and_dot_products_on_demand():
    q, k, n = (x / x.norm(dim=-1, keepdim=True) for x in (QUERY, KEY, NEGATIVES))
    torch.testing.assert_close(InfoNCE(0.2)(QUERY, KEY, NEGATIVES), info_nce(q, k, n, temperature=0.2))
    plain = InfoNCE(0.2, normalize=False)(QUERY, KEY, NEGATIVES)
    torch.testing.assert_close(plain, info_nce(QUERY, KEY, NEGATIVES, temperature=0.2))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_passes_its_options_on(reduction):
    labels, weight = torch.tensor([0, 1, 0, 2, 3, 1]), draw(N, seed=4).detach().abs()
    own = draw(N, K, D, seed=5)
    head = InfoNCE(0.3, normalize=False, hard_negative_weight=0.5, reduction=reduction)
    options = {"temperature": 0.3, "hard_negative_weight": 0.5, "reduction": reduction}
    given = {"labels": labels, "sample_weight": weight}
    torch.testing.assert_close(head(QUERY, KEY, own, **given), info_nce(QUERY, KEY, own, **given, **options))
    mask = torch.rand(N, N + K, generator=torch.Generator().manual_seed(6)) < 0.4
    head = InfoNCE(0.3, normalize=False, both_views=True, decoupled=True, reduction=reduction)
    options = {"temperature": 0.3, "both_views": True, "decoupled": True, "reduction": reduction}
    given = {"mask": mask, "sample_weight": weight}
    torch.testing.assert_close(
        head(QUERY, KEY, NEGATIVES, **given), info_nce(QUERY, KEY, NEGATIVES, **given, **options)
    )
    head = InfoNCE(0.3, normalize=False, in_batch=False, reduction=reduction)
    options = {"temperature": 0.3, "in_batch": False, "reduction": reduction}
    torch.testing.assert_close(head(QUERY, KEY, NEGATIVES), info_nce(QUERY, KEY, NEGATIVES, **options))
    head = InfoNCE(0.3, normalize=False, symmetric=True, reduction=reduction)
    torch.testing.assert_close(head(QUERY, KEY), clip_loss(QUERY, KEY, temperature=0.3, reduction=reduction))


def test_learned_temperature():
    """The gradient is that of the loss by log T."""
    head = InfoNCE(0.5, learn_temperature=True).double()
    assert [name for name, _ in head.named_parameters()] == ["log_temperature"]
    assert not list(InfoNCE(0.5).parameters())
    log_temperature = torch.tensor(math.log(0.5), dtype=torch.float64, requires_grad=True)
    q, k = (functional.normalize(x, dim=-1) for x in (QUERY, KEY))
    loss = functional.cross_entropy(q @ k.T / log_temperature.exp(), torch.arange(N))
    head(QUERY, KEY).backward()
    torch.testing.assert_close(head.log_temperature.grad, torch.autograd.grad(loss, log_temperature)[0])


def test_a_learned_temperature_stays_above_its_bound_and_can_leave_it():
    head = InfoNCE(0.011, learn_temperature=True, normalize=False)
    with torch.no_grad():
        head.log_temperature.fill_(-9.0)
    assert (1 / head.temperature).item() == pytest.approx(100.0)
    query, wrong, at_bound = torch.eye(2), torch.eye(2).flip(0), InfoNCE(0.01, learn_temperature=True)
    for module in (head, at_bound):
        module(query, wrong).backward()  # T wants to rise
    torch.testing.assert_close(head.log_temperature.grad, at_bound.log_temperature.grad)
    assert head.log_temperature.grad < -1
    assert head.log_temperature == -9.0
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    while head.log_temperature <= -math.log(100.0):
        before = head.log_temperature.item()
        optimizer.zero_grad()
        head(query, wrong).backward()
        optimizer.step()
        assert head.log_temperature > before


def test_a_learned_temperature_at_its_bound_does_not_drift_away():
    """Where the loss wants T below the bound, a parameter below gets no gradient, and one above its own."""
    query = torch.eye(3) + 0.2
    for start, drifts in ((-math.log(5.0) - 0.5, False), (-math.log(5.0) + 0.5, True)):
        head = InfoNCE(0.2, learn_temperature=True, max_scale=5.0)
        with torch.no_grad():
            head.log_temperature.fill_(start)
        head(query, query).backward()  # all rows right: T wants to fall
        assert (head.log_temperature.grad > 0) == drifts


@pytest.mark.parametrize("log_temperature", [-1.0, -9.0])
def test_losses_of_two_calls_add_up(log_temperature):
    head = InfoNCE(0.5, learn_temperature=True).double()
    with torch.no_grad():
        head.log_temperature.fill_(log_temperature)
    pairs = [(QUERY, KEY), (KEY, NEGATIVES[[0, 1, 2, 3, 0, 1]])]
    (head(*pairs[0]) + head(*pairs[1])).backward()
    one_by_one = [torch.autograd.grad(head(*pair), head.log_temperature)[0] for pair in pairs]
    assert all(gradient != 0 for gradient in one_by_one)
    torch.testing.assert_close(head.log_temperature.grad, sum(one_by_one))


def test_the_queue_holds_past_keys_as_negatives():
    """Each loss sees the keys of the batches before it, as they were scored."""
    head = InfoNCE(0.2, queue=KeyQueue(N + 2, D, dtype=torch.float64))
    past = torch.zeros(0, D, dtype=torch.float64)
    for seed in range(4):
        query, key = draw(N, D, seed=2 * seed), draw(N, D, seed=2 * seed + 1)
        q, k = (functional.normalize(x, dim=-1) for x in (query, key))
        loss = head(query, key)
        torch.testing.assert_close(loss, info_nce(q, k, past, temperature=0.2))
        for mine, other in zip(
            torch.autograd.grad(loss, (query, key)),
            torch.autograd.grad(info_nce(q, k, past, temperature=0.2), (query, key)),
            strict=True,
        ):
            torch.testing.assert_close(mine, other)
        past = torch.cat([past, k.detach()])[-(N + 2) :]
    head.eval()
    head(QUERY, KEY)
    assert torch.equal(head.queue.keys(), past)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_momentum_contrast_has_negatives_in_the_queue_alone(reduction):
    """The first batch has nothing to tell its keys from; the gradient is made before the queue moves on."""
    head = InfoNCE(
        0.2, normalize=False, in_batch=False, queue=KeyQueue(4, D, dtype=torch.float64), reduction=reduction
    )
    first = head(QUERY, KEY.detach())
    torch.testing.assert_close(first, torch.zeros_like(first))
    loss = head(QUERY, KEY.detach())
    logits = torch.cat([(QUERY * KEY.detach()).sum(-1, keepdim=True), QUERY @ KEY.detach()[-4:].T], 1) / 0.2
    expected = functional.cross_entropy(logits, torch.zeros(N, dtype=torch.int64), reduction=reduction)
    torch.testing.assert_close(loss, expected)
    upstream = torch.ones_like(loss)
    torch.testing.assert_close(
        torch.autograd.grad(loss, QUERY, upstream)[0], torch.autograd.grad(expected, QUERY, upstream)[0]
    )


@pytest.mark.parametrize("both_views", [False, True])
def test_a_mask_reaches_the_keys_of_the_queue(both_views):
    head = InfoNCE(0.2, queue=KeyQueue(K, D, dtype=torch.float64), both_views=both_views)
    head(QUERY, KEY)
    mask = torch.rand(N, N + K, generator=torch.Generator().manual_seed(6)) < 0.4
    q, k, past = (functional.normalize(x, dim=-1) for x in (KEY, QUERY, KEY[-K:]))
    expected = info_nce(q, k, past, temperature=0.2, mask=mask, both_views=both_views)
    torch.testing.assert_close(head(KEY, QUERY, mask=mask), expected)


def test_a_batch_that_is_refused_does_not_enter_the_queue():
    head = InfoNCE(queue=KeyQueue(4, D))
    with pytest.raises(ValueError, match="query: expected finite values"):
        head(torch.full((N, D), torch.nan), torch.ones(N, D))
    assert len(head.queue) == 0


def test_state_dict_has_temperature_and_queue():
    head = InfoNCE(0.2, learn_temperature=True, queue=KeyQueue(4, D))
    head(torch.randn(N, D), torch.randn(N, D))
    other = InfoNCE(0.5, learn_temperature=True, queue=KeyQueue(4, D))
    other.load_state_dict(head.state_dict())
    other, head = other.eval(), copy.deepcopy(head).eval()
    query, key = torch.randn(N, D), torch.randn(N, D)
    assert torch.equal(other(query, key), head(query, key))


@pytest.mark.parametrize("symmetric", [False, True])
def test_mutual_information_is_log_n_less_the_plain_loss(symmetric):
    head = InfoNCE(0.5, hard_negative_weight=1.0, symmetric=symmetric)
    loss = InfoNCE(0.5, symmetric=symmetric)(QUERY, KEY)
    torch.testing.assert_close(head.mutual_information(QUERY, KEY), math.log(N) - loss)
    same = torch.eye(5)
    torch.testing.assert_close(InfoNCE(0.01).mutual_information(same, same), torch.tensor(math.log(5)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learn_temperature": True},
        {"symmetric": True},
        {"hard_negative_weight": 0.5},
        {"queue": True},
        {"both_views": True},
        {"both_views": True, "decoupled": True, "queue": True},
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_nothing_is_n_by_n(options, reduction, monkeypatch):
    from vastmax.scoring import blocks

    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1 << 12)
    num_rows = 256
    options = {**options, "queue": KeyQueue(128, 4)} if "queue" in options else options
    mask = torch.rand(num_rows, num_rows) < 0.1
    head = InfoNCE(reduction=reduction, **options)
    query, key = (torch.randn(num_rows, 4, requires_grad=True) for _ in range(2))
    for labels in (None, torch.arange(num_rows) // 2):
        with LargestTensor() as seen:
            head(query, key, labels=labels).sum().backward()
            head(query, key, labels=labels, mask=mask).sum().backward()
            head.mutual_information(query, key)
    # MIN_ROWS rows of a block hold all classes; what is held besides is linear in N.
    assert seen.largest <= 8192 < num_rows**2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number greater than 0"),
        ({"max_scale": -1.0}, ValueError, "max_scale: expected a finite number greater than 0"),
        (
            {"temperature": 0.005, "learn_temperature": True},
            ValueError,
            "temperature: expected at least 1 / max_scale",
        ),
        ({"hard_negative_weight": -1.0}, ValueError, "hard_negative_weight: expected"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of"),
        ({"queue": torch.ones(3, D)}, TypeError, r"queue: expected a vastmax.contrastive.KeyQueue, got Tensor"),
        ({"both_views": True, "symmetric": True}, ValueError, "both_views: expected False with symmetric=True"),
        ({"both_views": True, "in_batch": False}, ValueError, "both_views: expected False .* or in_batch=False"),
        ({"queue": KeyQueue(3, D), "symmetric": True}, ValueError, "queue: expected None with symmetric=True"),
    ],
)
def test_construction_errors(options, error, message):
    with pytest.raises(error, match=message):
        InfoNCE(**options)


def test_call_errors():
    head = InfoNCE(queue=KeyQueue(3, D))
    with pytest.raises(ValueError, match="negatives: expected None with a queue"):
        head(torch.ones(N, D), torch.ones(N, D), torch.ones(K, D))
    with pytest.raises(ValueError, match=r"query: expected shape \(N, d\)"):
        head(torch.ones(D), torch.ones(N, D))
    with pytest.raises(TypeError, match="query: expected a floating-point tensor"):
        head(torch.ones(N, D).long(), torch.ones(N, D))
    with pytest.raises(ValueError, match=r"query: expected shape \(N, d\) with at least one row"):
        head.mutual_information(torch.ones(0, D), torch.ones(0, D))


def test_repr():
    assert repr(InfoNCE(0.1, learn_temperature=True)) == "InfoNCE(temperature=0.1, learned, normalize=True)"
    assert repr(InfoNCE(0.1, normalize=False)) == "InfoNCE(temperature=0.1, normalize=False)"
    with torch.device("meta"):
        assert repr(InfoNCE(0.1, learn_temperature=True)) == "InfoNCE(temperature=learned, normalize=True)"
