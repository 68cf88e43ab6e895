"""Temperature scaling: known temperatures, the minimum, folding, and rows that determine none."""

import math

import pytest
import torch
from torch import nn

from vastmax import heads, samplers
from vastmax.calibration import TemperatureScaling
from vastmax.functional import cross_entropy
from vastmax.heads.flat import FlatHead
from vastmax.scoring import blocks

PROBABILITIES = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05], [0.1, 0.1, 0.2, 0.25, 0.35]], dtype=torch.float64)
COUNTS = (20 * PROBABILITIES).round().long()


def exact_rows():
    """Contexts and targets, each as often as its probability says."""
    pairs = [(r, c) for r, counts in enumerate(COUNTS) for c, n in enumerate(counts) for _ in range(n)]
    context, target = torch.tensor(pairs).T
    return context, target


def problem(seed=0, dtype=torch.float64, rows=200, classes=12):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, dtype=dtype, generator=generator)
    weight = torch.randn(classes, 6, dtype=dtype, generator=generator)
    bias = torch.randn(classes, dtype=dtype, generator=generator)
    probability = ((hidden @ weight.T + bias) / 2.5).softmax(-1)
    return hidden, weight, bias, probability.multinomial(1, generator=generator).squeeze(-1)


@pytest.mark.parametrize("temperature", [1e-9, 1e-4, 0.01, 0.3, 1.0, 2.0, 37.0, 900.0, 3000.0, 1e9])
@pytest.mark.parametrize("linear", [False, True])
def test_logits_that_are_log_probabilities_times_a_temperature(temperature, linear):
    context, target = exact_rows()
    logits = temperature * PROBABILITIES.log()
    scaling = TemperatureScaling(dtype=torch.float64)
    if linear:
        bias = torch.linspace(-1, 1, 5, dtype=torch.float64)
        hidden = torch.eye(2, dtype=torch.float64)[context]
        fit = scaling.fit_linear(hidden, (logits - bias).T.contiguous(), target, linear_bias=bias)
    else:
        fit = scaling.fit(logits[context], target)
    assert scaling.temperature.item() == pytest.approx(temperature, rel=1e-9)
    entropy = -(PROBABILITIES * PROBABILITIES.log()).sum(-1).mean().item()
    assert fit.nll_after == pytest.approx(entropy, abs=1e-12)
    assert fit.nll_before == pytest.approx(cross_entropy(logits[context], target).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [2.0**-30, 1e-3, 1e3, 2.0**30])
def test_logits_of_any_size(factor, dtype):
    """Logits times a number have their minimum at the temperature times the number, however large it is."""
    hidden, weight, bias, target = problem(dtype=dtype)
    one, many, linear = (TemperatureScaling(dtype=dtype) for _ in range(3))
    fit = one.fit(hidden @ weight.T + bias, target)
    fits = [
        many.fit(factor * (hidden @ weight.T + bias), target),
        linear.fit_linear(hidden, factor * weight, target, linear_bias=factor * bias),
    ]
    rel = 1e-3 if dtype == torch.float32 else 1e-7  # the nll is flat there
    for scaling, found in zip((many, linear), fits, strict=True):
        assert scaling.temperature.item() == pytest.approx(factor * one.temperature.item(), rel=rel)
        assert found.nll_after == pytest.approx(fit.nll_after, rel=1e-5)


def test_logits_that_say_little_are_told_from_those_that_say_nothing():
    """One row more that follows its logits than rows that do not: a minimum, at a high temperature."""
    logits = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(2001, 1)
    target = (torch.arange(2001) % 2).long()  # 1001 of class 0
    scaling = TemperatureScaling(dtype=torch.float64)
    scaling.fit(logits, target)
    assert scaling.temperature.item() == pytest.approx(1 / math.log(1001 / 1000), rel=1e-6)
    for even in (target[:2000], 1 - target):
        with pytest.raises(ValueError, match="say nothing of the targets, and the nll falls until"):
            scaling.fit(logits[: len(even)], even)


@pytest.mark.parametrize("seed", range(4))
def test_the_nll_is_least_and_the_order_of_classes_stays(seed):
    hidden, weight, bias, target = problem(seed)
    logits = hidden @ weight.T + bias
    scaling = TemperatureScaling(dtype=torch.float64)
    fit = scaling.fit(logits, target)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert cross_entropy(logits / (factor * scaling.temperature), target).item() > fit.nll_after
    assert fit.nll_after < fit.nll_before
    assert fit.nll_after == pytest.approx(cross_entropy(scaling(logits), target).item(), rel=1e-12)
    assert torch.equal(scaling(logits).argsort(-1), logits.argsort(-1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_linear_fit_is_the_fit_of_its_logits_in_any_blocks(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 64)
    hidden, weight, bias, target = problem(dtype=dtype)
    dense, linear = TemperatureScaling(dtype=torch.float64), TemperatureScaling(dtype=torch.float64)
    with torch.no_grad():
        expected = dense.fit(hidden @ weight.T + bias, target)
        found = linear.fit_linear(hidden, weight, target, linear_bias=bias)
    assert linear.temperature.item() == pytest.approx(dense.temperature.item(), rel=tolerance)
    assert found == pytest.approx(expected, rel=tolerance)


def test_half_precision_hidden_is_fitted_in_float32():
    hidden, weight, bias, target = problem(dtype=torch.float32)
    half, full = TemperatureScaling(), TemperatureScaling()
    half.fit_linear(hidden.bfloat16(), weight, target, linear_bias=bias)
    full.fit_linear(hidden.bfloat16().float(), weight, target, linear_bias=bias)
    assert half.temperature == full.temperature


def test_rows_to_ignore_and_masked_classes_change_nothing():
    hidden, weight, bias, target = problem()
    plain, masked, linear = (TemperatureScaling(dtype=torch.float64) for _ in range(3))
    fit = plain.fit(hidden @ weight.T + bias, target)
    weight, bias = torch.cat([weight, weight[:1]]), torch.cat([bias, bias.new_tensor([-torch.inf])])
    hidden = torch.cat([hidden, hidden.new_ones(1, 6)]).view(3, 67, 6)
    target = torch.cat([target, target.new_tensor([-100])]).view(3, 67)
    assert masked.fit(hidden @ weight.T + bias, target) == pytest.approx(fit, rel=1e-12)
    assert linear.fit_linear(hidden, weight, target, linear_bias=bias) == pytest.approx(fit, rel=1e-12)
    expected = pytest.approx(plain.temperature.item(), rel=1e-9)
    assert masked.temperature.item() == expected
    assert linear.temperature.item() == expected


def flat_heads():
    noise = samplers.Uniform(12)
    yield nn.Linear(6, 12, dtype=torch.float64)
    yield nn.Linear(6, 12, bias=False, dtype=torch.float64)
    yield heads.Softmax(6, 12, dtype=torch.float64)
    for kind in (heads.SampledSoftmax, heads.NCE, heads.OneVsEach):
        yield kind(6, 12, sampler=noise, num_samples=3, dtype=torch.float64)


@pytest.mark.parametrize("layer", list(flat_heads()), ids=lambda layer: repr(layer)[:40])
def test_a_layer_that_it_is_folded_into_is_calibrated(layer):
    hidden, weight, bias, target = problem()
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
    scaling = TemperatureScaling(dtype=torch.float64)
    fit = scaling.fit_linear(hidden, layer.weight, target, linear_bias=layer.bias)
    scaling.apply_to(layer)
    logits = hidden @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    assert cross_entropy(logits, target).item() == pytest.approx(fit.nll_after, rel=1e-12)
    if isinstance(layer, FlatHead):
        assert layer.nll(hidden, target).mean().item() == pytest.approx(fit.nll_after, rel=1e-12)


class Sparse(heads.Softmax):
    """A flat head with another distribution than the softmax of its logits."""

    def log_prob(self, hidden):
        return super().log_prob(hidden).masked_fill(torch.arange(self.num_classes) > 3, -torch.inf)


@pytest.mark.parametrize(
    ("layer", "error"),
    [
        (heads.NegativeSampling(6, 12, sampler=samplers.Uniform(12), num_samples=3), ValueError),
        (Sparse(6, 12), ValueError),
        (nn.Conv1d(6, 12, 1), TypeError),
        (heads.AdaptiveSoftmax(6, 12, cutoffs=[4]), TypeError),
    ],
)
def test_layers_that_it_cannot_be_folded_into(layer, error):
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(error, match="layer: expected"):
        TemperatureScaling().apply_to(layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_it_is_kept_in_a_state_dict():
    scaling, loaded = TemperatureScaling(), TemperatureScaling()
    hidden, weight, _, target = problem(dtype=torch.float32)
    scaling.fit_linear(hidden, weight, target)
    loaded.load_state_dict(scaling.state_dict())
    assert loaded.temperature == scaling.temperature != 1
    assert not list(scaling.parameters())


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (LOGITS[:0], torch.tensor([], dtype=torch.int64), "target: expected at least one held-out row"),
        (LOGITS, torch.tensor([-100, -100]), "target: expected at least one held-out row"),
        (LOGITS, torch.tensor([0, 3]), r"target: expected class ids in \[0, 3\)"),
        (LOGITS, torch.tensor([0]), "target: expected shape"),
        (LOGITS, torch.tensor([0, 2]), "the nll falls until the temperature is 0"),
        (LOGITS, torch.tensor([2, 0]), "the logits say nothing of the targets"),
        (LOGITS[:1].expand(2, 3) - torch.tensor([0, 0, torch.inf]), torch.tensor([0, 2]), "is one masked"),
        (
            torch.tensor([[3.0, 3.0, 0.0]]),
            torch.tensor([1]),
            r"from 2\^-20 .* still falls at T = .* as good as the largest",
        ),
        (LOGITS * torch.nan, torch.tensor([0, 1]), "logits: expected a finite largest logit"),
    ],
)
def test_rows_that_determine_no_temperature(logits, target, message):
    scaling = TemperatureScaling()
    with pytest.raises(ValueError, match=message):
        scaling.fit(logits, target)
    assert scaling.temperature == 1


def test_linear_rows_that_determine_no_temperature():
    scaling, weight = TemperatureScaling(), torch.eye(3)
    for target in ([0, 2], [2, 0], [0, 3], [-100, -100]):
        with pytest.raises(ValueError, match="expected"):
            scaling.fit_linear(LOGITS, weight, torch.tensor(target))
    with pytest.raises(ValueError, match="input: expected shape"):
        scaling.fit_linear(LOGITS[:, :2], weight, torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="logits: expected a floating-point tensor"):
        scaling.fit(LOGITS.long(), torch.tensor([0, 1]))


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
    scaling, of_logits = (TemperatureScaling(dtype=torch.float64) for _ in range(2))
    fit = scaling.fit_head(head, hidden, target)
    of_logits.fit(logits, target)
    assert fit.nll_before == pytest.approx(head.nll(hidden, target).mean().item(), rel=1e-12)
    expected = scaling(logits).log_softmax(-1)
    torch.testing.assert_close(expected, of_logits(logits).log_softmax(-1), rtol=1e-5, atol=1e-5)
    scaling.apply_to(head)
    torch.testing.assert_close(head.log_prob(hidden), expected)


def test_heads_whose_softmax_is_of_no_linear_layer():
    hidden, _, _, target = problem()
    for head in (heads.SigSoftmax(6, 12), heads.Entmax(6, 12), heads.TopKSoftmax(6, 12, 3), heads.OneVsAll(6, 12)):
        with pytest.raises(ValueError, match=f"head: expected a head whose distribution .* {type(head).__name__}"):
            TemperatureScaling(dtype=torch.float64).fit_head(head, hidden, target)
        with pytest.raises(ValueError, match=f"layer: expected a head whose distribution .* {type(head).__name__}"):
            TemperatureScaling(dtype=torch.float64).apply_to(head)
