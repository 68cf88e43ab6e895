"""A small linear layer with its targets, and what torch and the equation say of its loss."""

import torch
from torch.nn import functional

V, D = 11, 5


def problem(rows=(7,), num_classes=V, dim=D, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*rows, dim, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(num_classes, dim, generator=g, dtype=dtype).requires_grad_()
    bias = torch.randn(num_classes, generator=g, dtype=dtype).requires_grad_()
    target = torch.randint(num_classes, rows, generator=g)
    return hidden, weight, bias, target, g


def torch_cross_entropy(hidden, class_rows, target, bias, **options):
    logits = functional.linear(hidden, class_rows, bias)
    flat = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), **options)
    return flat.view(target.shape) if options.get("reduction") == "none" else flat


def assert_same(ours, theirs, inputs, g, **tolerance):
    """Values, and gradients under a random upstream gradient, agree."""
    torch.testing.assert_close(ours, theirs, **tolerance)
    upstream = torch.randn(theirs.shape, generator=g, dtype=theirs.dtype)
    wanted = [x for x in inputs if x.requires_grad]
    for mine, other in zip(
        torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, **tolerance)


def by_the_equation(
    hidden, weight, target, bias, *, temperature, softcap, z_loss, smoothing, gamma, class_weight, w
):
    """The docstring's formula, over all logits, and the weighted mean over rows."""
    logits = functional.linear(hidden, weight, bias) / temperature
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_z = logits.logsumexp(-1)
    label_weight = class_weight[target]
    nll = log_z.unsqueeze(-1) - logits
    term = (1 - (-nll).exp()) ** gamma * nll
    loss = (1 - smoothing) * label_weight * term.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    loss = loss + smoothing / logits.shape[-1] * (term * class_weight).sum(-1) + z_loss * label_weight * log_z**2
    return {"none": w * loss, "sum": (w * loss).sum(), "mean": (w * loss).sum() / (w * label_weight).sum()}
