"""The exact heads' options against torch and against their formulas over all logits."""

import pytest
import torch
from largest_tensor import LargestTensor
from torch.nn import functional

from vastmax import functional as F
from vastmax import heads, samplers
from vastmax.scoring import blocks

V, D, N = 7, 4, 6


def problem(seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64).requires_grad_()
    return hidden, torch.randint(V, (N,), generator=g), g


def build(kind=heads.Softmax, **options):
    torch.manual_seed(5)
    return kind(D, V, dtype=torch.float64, **options)


def same(ours, theirs, inputs, g):
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(theirs.shape, generator=g, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_equals_torchs_module(smoothing, reduction):
    hidden, target, g = problem()
    target[2] = -100
    weight = torch.rand(V, generator=g, dtype=torch.float64)
    head = build(class_weight=weight, label_smoothing=smoothing, reduction=reduction)
    theirs = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, reduction=reduction)
    logits = functional.linear(hidden, head.weight, head.bias)
    same(head(hidden, target), theirs(logits, target), [hidden, head.weight, head.bias], g)


@pytest.mark.parametrize("kind", ["ids", "several", "probabilities"])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_every_option_together(kind, block, monkeypatch):
    """The docstring's formula, over all logits, for each kind of target."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    hidden, target, g = problem()
    v, a = torch.rand(2, V, generator=g, dtype=torch.float64)
    head = build(
        class_weight=v,
        logit_adjustment=a,
        label_smoothing=0.2,
        focal_gamma=1.5,
        z_loss=0.3,
        temperature="learned",
        reduction="none",
    )
    with torch.no_grad():
        head.log_temperature.fill_(-0.4)
    if kind == "probabilities":
        t = given = torch.rand(N, V, generator=g, dtype=torch.float64).softmax(-1)
    elif kind == "several":
        given = torch.stack([target, (target + 1) % V, torch.full_like(target, -100)], -1)
        t = (functional.one_hot(target, V) + functional.one_hot((target + 1) % V, V)).double() / 2
    else:
        given, t = target, functional.one_hot(target, V).double()
    logits = functional.linear(hidden, head.weight, head.bias) / head.log_temperature.exp() + a
    log_p = logits.log_softmax(-1)
    smoothed = 0.8 * t + 0.2 / V
    theirs = -(smoothed * v * (1 - log_p.exp()) ** 1.5 * log_p).sum(-1)
    theirs = theirs + 0.3 * (t * v).sum(-1) * logits.logsumexp(-1) ** 2
    inputs = [hidden, head.weight, head.bias, head.log_temperature]
    same(head(hidden, given), theirs, inputs, g)
    mean = build(
        class_weight=v, logit_adjustment=a, label_smoothing=0.2, focal_gamma=1.5, z_loss=0.3, temperature="learned"
    )
    mean.load_state_dict(head.state_dict())
    torch.testing.assert_close(mean(hidden, given), theirs.sum() / (t * v).sum())
    same(
        mean(hidden, given),
        mean(hidden, t),
        [hidden, mean.weight, mean.bias, mean.log_temperature],
        g,
    )


def test_adjustment_is_of_training_alone():
    hidden, target, _ = problem()
    prior = F.log_prior(torch.arange(V, 0, -1))
    head, plain = build(logit_adjustment=prior), build()
    torch.testing.assert_close(head.log_prob(hidden), plain.log_prob(hidden))
    logits = functional.linear(hidden, plain.weight, plain.bias)
    torch.testing.assert_close(head(hidden, target), F.logit_adjusted_cross_entropy(logits, target, prior))


def test_focal_head_is_the_focal_loss():
    hidden, target, g = problem()
    head = build(focal_gamma=2.0)
    theirs = F.focal_loss(functional.linear(hidden, head.weight, head.bias), target, gamma=2.0)
    same(head(hidden, target), theirs, [hidden, head.weight, head.bias], g)


def test_the_square_root_of_the_classes_is_a_temperature():
    """ "Global normalisation" by sqrt(V): it sums to one, as e^x / V, sometimes given for it, does not."""
    hidden, _, _ = problem()
    head = build(temperature="sqrt_classes")
    logits = functional.linear(hidden, head.weight, head.bias)
    log_prob = head.log_prob(hidden)
    torch.testing.assert_close(log_prob, (logits / V**0.5).log_softmax(-1))
    torch.testing.assert_close(log_prob.exp().sum(-1), torch.ones(N, dtype=torch.float64))
    assert not torch.allclose((logits.exp() / V).sum(-1), torch.ones(N, dtype=torch.float64))
    assert head.temperature == V**0.5


def test_a_learned_temperature_has_its_gradient():
    hidden, target, g = problem()
    head = build(temperature="learned")
    assert head.temperature == 1.0
    logits = functional.linear(hidden, head.weight, head.bias)
    theirs = functional.cross_entropy(logits / head.log_temperature.exp(), target)
    same(head(hidden, target), theirs, [head.log_temperature, hidden], g)


def test_temperature_of_a_sampled_head_divides_before_the_correction():
    """All classes once, hits removed: the exact loss at that temperature."""
    hidden, target, _ = problem()
    sampled = build(heads.SampledSoftmax, sampler=samplers.Uniform(V, unique=True), num_samples=V, temperature=0.3)
    exact = build(temperature=0.3)
    exact.load_state_dict(sampled.state_dict())
    ours, theirs = sampled(hidden, target), exact(hidden, target)
    torch.testing.assert_close(ours, theirs)
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            torch.autograd.grad(ours, getattr(sampled, name), retain_graph=True)[0],
            torch.autograd.grad(theirs, getattr(exact, name), retain_graph=True)[0],
        )


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_sigsoftmax_is_its_formula(temperature):
    hidden, target, g = problem()
    head = build(heads.SigSoftmax, temperature=temperature, reduction="none")
    z = functional.linear(hidden, head.weight, head.bias) / temperature
    weight = z.exp() * z.sigmoid()
    p = weight / weight.sum(-1, keepdim=True)
    torch.testing.assert_close(head.log_prob(hidden).exp(), p)
    same(head(hidden, target), -p[range(N), target].log(), [hidden, head.weight, head.bias], g)


KINDS = [
    heads.Softmax,
    heads.SigSoftmax,
    heads.OneVsAll,
    heads.Entmax,
    lambda d, v, **options: heads.TopKSoftmax(d, v, 3, **options),
]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_class_spares_every_gradient(kind, several):
    """Of a learned temperature too: 0 times infinity is in none of them."""
    head = build(kind, temperature="learned")
    masked = 3
    with torch.no_grad():
        head.bias[masked] = -torch.inf
    hidden, target, _ = problem()
    target = target.masked_fill(target == masked, 0)
    head(hidden, torch.stack([target, (target + 4) % 3], -1) if several else target).backward()
    assert hidden.grad.isfinite().all()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert head.log_temperature.grad != 0


@pytest.mark.parametrize("target", [[[0, 1]] * N, [0] * N, "probabilities"])
@pytest.mark.parametrize("options", [{"focal_gamma": 2.0}, {"focal_gamma": 0.5}, {}])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_masked_class_without_a_share(mixed, options, target):
    if mixed:
        if options:
            pytest.skip("no option of a mixture")
        head = build(lambda d, v, **o: heads.MixtureOfSoftmaxes(d, v, 2, **o))
    else:
        head = build(**options)
    with torch.no_grad():
        head.bias[5] = -torch.inf
    hidden, _, _ = problem()
    if target == "probabilities":
        target = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0]] * N, dtype=torch.float64)
    loss = head(hidden, torch.as_tensor(target))
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, [hidden, *head.parameters()]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weight", ["sample", "class"])
@pytest.mark.parametrize("several", [False, True])
def test_no_weight_outweighs_an_infinite_loss(several, weight, gamma):
    """A row, or a class, of weight 0 counts for nothing, though the target is masked."""
    v = torch.ones(V, dtype=torch.float64)
    if weight == "class":
        v[3] = 0.0
    head = build(class_weight=v, focal_gamma=gamma)
    with torch.no_grad():
        head.bias[3] = -torch.inf
    hidden, _, _ = problem()
    target = torch.tensor([3, 1, 2, 0, 1, 2])
    w = torch.ones(N, dtype=torch.float64)
    if weight == "sample":
        w[0] = 0.0
    loss = head(hidden, target.unsqueeze(-1) if several else target, sample_weight=w)
    torch.testing.assert_close(loss, head(hidden[1:], target[1:]))
    for gradient in torch.autograd.grad(loss, [hidden, *head.parameters()]):
        assert gradient.isfinite().all()


def test_rows_without_a_share_take_no_part():
    """With class weights of 1 as without class weights."""
    hidden, target, _ = problem()
    several = torch.stack([target, (target + 1) % V], -1)
    share = torch.rand(N, 2, dtype=torch.float64)
    share[2] = 0.0
    kept = [0, 1, 3, 4, 5]
    plain, weighted = build(), build(class_weight=torch.ones(V))
    expected = plain(hidden[kept], several[kept], target_weight=share[kept])
    torch.testing.assert_close(plain(hidden, several, target_weight=share), expected)
    torch.testing.assert_close(weighted(hidden, several, target_weight=share), expected)


def test_the_adjustment_of_a_sigsoftmax_is_added_to_its_bent_logits():
    """So the optimum is p over the prior, and a constant in the prior says nothing."""
    hidden, target, g = problem()
    prior = F.log_prior(torch.arange(V, 0, -1))
    head, shifted = (build(heads.SigSoftmax, logit_adjustment=a, reduction="none") for a in (prior, prior + 3))
    z = functional.linear(hidden, head.weight, head.bias)
    bent = z + functional.logsigmoid(z)
    theirs = functional.cross_entropy(bent + prior, target, reduction="none")
    same(head(hidden, target), theirs, [hidden, head.weight, head.bias], g)
    torch.testing.assert_close(shifted(hidden, target), theirs)
    torch.testing.assert_close(head(hidden, target.unsqueeze(-1)), theirs)


@pytest.mark.parametrize("kind", [heads.Softmax, heads.SigSoftmax])
def test_soft_targets_hold_no_tensor_of_all_logits(kind, monkeypatch):
    num_rows, num_classes = 64, 1001
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1 << 12)
    head = kind(8, num_classes, focal_gamma=1.0, label_smoothing=0.1)
    hidden = torch.randn(num_rows, 8, requires_grad=True)
    target = torch.randint(num_classes, (num_rows, 3))
    with LargestTensor() as made:
        head(hidden, target, target_weight=torch.rand(num_rows, 3)).backward()
        head(hidden, target[:, 0]).backward()
    assert made.largest <= num_classes * 8 < num_rows * num_classes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"class_weight": torch.ones(3)},
            ValueError,
            r"class_weight: expected shape \(7,\), one per class, got \(3,\)",
        ),
        ({"class_weight": -torch.ones(V)}, ValueError, "class_weight: expected weights of at least 0"),
        (
            {"class_weight": torch.zeros(V)},
            ValueError,
            "class_weight: expected weights of at least 0 and not all 0",
        ),
        ({"class_weight": torch.full((V,), torch.nan)}, ValueError, "class_weight: expected finite values"),
        ({"class_weight": torch.ones(V, dtype=torch.int64)}, TypeError, "class_weight: expected a floating-point"),
        (
            {"logit_adjustment": torch.full((V,), -torch.inf)},
            ValueError,
            "logit_adjustment: expected finite values",
        ),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing: expected a number in \[0, 1\], got 1.5"),
        ({"focal_gamma": -1.0}, ValueError, "focal_gamma: expected a finite number of at least 0, got -1.0"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a finite number greater than 0, got 0.0"),
        (
            {"temperature": "warm"},
            ValueError,
            "temperature: expected a number, 'learned' or 'sqrt_classes', got 'warm'",
        ),
        ({"z_loss": float("nan")}, ValueError, "z_loss: expected a finite number"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("target_weight", "error", "message"),
    [
        (torch.ones(N, 3), ValueError, r"target_weight: expected shape \(6, 2\), that of target, got \(6, 3\)"),
        (-torch.ones(N, 2), ValueError, "target_weight: expected shares of at least 0, got -1"),
        (torch.full((N, 2), torch.nan), ValueError, "target_weight: expected finite values, got nan"),
        (torch.ones(N, 2, dtype=torch.int64), TypeError, "target_weight: expected a floating-point tensor"),
    ],
)
def test_bad_target_weights(target_weight, error, message):
    hidden, target, _ = problem()
    with pytest.raises(error, match=message):
        build()(hidden, torch.stack([target, target], -1), target_weight=target_weight)


@pytest.mark.parametrize(
    "options",
    [{"filter_eps": 0.2}, {"product_dtype": torch.bfloat16}, {"filter_eps": 0.2, "product_dtype": torch.bfloat16}],
)
def test_filter_and_products_are_those_of_the_function(options):
    hidden, target = torch.randn(64, 48), torch.randint(400, (64,))
    head = heads.Softmax(48, 400, **options)
    torch.nn.init.normal_(head.weight)
    parameters = list(head.parameters())
    found = torch.autograd.grad(head(hidden, target), parameters)
    loss = F.linear_cross_entropy(hidden, head.weight, target, linear_bias=head.bias, **options)
    for mine, expected in zip(found, torch.autograd.grad(loss, parameters), strict=True):
        assert torch.equal(mine, expected)
    assert all(f"{name}={value}" in repr(head) for name, value in options.items())
    left_out = (found[1] == 0).any()
    assert left_out == ("product_dtype" not in options)


def test_no_filter_beside_label_smoothing():
    with pytest.raises(ValueError, match=r"filter_eps: expected none beside label_smoothing=0\.1"):
        heads.Softmax(5, 40, filter_eps=0.2, label_smoothing=0.1)
