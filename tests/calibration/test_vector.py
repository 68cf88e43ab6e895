"""Vector scaling: scales and biases recovered, the prior, the minimum, and folding."""

import math

import pytest
import torch
from torch import nn

from vastmax import heads, samplers
from vastmax.calibration import VectorScaling, vector
from vastmax.functional import cross_entropy
from vastmax.scoring import blocks

COUNTS = torch.tensor([[10, 6, 4], [2, 12, 6], [5, 5, 10], [1, 3, 16]])
SCALE = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
BIAS = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)


def exact_rows():
    """Contexts and targets, each as often as its probability says, and logits that (SCALE, BIAS) makes right."""
    pairs = [(r, c) for r, counts in enumerate(COUNTS) for c, n in enumerate(counts) for _ in range(n)]
    context, target = torch.tensor(pairs).T
    logits = ((COUNTS / COUNTS.sum(-1, keepdim=True)).double().log() - BIAS) / SCALE
    return logits, context, target


def problem(seed=0, rows=300, classes=8):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(classes, 4, dtype=torch.float64, generator=generator)
    bias = torch.randn(classes, dtype=torch.float64, generator=generator)
    scale = 0.4 + torch.rand(classes, dtype=torch.float64, generator=generator)
    probability = (scale * (hidden @ weight.T)).softmax(-1)
    return hidden, weight, bias, probability.multinomial(1, generator=generator).squeeze(-1)


def objective(logits, target, scale, bias, prior_std):
    prior = ((scale - 1).square().sum() + bias.square().sum()) / (2 * prior_std**2)
    return nn.functional.cross_entropy(scale * logits + bias, target, reduction="sum") + prior


def test_a_known_scaling_is_recovered():
    logits, context, target = exact_rows()
    scaling = VectorScaling(3, prior_std=math.inf, dtype=torch.float64)
    fit = scaling.fit(logits[context], target)
    torch.testing.assert_close(scaling.scale, SCALE, rtol=0, atol=1e-4)
    torch.testing.assert_close(scaling.bias, BIAS - BIAS.mean(), rtol=0, atol=1e-4)
    entropy = cross_entropy((SCALE * logits + BIAS)[context], target).item()
    assert fit.nll_after == pytest.approx(entropy, abs=1e-9)
    assert fit.nll_before == pytest.approx(cross_entropy(logits[context], target).item(), rel=1e-12)


@pytest.mark.parametrize("prior_std", [0.1, 1.0, math.inf])
@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_is_zero_at_the_fitted_scaling(prior_std, seed):
    hidden, weight, bias, target = problem(seed)
    logits = hidden @ weight.T + bias
    scaling = VectorScaling(8, prior_std=prior_std, dtype=torch.float64)
    fit = scaling.fit(logits, target)
    found = [scaling.scale.requires_grad_(), scaling.bias.requires_grad_()]
    for gradient in torch.autograd.grad(objective(logits, target, *found, prior_std), found):
        assert gradient.abs().max() < 2e-3  # of a sum over 300 rows
    assert fit.nll_after < fit.nll_before
    assert fit.nll_after == pytest.approx(cross_entropy(scaling(logits), target).item(), rel=1e-12)
    assert scaling.bias.sum().item() == pytest.approx(0, abs=1e-12)


def test_the_linear_fit_is_the_fit_of_its_logits_in_any_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 512)
    hidden, weight, bias, target = problem()
    dense, linear = (VectorScaling(8, dtype=torch.float64) for _ in range(2))
    expected = dense.fit(hidden @ weight.T + bias, target)
    found = linear.fit_linear(hidden, weight, target, linear_bias=bias)
    assert found == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(linear.scale, dense.scale)
    torch.testing.assert_close(linear.bias, dense.bias)


def test_float32_rows_are_fitted_as_closely_as_float64():
    hidden, weight, bias, target = problem()
    double, single = (VectorScaling(8, dtype=torch.float64) for _ in range(2))
    double.fit_linear(hidden, weight, target, linear_bias=bias)
    single.fit_linear(hidden.float(), weight.float(), target, linear_bias=bias.float())
    torch.testing.assert_close(single.scale, double.scale, rtol=0, atol=1e-5)


def test_a_class_without_rows_stays_near_where_it_was_for_the_prior():
    hidden, weight, bias, _ = problem()
    target = torch.arange(300) % 7
    narrow, wide = VectorScaling(8, prior_std=0.1), VectorScaling(8, prior_std=1.0)
    for scaling in (narrow, wide):
        scaling.fit_linear(hidden, weight, target, linear_bias=bias)
    assert wide.bias[7] < narrow.bias[7] < 0


def test_rows_to_ignore_and_masked_classes_change_nothing():
    hidden, weight, bias, target = problem()
    plain, masked, linear = VectorScaling(8), VectorScaling(9), VectorScaling(9)
    fit = plain.fit(hidden @ weight.T + bias, target)
    weight, bias = torch.cat([weight, weight[:1]]), torch.cat([bias, bias.new_tensor([-torch.inf])])
    hidden = torch.cat([hidden, hidden.new_ones(1, 4)]).view(7, 43, 4)
    target = torch.cat([target, target.new_tensor([-100])]).view(7, 43)
    for found in (
        masked.fit(hidden @ weight.T + bias, target),
        linear.fit_linear(hidden, weight, target, linear_bias=bias),
    ):
        assert found == pytest.approx(fit, rel=1e-9)
    torch.testing.assert_close(masked.scale[:8], plain.scale, rtol=0, atol=1e-5)
    assert masked.scale[8] == linear.scale[8] == 1
    assert masked(hidden @ weight.T + bias)[..., 8].isneginf().all()


@pytest.mark.parametrize("kind", [nn.Linear, heads.Softmax])
def test_a_layer_that_it_is_folded_into_is_calibrated(kind):
    hidden, weight, bias, target = problem()
    layer = kind(4, 8, dtype=torch.float64)
    layer.load_state_dict({"weight": weight, "bias": bias})
    scaling = VectorScaling(8, dtype=torch.float64)
    fit = scaling.fit_linear(hidden, weight, target, linear_bias=bias)
    expected = scaling(hidden @ weight.T + bias)
    scaling.apply_to(layer)
    torch.testing.assert_close(hidden @ layer.weight.T + layer.bias, expected)
    assert cross_entropy(expected, target).item() == pytest.approx(fit.nll_after, rel=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 8, bias=False),
        nn.Linear(4, 9),
        heads.NegativeSampling(4, 8, sampler=samplers.Uniform(8), num_samples=3),
    ],
)
def test_layers_that_it_cannot_be_folded_into(layer):
    with pytest.raises(ValueError, match="layer: expected"):
        VectorScaling(8).apply_to(layer)


def test_maximum_likelihood_that_has_no_maximum():
    logits, target = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="got none of class 2"):
        VectorScaling(3, prior_std=math.inf).fit(logits[:2], target[:2])
    scaling = VectorScaling(3, prior_std=math.inf)
    with pytest.raises(ValueError, match="the scaling cannot make right"):
        scaling.fit(logits, target)
    assert torch.equal(scaling.scale, torch.ones(3))


def test_a_descent_that_is_cut_short_says_so(monkeypatch):
    monkeypatch.setattr(vector, "ROUNDS", 1)
    monkeypatch.setattr(vector, "STEPS", 1)
    hidden, weight, bias, target = problem()
    scaling = VectorScaling(8)
    with pytest.raises(RuntimeError, match="no minimum in 1 rounds"):
        scaling.fit(hidden @ weight.T + bias, target)
    assert torch.equal(scaling.scale, torch.ones(8))


def test_wrong_input():
    scaling, logits = VectorScaling(3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="logits: expected 3 classes, got 4"):
        scaling(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="linear_weight: expected 3 classes, got 4"):
        scaling.fit_linear(torch.zeros(2, 5), torch.zeros(4, 5), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="target: expected at least one held-out row"):
        scaling.fit(logits, torch.tensor([-100, -100]))
    with pytest.raises(ValueError, match=r"target: expected class ids in \[0, 3\)"):
        scaling.fit(logits, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="is one masked"):
        scaling.fit(logits - torch.tensor([0, 0, torch.inf]), torch.tensor([0, 2]))
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="prior_std: expected"):
            VectorScaling(3, prior_std=wrong)


@pytest.mark.parametrize("temperature", [1.0, 4.0, "learned", "sqrt_classes"])
def test_a_head_with_a_temperature(temperature):
    """Fitted to the head's own logits, and folded into it, the head has the fitted distribution."""
    hidden, weight, bias, target = problem()
    head = heads.Softmax(weight.shape[1], len(weight), temperature=temperature, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        if head.log_temperature is not None:
            head.log_temperature.fill_(0.7)
    logits = ((hidden @ weight.T + bias) / head.temperature).detach()
    scaling, of_logits = (VectorScaling(8, dtype=torch.float64) for _ in range(2))
    fit = scaling.fit_head(head, hidden, target)
    of_logits.fit(logits, target)
    assert fit.nll_before == pytest.approx(head.nll(hidden, target).mean().item(), rel=1e-12)
    expected = scaling(logits).log_softmax(-1)
    torch.testing.assert_close(expected, of_logits(logits).log_softmax(-1), rtol=1e-5, atol=1e-5)
    scaling.apply_to(head)
    torch.testing.assert_close(head.log_prob(hidden), expected)


def test_heads_whose_softmax_is_of_no_linear_layer():
    hidden, _, _, target = problem()
    for head in (heads.SigSoftmax(4, 8), heads.Entmax(4, 8), heads.TopKSoftmax(4, 8, 3), heads.OneVsAll(4, 8)):
        with pytest.raises(ValueError, match=f"head: expected a head whose distribution .* {type(head).__name__}"):
            VectorScaling(8, dtype=torch.float64).fit_head(head, hidden, target)
        with pytest.raises(ValueError, match=f"layer: expected a head whose distribution .* {type(head).__name__}"):
            VectorScaling(8, dtype=torch.float64).apply_to(head)
