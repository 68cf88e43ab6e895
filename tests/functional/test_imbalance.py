"""Focal and logit-adjusted losses and class weights against their formulas and optima."""

import math

import pytest
import torch
from torch.nn import functional as torch_functional

from vastmax import functional as F
from vastmax.scoring.focal import focal

V = 5
COUNTS = torch.tensor([50, 20, 15, 10, 0])


def problem(rows=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(rows, V, generator=g, dtype=torch.float64)).requires_grad_()
    return logits, torch.randint(V, (rows,), generator=g), g


def same(ours, theirs, logits, g):
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn(theirs.shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits, upstream)[0] for loss in (ours, theirs)),
    )


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_focal_without_gamma_is_the_weighted_cross_entropy(reduction):
    logits, target, g = problem()
    target[1] = -100
    alpha = torch.rand(V, generator=g, dtype=torch.float64)
    ours = F.focal_loss(logits, target, gamma=0.0, alpha=alpha, reduction=reduction)
    theirs = torch_functional.cross_entropy(logits, target, weight=alpha, reduction=reduction)
    same(ours, theirs, logits, g)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_its_formula(gamma):
    logits, target, g = problem()
    p = logits.softmax(-1)[range(6), target]
    same(F.focal_loss(logits, target, gamma=gamma, reduction="none"), -((1 - p) ** gamma) * p.log(), logits, g)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("u", [1e-300, 1e-20, 1e-8, 9.9e-5, 1.01e-4, 0.1, 3.0, 700.0])
def test_focal_and_its_slope_from_certainty_to_surprise(gamma, u):
    """In u = -log p the loss is (1 - e^-u)^gamma u."""
    log_p = torch.tensor(-u, dtype=torch.float64, requires_grad=True)
    loss = focal(log_p, gamma)
    rest = -math.expm1(-u)
    assert loss.item() == pytest.approx(rest**gamma * u, rel=1e-10, abs=0.0)
    slope = rest**gamma + gamma * rest ** (gamma - 1) * math.exp(-u) * u
    assert torch.autograd.grad(loss, log_p)[0].item() == pytest.approx(-slope, rel=1e-10)


def test_focal_gradient_at_p_of_one():
    s = torch.tensor([[1e4, 0.0]], requires_grad=True)
    F.focal_loss(s, torch.tensor([0]), gamma=0.5).backward()
    assert torch.equal(s.grad, torch.zeros(1, 2))


def test_a_masked_target_costs_infinitely_much_focal_or_not():
    s = torch.tensor([[-torch.inf, 0.0]])
    for gamma in (0.0, 2.0):
        assert F.focal_loss(s, torch.tensor([0]), gamma=gamma) == torch.inf


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_optimum_of_the_adjusted_loss_is_the_distribution_over_the_prior(tau):
    """Over the exact expectation under p, softmax(s) at the optimum is p / pi^tau, normalised."""
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    log_pi = F.log_prior(COUNTS)
    s = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [s], max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = F.logit_adjusted_cross_entropy(s, p, log_pi, tau=tau)
        loss.backward()
        return loss

    optimizer.step(closure)
    wanted = p * (-tau * log_pi).exp()
    torch.testing.assert_close(s.detach().softmax(-1), wanted / wanted.sum(), rtol=1e-6, atol=1e-8)


def test_adjusted_with_class_ids_is_the_cross_entropy_of_adjusted_logits():
    logits, target, g = problem()
    target[0] = -100
    log_pi = F.log_prior(COUNTS)
    ours = F.logit_adjusted_cross_entropy(logits, target, log_pi, tau=0.7)
    same(ours, torch_functional.cross_entropy(logits + 0.7 * log_pi, target), logits, g)


def test_log_prior_is_finite_and_sums_to_one():
    prior = F.log_prior(COUNTS, pseudocount=0.5).exp()
    torch.testing.assert_close(prior, (COUNTS + 0.5).double() / 97.5)


def test_inverse_frequency_gives_every_class_the_same_say():
    weight = F.inverse_frequency_weight(COUNTS)
    torch.testing.assert_close(weight * COUNTS, torch.tensor([95 / 4] * 4 + [0.0], dtype=torch.float64))


def test_effective_number_weights():
    n = COUNTS[:4].double()
    for beta in (0.5, 0.9, 0.999):
        weight = F.effective_number_weight(COUNTS, beta=beta)
        assert weight[4] == 0
        torch.testing.assert_close((weight * COUNTS).sum(), torch.tensor(95.0).double())
        raw = (1 - beta) / (1 - beta**n)
        torch.testing.assert_close(weight[:4] / weight[0], raw / raw[0])
    torch.testing.assert_close(
        F.effective_number_weight(COUNTS, beta=1 - 1e-9), F.inverse_frequency_weight(COUNTS), rtol=1e-6, atol=0.0
    )
    assert F.effective_number_weight(COUNTS, beta=0.0).tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t: F.focal_loss(s, t, gamma=-1.0), "gamma: expected a finite number of at least 0, got -1.0"),
        (lambda s, t: F.focal_loss(s, t, alpha=torch.ones(3)), r"alpha: expected shape \(5,\)"),
        (lambda s, t: F.focal_loss(s, t, alpha=torch.tensor([torch.nan, 1, 1, 1, 1])), "alpha: expected finite"),
        (lambda s, t: F.focal_loss(s, t, alpha=torch.tensor([-1.0, 1, 1, 1, 1])), "alpha: expected weights of at"),
        (lambda s, t: F.focal_loss(s, t + V), r"target: expected class ids in \[0, 5\)"),
        (lambda s, t: F.logit_adjusted_cross_entropy(s, t, torch.zeros(4)), r"log_prior: expected shape \(5,\)"),
        (lambda s, t: F.logit_adjusted_cross_entropy(s, t, COUNTS.log()), "log_prior: expected finite values"),
        (
            lambda s, t: F.effective_number_weight(COUNTS, beta=1.0),
            "beta: expected a finite number of at least 0 and",
        ),
        (lambda s, t: F.inverse_frequency_weight([0, 0]), "counts: expected at least one count greater than 0"),
        (lambda s, t: F.log_prior([1], pseudocount=0.0), "pseudocount: expected a finite number greater than 0"),
    ],
)
def test_errors(call, message):
    logits, target, _ = problem()
    with pytest.raises(ValueError, match=message):
        call(logits, target)


@pytest.mark.parametrize("prior", [None, [0.0] * V])
def test_a_prior_that_is_no_tensor(prior):
    logits, target, _ = problem()
    with pytest.raises(TypeError, match=r"log_prior: expected a floating-point tensor \(5,\), got"):
        F.logit_adjusted_cross_entropy(logits, target, prior)
