"""Contrastive losses: the dense formulas, what the optimum is, and what the loss says about mutual information."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from vastmax.functional.contrastive import clip_loss, info_nce, siglip_loss
from vastmax.scoring import blocks

N, K, D = 6, 4, 3
LABELS = torch.tensor([7, -1, 7, 3, -1, 7])
MASK = torch.rand(N, N + K, generator=torch.Generator().manual_seed(8)) < 0.4
FORMS = [
    {},
    {"negatives": "shared"},
    {"negatives": "own"},
    {"negatives": "shared", "in_batch": False},
    {"negatives": "own", "in_batch": False},
    {"symmetric": True},
    {"both_views": True},
    {"both_views": True, "negatives": "shared"},
    {"both_views": True, "negatives": "own"},
]
OPTIONS = [
    {**form, **labels, **mask, **decoupled, "hard_negative_weight": hardness}
    for form in FORMS
    for labels in ({}, {"labels": LABELS})
    for mask in ({}, {"mask": "pairs"}, {"mask": "all"})
    for decoupled in ({}, {"decoupled": True})
    for hardness in (0.0, 0.7)
    if ("in_batch" not in form or not (labels or mask == {"mask": "pairs"}))
    and ("negatives" in form or mask != {"mask": "all"})
]
NAMES = [
    "-".join([v if isinstance(v, str) else k for k, v in o.items() if k != "hard_negative_weight" or v > 0])
    or "plain"
    for o in OPTIONS
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def dense_rows(
    query, key, negatives, temperature, labels, mask, hard_negative_weight, both_views, decoupled, in_batch
):
    """One direction by its definition, row by row and term by term, with Python's sets."""
    losses = []
    for i in range(len(query)):
        same = {i} if labels is None else {j for j in range(len(query)) if labels[j] == labels[i]}
        keys = [(j, key[j]) for j in range(len(query)) if in_batch]
        keys += [(j, query[j]) for j in range(len(query)) if both_views and j != i]
        scores = [
            query[i] @ k / temperature for j, k in keys if j not in same and not (mask is not None and mask[i, j])
        ]
        if negatives is not None:
            rows = negatives if negatives.ndim == 2 else negatives[i]
            columns = [False] * K if mask is None or mask.shape[1] == N else mask[i, -K:]
            scores += [query[i] @ row / temperature for row, out in zip(rows, columns, strict=True) if not out]
        positives = [(j, k) for j, k in keys if j in same] if in_batch else [(i, key[i])]
        positive = torch.stack([query[i] @ k / temperature for _, k in positives])
        total = 0 if decoupled else positive.exp().sum()
        if scores:
            s = torch.stack(scores)
            weight = (hard_negative_weight * s).exp()
            total = total + len(s) * (weight * s.exp()).sum() / weight.sum()
        losses.append(total.log() - positive.mean())
    return torch.stack(losses)


def dense_info_nce(query, key, negatives, temperature, labels, mask, symmetric, **options):
    loss = dense_rows(query, key, negatives, temperature, labels, mask, **options)
    if not symmetric and not options["both_views"]:
        return loss
    if mask is not None:
        mask = torch.cat([mask[:, :N].T, mask[:, N:]], 1)
    return (loss + dense_rows(key, query, negatives, temperature, labels, mask, **options)) / 2


def inputs(options):
    defaults = {"labels": None, "mask": None, "symmetric": False, "both_views": False, "decoupled": False}
    options = {**defaults, "in_batch": True, "hard_negative_weight": 0.0, **options}
    form = options.pop("negatives", None)
    if options["mask"] is not None:
        start = 0 if options["in_batch"] else N
        options["mask"] = MASK[:, start : N if options["mask"] == "pairs" else N + K]
    shape = {"shared": (K, D), "own": (N, K, D)}.get(form)
    tensors = [draw(N, D, seed=1), draw(N, D, seed=2), None if shape is None else draw(*shape, seed=3)]
    return tensors, torch.tensor(0.5, dtype=torch.float64, requires_grad=True), options


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_info_nce_is_its_definition(options, elements, monkeypatch):
    """Value and all gradients, the temperature's too, with a random upstream."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    (query, key, negatives), temperature, options = inputs(options)
    ours = info_nce(query, key, negatives, temperature=temperature, reduction="none", **options)
    theirs = dense_info_nce(query, key, negatives, temperature, **options)
    torch.testing.assert_close(ours, theirs)
    upstream = draw(N, seed=4).detach()
    wanted = [x for x in (query, key, negatives, temperature) if x is not None]
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions(options, weighted):
    (query, key, negatives), temperature, options = inputs(options)
    weight = draw(N, seed=5).detach().abs() if weighted else None
    rows = info_nce(query, key, negatives, temperature=temperature, reduction="none", **options)
    total = rows.sum() if weight is None else (weight * rows).sum()
    size = N if weight is None else weight.sum()
    wanted = [x for x in (query, key, negatives, temperature) if x is not None]
    for reduction, expected in (("sum", total), ("mean", total / size)):
        ours = info_nce(
            query, key, negatives, temperature=temperature, sample_weight=weight, reduction=reduction, **options
        )
        torch.testing.assert_close(ours, expected)
        for mine, other in zip(
            torch.autograd.grad(3 * ours, wanted),
            torch.autograd.grad(3 * expected, wanted, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_gradcheck(options):
    tensors, temperature, options = inputs(options)
    negatives = [x for x in tensors[2:] if x is not None]

    def loss(query, key, temperature, *negatives):
        return info_nce(query, key, *negatives, temperature=temperature, reduction="none", **options)

    assert torch.autograd.gradcheck(loss, (*tensors[:2], temperature, *negatives))


def test_it_is_the_cross_entropy_of_each_rows_own_key():
    query, key, negatives, row = draw(N, D, seed=1), draw(N, D, seed=2), draw(K, D, seed=3), torch.arange(N)
    logits = query @ key.T / 0.07
    torch.testing.assert_close(info_nce(query, key), functional.cross_entropy(logits, row))
    more = torch.cat([logits, query @ negatives.T / 0.07], 1)
    torch.testing.assert_close(info_nce(query, key, negatives), functional.cross_entropy(more, row))
    both = (functional.cross_entropy(logits, row) + functional.cross_entropy(logits.T, row)) / 2
    torch.testing.assert_close(clip_loss(query, key, temperature=0.07), both)


def two_views(labels=None):
    """All 2N rows of both views, the place of each row's other view, and what is of its label or pair."""
    z = torch.cat([draw(N, D, seed=1), draw(N, D, seed=2)]).detach().requires_grad_()
    same = torch.arange(N) if labels is None else labels
    return z, torch.arange(2 * N).roll(N), torch.cat([same, same])


def by_the_papers(name, z, other, same, temperature):
    """The loss of every row of both views (2N,), as published, on all 2N x 2N similarities."""
    itself = torch.eye(2 * N, dtype=torch.bool)
    similarity = z @ z.T / temperature
    of_row = similarity[torch.arange(2 * N), other]
    if name == "NT-Xent":  # Chen et al. 2020, equation 1
        return -(of_row.exp() / similarity.exp().masked_fill(itself, 0.0).sum(-1)).log()
    if name == "SupCon":  # Khosla et al. 2020, equation 2
        positives = (same[:, None] == same) & ~itself
        denominator = similarity.exp().masked_fill(itself, 0.0).sum(-1, keepdim=True)
        log_share = (similarity.exp() / denominator).log()
        return -log_share.masked_fill(~positives, 0.0).sum(-1) / positives.sum(-1)
    # Yeh et al. 2022, equation 6: both views of the other pairs
    return -of_row + similarity.exp().masked_fill(same[:, None] == same, 0.0).sum(-1).log()


@pytest.mark.parametrize(
    ("name", "labels", "options"),
    [("NT-Xent", None, {}), ("SupCon", LABELS, {}), ("decoupled", None, {"decoupled": True})],
    ids=["NT-Xent", "SupCon", "decoupled"],
)
@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_published_losses_of_both_views(name, labels, options, elements, monkeypatch):
    """Value and gradients, with a random upstream for each pair, and the mean over all 2N rows."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    z, other, same = two_views(labels)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    theirs = by_the_papers(name, z, other, same, temperature)
    options = {"temperature": temperature, "labels": labels, "both_views": True, **options}
    ours = info_nce(z[:N], z[N:], reduction="none", **options)
    torch.testing.assert_close(ours, theirs.view(2, N).mean(0))
    torch.testing.assert_close(info_nce(z[:N], z[N:], **options), theirs.mean())
    upstream = draw(N, seed=4).detach()
    for mine, dense in zip(
        torch.autograd.grad(ours, (z, temperature), upstream),
        torch.autograd.grad(theirs, (z, temperature), upstream.repeat(2) / 2),
        strict=True,
    ):
        torch.testing.assert_close(mine, dense)


def test_a_mask_is_the_loss_without_those_keys():
    """As if each row's false negatives were not in the batch; a row's own key stays, whatever the mask says."""
    query, key, negatives = draw(N, D, seed=1), draw(N, D, seed=2), draw(K, D, seed=3)
    mask = MASK | torch.eye(N, N + K, dtype=torch.bool)
    ours = info_nce(query, key, negatives, mask=mask, temperature=0.5, reduction="none")
    for i in range(N):
        others = torch.cat([key, negatives])[~mask[i]]
        alone = info_nce(query[[i]], key[[i]], others, temperature=0.5, reduction="none")
        torch.testing.assert_close(ours[[i]], alone)
    batch_alone = info_nce(query, key, negatives, mask=mask[:, :N], temperature=0.5)
    nothing_more = torch.cat([mask[:, :N], torch.zeros(N, K, dtype=torch.bool)], 1)
    torch.testing.assert_close(batch_alone, info_nce(query, key, negatives, mask=nothing_more, temperature=0.5))
    assert not torch.isclose(batch_alone, ours.mean())
    plain = info_nce(query, key, mask=torch.zeros(N, N, dtype=torch.bool))
    torch.testing.assert_close(plain, info_nce(query, key))


def test_a_mask_of_the_same_items_is_the_softmax_over_different_ones():
    """Keys that occur twice: with the mask each other item once as often as it occurs, and the own item once."""
    query, item, ids = draw(N, D, seed=1), draw(3, D, seed=2), torch.tensor([0, 1, 0, 2, 1, 0])
    same = ids[:, None] == ids
    logits = (query @ item[ids].T).masked_fill(same & ~torch.eye(N, dtype=torch.bool), -torch.inf)
    expected = functional.cross_entropy(logits, torch.arange(N))
    torch.testing.assert_close(info_nce(query, item[ids], mask=same, temperature=1.0), expected)


@pytest.mark.parametrize("hardness", [0.0, 0.5])
def test_decoupled_rows_without_a_negative_count_for_nothing(hardness):
    query, key, negatives = draw(N, D, seed=1), draw(N, D, seed=2), draw(K, D, seed=3)
    mask = MASK.clone()
    mask[[1, 4]] = True
    options = {"mask": mask, "decoupled": True, "hard_negative_weight": hardness, "temperature": 0.5}
    rows = info_nce(query, key, negatives, reduction="none", **options)
    assert torch.equal(rows == 0, torch.tensor([False, True, False, False, True, False]))
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        mean = info_nce(query, key, negatives, **options)
        gradients = torch.autograd.grad(mean, (query, key))
    torch.testing.assert_close(mean, rows.sum() / (N - 2))
    for gradient in gradients:
        assert torch.equal((gradient == 0).all(-1), torch.zeros(N).bool()) or (gradient[[1, 4]] == 0).all()
    first = info_nce(query, key, key[:0], in_batch=False, decoupled=True)
    assert first == 0
    assert torch.equal(torch.autograd.grad(first, query)[0], torch.zeros(N, D, dtype=torch.float64))


def integers(offset, dtype):
    """Rows whose dot products are multiples of 16 plus an offset, exact in float32 up to 1e8; two keys lead."""
    g = torch.Generator().manual_seed(5)
    query, key, negatives = (4 * torch.randint(-1, 2, (n, 4), generator=g) for n in (N, N, K))
    query[0], key[0] = torch.tensor([4, 4, -4, 4]), torch.tensor([4, 4, -4, 4])
    query[1], key[1] = torch.tensor([4, -4, 4, 4]), torch.tensor([4, -4, 4, 4])
    common = math.sqrt(offset)
    return [functional.pad(x.to(dtype), (0, 1), value=common).requires_grad_() for x in (query, key, negatives)]


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_an_offset_of_all_logits_costs_no_digit(options):
    """Float32 at offsets to 1e8 against float64 at none, to the rounding of exponentials of the differences."""
    form = options.get("negatives")
    _, _, options = inputs(options)

    def loss(offset, dtype):
        query, key, negatives = integers(offset, dtype)
        given = {None: None, "shared": negatives, "own": negatives.expand(N, K, 5)}[form]
        found = info_nce(query, key, given, temperature=1.0, reduction="none", **options)
        return found.double(), [g.double()[:, :4] for g in torch.autograd.grad(found.sum(), (query, key))]

    expected, slopes = loss(0.0, torch.float64)
    for offset in (0.0, 1e2, 1e4, 1e6, 1e8):
        ours, found = loss(offset, torch.float32)
        # Decoupled it is a signed difference, and near 0 nothing is known of it to its own rounding.
        torch.testing.assert_close(ours, expected, rtol=3e-5, atol=1e-6 if options["decoupled"] else 0)
        for mine, exact in zip(found, slopes, strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("hardness", [0.0, 0.5])
def test_different_labels_and_no_negatives_are_as_if_not_given(hardness):
    query, key = draw(N, D, seed=1), draw(N, D, seed=2)
    plain = info_nce(query, key, hard_negative_weight=hardness)
    options = {"hard_negative_weight": hardness}
    torch.testing.assert_close(info_nce(query, key, labels=torch.arange(N).flip(0) * 5, **options), plain)
    torch.testing.assert_close(info_nce(query, key, key.new_zeros(0, D), **options), plain)
    torch.testing.assert_close(info_nce(query, key, key.new_zeros(N, 0, D), **options), plain)


@pytest.mark.parametrize("hardness", [0.0, 0.5])
def test_rows_without_a_negative(hardness):
    """One label for all: cross-entropy with the even distribution. Nothing but the positive: zero, at rest."""
    query, key = draw(N, D, seed=1), draw(N, D, seed=2)
    options = {"temperature": 1.0, "hard_negative_weight": hardness, "reduction": "none"}
    log_p = (query @ key.T).log_softmax(-1)
    alone = info_nce(query, key, labels=torch.zeros(N, dtype=torch.int64), **options)
    torch.testing.assert_close(alone, -log_p.mean(-1))
    with torch.autograd.set_detect_anomaly(True, check_nan=True):  # nor is a nan made and masked
        ours = torch.autograd.grad(alone.sum(), (query, key))
    for mine, other in zip(
        ours,
        torch.autograd.grad(-log_p.mean(-1).sum(), (query, key)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
    for nothing in (
        info_nce(query, key, key[:0], in_batch=False, **options),
        info_nce(query[:1], key[:1], **options),
    ):
        torch.testing.assert_close(nothing, torch.zeros_like(nothing))
        for gradient in torch.autograd.grad(nothing.sum(), (query, key)):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_labels_make_a_repeated_key_no_negative_of_itself():
    """Two rows with the same item: with labels each sees its item once as a positive of half a row each."""
    query, item = draw(3, D, seed=1), draw(2, D, seed=2)
    key, labels = item[[0, 1, 0]], torch.tensor([0, 1, 0])
    logits = query @ item.T + torch.tensor([math.log(2), 0.0], dtype=torch.float64)
    positive = (query * key).sum(-1)
    expected = logits.logsumexp(-1) - positive
    torch.testing.assert_close(info_nce(query, key, temperature=1.0, labels=labels, reduction="none"), expected)


def test_hard_negatives_limits():
    """A huge weight leaves the hardest negative, as often as there are negatives."""
    query, key = draw(N, D, seed=1), draw(N, D, seed=2)
    logits = query @ key.T
    hardest = logits.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf).amax(-1)
    own = logits.diagonal()
    expected = torch.logaddexp(own, math.log(N - 1) + hardest) - own
    ours = info_nce(query, key, temperature=1.0, hard_negative_weight=1e6, reduction="none")
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_siglip_is_a_sigmoid_per_pair(elements, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", elements)
    image, text = draw(N, D, seed=1), draw(N, D, seed=2)
    temperature, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, -2.0))
    sign = 2 * torch.eye(N, dtype=torch.float64) - 1
    theirs = -functional.logsigmoid(sign * (image @ text.T / temperature + bias)).sum(-1)
    ours = siglip_loss(image, text, temperature=temperature, bias=bias, reduction="none")
    torch.testing.assert_close(ours, theirs)
    upstream, wanted = draw(N, seed=4).detach(), (image, text, temperature, bias)
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)
    mean = siglip_loss(image, text, temperature=temperature, bias=bias)
    torch.testing.assert_close(mean, theirs.detach().sum() / N)
    assert torch.autograd.gradcheck(
        lambda i, t, temperature, b: siglip_loss(i, t, temperature=temperature, bias=b, reduction="none"), wanted
    )


def test_siglip_keeps_the_tail_of_a_sure_pair():
    """-log sigmoid(40) = exp(-40), which the difference softplus(40) - 40 rounds to 0."""
    x = torch.tensor([[1.0, 0.0]])
    loss = siglip_loss(x, x, temperature=1 / 40, bias=0.0)
    torch.testing.assert_close(loss, torch.tensor(math.exp(-40)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_two_sided_losses_take_every_reduction(loss):
    image, text = draw(N, D, seed=1), draw(N, D, seed=2)
    rows = loss(image, text, reduction="none")
    assert rows.shape == (N,)
    torch.testing.assert_close(loss(image, text, reduction="sum"), rows.sum())
    torch.testing.assert_close(loss(image, text), rows.mean())


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_half_precision_is_computed_in_float32(options):
    tensors, _, options = inputs(options)
    half = [None if x is None else x.detach().bfloat16().requires_grad_() for x in tensors]
    full = [None if x is None else x.detach().float().requires_grad_() for x in half]
    ours, theirs = (info_nce(*rows, temperature=0.5, reduction="none", **options) for rows in (half, full))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(info_nce(*full, temperature=0.5, reduction="none", **options), theirs)
    for rows, loss in ((half, ours), (full, theirs)):
        loss.sum().backward()
        assert all(x is None or x.grad.dtype == x.dtype for x in rows)
    for mine, other in zip(half, full, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad.float(), other.grad, rtol=4e-3, atol=1e-6)


# The loss and the information: batches of N pairs from a joint distribution over 3 x 3, all of them.

JOINT = draw(9, seed=6).detach().softmax(0).view(3, 3)
CLASSES = torch.eye(3, dtype=torch.float64)
LOG_RATIO = JOINT.log() - JOINT.sum(0).log() - JOINT.sum(1, keepdim=True).log()
INFORMATION = (JOINT * LOG_RATIO).sum()


def expected_loss(critic, num_rows, **options):
    """The expectation over all batches of `num_rows` pairs of a critic (3, 3), a table of scores."""
    total = critic.new_zeros(())
    for batch in itertools.product(range(9), repeat=num_rows):
        x, y = torch.tensor(batch) // 3, torch.tensor(batch) % 3
        probability = JOINT[x, y].prod()
        total = total + probability * info_nce(critic[x], CLASSES[y], temperature=1.0, **options)
    return total


def test_the_optimum_is_the_log_ratio_of_the_joint_to_the_product_whatever_the_batch():
    """The gradient there is zero, for any function of x added; at other critics, and with hard negatives, not."""
    shift = draw(3, 1, seed=7).detach()
    for num_rows in (2, 3):
        critic = (LOG_RATIO + shift).requires_grad_()
        (gradient,) = torch.autograd.grad(expected_loss(critic, num_rows), critic)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected_loss(critic, 3, hard_negative_weight=1.0), critic)
    assert gradient.abs().max() > 1e-3


def test_the_bound_on_mutual_information_holds_for_every_critic():
    """log N - E[loss] <= I(x; y), exactly; the best critic comes closer with each row."""
    for seed in range(5):
        critic = 2 * draw(3, 3, seed=seed).detach()
        assert math.log(3) - expected_loss(critic, 3) < INFORMATION
    bounds = [math.log(n) - expected_loss(LOG_RATIO, n) for n in (1, 2, 3)]
    assert abs(bounds[0]) < 1e-12
    assert bounds[0] < bounds[1] < bounds[2] < INFORMATION


def gaussian_pairs(num_rows, features, correlation, generator):
    """Rows whose dot product is log p(y|x) / p(y), but for a constant of x, and twice the same in terms of y."""
    x = torch.randn(num_rows, features, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_rows, features, generator=generator, dtype=torch.float64)
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    variance = 1 - correlation**2
    one = torch.ones(num_rows, 1, dtype=torch.float64)
    query = torch.cat([x * correlation / variance, one], 1)
    key = torch.cat([y, -(correlation**2) * y.square().sum(-1, keepdim=True) / (2 * variance)], 1)
    return query, key


def test_the_bound_on_gaussians_of_known_information():
    """It holds at every batch size and is reached as N grows, up to four standard errors of the mean."""
    features, correlation = 2, 0.8
    information = -features / 2 * math.log(1 - correlation**2)
    generator = torch.Generator().manual_seed(0)
    means = {}
    for num_rows, num_batches in ((2, 4096), (8, 1024), (64, 256), (4096, 6)):
        bounds = math.log(num_rows) - torch.stack(
            [
                info_nce(*gaussian_pairs(num_rows, features, correlation, generator), temperature=1.0)
                for _ in range(num_batches)
            ]
        )
        error = bounds.std() / math.sqrt(num_batches)
        assert bounds.mean() < information + 4 * error
        means[num_rows] = bounds.mean()
    assert means[2] < means[8] < means[64] < means[4096]
    assert error < 0.02
    assert abs(means[4096] - information) < 4 * error + 1 / math.sqrt(4096)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"query": torch.ones(0, D)},
            ValueError,
            r"query: expected shape \(N, d\) with at least one row, got \(0, 3\)",
        ),
        ({"query": torch.ones(2, 2, D)}, ValueError, r"query: expected shape \(N, d\) .* got \(2, 2, 3\)"),
        (
            {"query": torch.ones(N, D).long()},
            TypeError,
            "query: expected a floating-point tensor .* got torch.int64",
        ),
        ({"query": [1.0]}, TypeError, "query: expected a floating-point tensor .* got list"),
        ({"key": torch.ones(N - 1, D)}, ValueError, r"key: expected the shape of query, \(6, 3\), got \(5, 3\)"),
        ({"key": torch.ones(N, D + 1)}, ValueError, r"key: expected shape \(..., 3\), got \(6, 4\)"),
        ({"key": torch.full((N, D), torch.nan)}, ValueError, r"key: expected finite values, got nan at \(0, 0\)"),
        ({"query": torch.full((N, D), torch.inf)}, ValueError, "query: expected finite values, got inf"),
        ({"negatives": torch.ones(K, D + 1)}, ValueError, r"negatives: expected shape \(..., 3\), got \(4, 4\)"),
        ({"negatives": torch.ones(K, 2, D)}, ValueError, r"negatives: expected shape \(K, 3\), .* or \(6, K, 3\)"),
        ({"negatives": torch.full((K, D), torch.nan)}, ValueError, "negatives: expected finite values, got nan"),
        ({"negatives": torch.ones(K, D), "symmetric": True}, ValueError, "negatives: expected None with symmetric"),
        ({"in_batch": False}, ValueError, "negatives: expected a tensor with in_batch=False"),
        (
            {"negatives": torch.ones(K, D), "in_batch": False, "labels": LABELS},
            ValueError,
            "labels: expected None with in_batch=False",
        ),
        ({"labels": LABELS.float()}, TypeError, r"labels: expected an int64 tensor \(6,\), got torch.float32"),
        ({"labels": LABELS[:2]}, ValueError, r"labels: expected shape \(6,\), one per row, got \(2,\)"),
        ({"mask": torch.ones(N, N)}, TypeError, "mask: expected a bool tensor, True where .*, got torch.float32"),
        ({"mask": [[True]]}, TypeError, "mask: expected a bool tensor, .* got list"),
        (
            {"mask": torch.ones(N, N + 1).bool()},
            ValueError,
            r"mask: expected shape \(6, 6\), the keys and then `negatives`, got \(6, 7\)",
        ),
        (
            {"mask": torch.ones(N, 2).bool(), "negatives": torch.ones(K, D)},
            ValueError,
            r"mask: expected shape \(6, 6\) or \(6, 10\), .* got \(6, 2\)",
        ),
        (
            {"mask": torch.ones(N, N).bool(), "negatives": torch.ones(K, D), "in_batch": False},
            ValueError,
            r"mask: expected shape \(6, 4\), .* got \(6, 6\)",
        ),
        ({"both_views": True, "symmetric": True}, ValueError, "both_views: expected False with symmetric=True"),
        (
            {"both_views": True, "in_batch": False, "negatives": torch.ones(K, D)},
            ValueError,
            "both_views: expected False with in_batch=False",
        ),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number greater than 0, got 0.0"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature: expected .* greater than 0, got -1.0"),
        ({"temperature": torch.ones(N)}, ValueError, r"temperature: .* tensor \(\), got torch.float32 \(6,\)"),
        ({"hard_negative_weight": -0.1}, ValueError, "hard_negative_weight: expected .* of at least 0, got -0.1"),
        ({"sample_weight": torch.ones(2)}, ValueError, r"sample_weight: expected shape \(6,\)"),
        ({"sample_weight": torch.full((N,), -1.0)}, ValueError, "sample_weight: expected weights of at least 0"),
        ({"sample_weight": [1.0] * N}, TypeError, "sample_weight: expected a floating-point tensor"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of none, mean, sum, got 'max'"),
    ],
)
def test_errors(change, error, message):
    arguments = {"query": torch.ones(N, D), "key": torch.ones(N, D), **change}
    with pytest.raises(error, match=message):
        info_nce(**arguments)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_errors_of_two_sided_losses_name_the_sides(loss):
    with pytest.raises(ValueError, match=r"image: expected shape \(N, d\)"):
        loss(torch.ones(D), torch.ones(N, D))
    with pytest.raises(ValueError, match="text: expected the shape of image"):
        loss(torch.ones(N, D), torch.ones(2, D))
    with pytest.raises(ValueError, match="temperature: expected"):
        loss(torch.ones(N, D), torch.ones(N, D), temperature=-1.0)


def test_siglip_bias_is_checked():
    with pytest.raises(ValueError, match="bias: expected a finite number, got nan"):
        siglip_loss(torch.ones(N, D), torch.ones(N, D), bias=math.nan)
