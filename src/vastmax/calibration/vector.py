"""Vector scaling: a scale and a bias for each class."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vastmax.calibration.held_out import (
    Fit,
    Scaling,
    check_fit_starts,
    check_foldable,
    held_out_hidden,
    held_out_logits,
    scaled,
)
from vastmax.heads.flat import FlatHead
from vastmax.scoring import linear_loss
from vastmax.validation import check_finite_number, check_number, check_positive_int

ROUNDS, STEPS = 50, 20
"""Rounds of L-BFGS, each in steps of a size measured anew, and steps in a round; a few rounds are usual."""

TOLERANCE = 1e-4
"""How near the minimum each parameter is to be, about, in standard deviations of its posterior."""


RowLoss = Callable[..., Tensor]
"""`loss(logits (n, V), target (n,), *parameters (V,)) -> (n,)`."""

OverRows = Callable[..., Tensor]
"""`over_rows(loss, *parameters (V,)) -> (N,)`: the loss of every held-out row."""


class VectorScaling(Scaling):
    r"""A scale and a bias for each class, those of least nll on held-out rows.

    $$p_c = \text{softmax}(a \circ s + b)_c, \qquad
      a, b = \arg\min \; -\sum_r \log \text{softmax}(a \circ s_r + b)_{y_r}
      + \frac{\lVert a - 1 \rVert^2 + \lVert b \rVert^2}{2 \sigma^2}$$

    It can undo what a temperature cannot, a class that is given too much or too little; the order of the classes,
    and so the accuracy, may change. The prior keeps a class with few held-out rows or none near where it was, and
    makes the minimum the only one: of maximum likelihood alone, the bias of a class that never occurs is $-\infty$.

    A number added to all logits of a row does not change their softmax, but does change what the scales make of
    them: fit to the logits that will be scaled.
    `scale` and `bias` are buffers: part of the state dict, and of no optimizer. The biases sum to 0.

    Args:
        num_classes: V.
        prior_std: $\sigma$, the standard deviation of the prior of each a - 1 and b; `math.inf` for maximum
            likelihood.
        device: where the buffers are.
        dtype: of the buffers.

    Raises:
        TypeError, ValueError: `num_classes` not an integer of at least 1, `prior_std` not greater than 0.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, where there is no prior.

    Example:
        >>> logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(1000, 3)
        >>> scaling = VectorScaling(3)
        >>> fit = scaling.fit(logits, torch.arange(1000) % 2)
        >>> scaling(logits[0]).softmax(-1).round(decimals=1)
        tensor([0.5000, 0.5000, 0.0000])
    """

    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        prior_std: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = check_positive_int("num_classes", num_classes)
        self.prior_std = check_number("prior_std", prior_std)
        if self.prior_std != math.inf:
            check_finite_number("prior_std", prior_std, above=0.0)
        self.register_buffer("scale", torch.ones(self.num_classes, device=device, dtype=dtype))
        self.register_buffer("bias", torch.zeros(self.num_classes, device=device, dtype=dtype))

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits (..., V) times the scales plus the biases, in the dtype of the logits."""
        self._check_classes("logits", logits, -1)
        return (scaled(logits, self.scale) + self.bias).to(logits.dtype)

    def fit(self, logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Fit:
        """Set scales and biases to the minimum for held-out logits (..., V) and target (...).

        Args:
            logits: (..., V) floating; -inf masks a class.
            target: (...) int64 class ids, or `ignore_index`.
            ignore_index: rows with this target take no part.

        Returns:
            The mean held-out nll with the logits as they are and with the fitted scaling, in nats.

        Raises:
            TypeError: a tensor of the wrong dtype.
            ValueError: shapes that do not fit, no held-out row, a target out of range or masked, NaN; or, without a
                prior, no maximum of the likelihood: a class that never occurs, or all rows made right.
            RuntimeError: no minimum found within `ROUNDS` rounds of L-BFGS.
        """
        rows, label = held_out_logits(logits, target, ignore_index)
        self._check_classes("logits", logits, -1)

        def over_rows(loss: RowLoss, *parameters: Tensor) -> Tensor:
            return loss(rows, label, *parameters)

        return self._minimise(over_rows, label)

    def fit_linear(
        self,
        hidden: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        ignore_index: int = -100,
    ) -> Fit:
        """Set scales and biases to the minimum for a linear layer, without an N x V tensor; see `fit`.

        Some tens to a few hundred evaluations of the nll; the logits are made a few rows at a time, twice in each.

        Args:
            hidden: (..., d) held-out hidden rows.
            linear_weight: (V, d) class rows.
            target: (...) int64 class ids, or `ignore_index`.
            linear_bias: (V,) or None.
            ignore_index: rows with this target take no part.
        """
        rows, label = held_out_hidden(hidden, linear_weight, target, linear_bias, ignore_index)
        self._check_classes("linear_weight", linear_weight, 0)
        weight, given = linear_weight.detach(), None if linear_bias is None else linear_bias.detach()

        def over_rows(loss: RowLoss, *parameters: Tensor) -> Tensor:
            return linear_loss(loss, rows, weight, linear_bias=given, rows=(label,), shared=parameters)

        return self._minimise(over_rows, label)

    @torch.no_grad()
    def apply_to(self, layer: nn.Linear | FlatHead) -> None:
        """Scale a layer's weight and bias and add the biases, in place: its own softmax is then calibrated.

        Serving needs no other change. A weight that is tied to an input embedding changes there too.

        Raises:
            TypeError: neither a `nn.Linear` nor a flat head.
            ValueError: a layer of another number of classes or without a bias, or a head whose distribution is not
                the softmax of its weight and bias alone, as that of `NegativeSampling`.
        """
        check_foldable(layer)
        self._check_classes("layer", layer.weight, 0)
        if layer.bias is None:
            raise ValueError("layer: expected one with a bias, to add the biases of the scaling to, got bias=False")
        layer.weight.mul_(self.scale.unsqueeze(-1))
        # The layer divides its bias by its temperature, which the biases of the scaling have not seen.
        temperature = layer.temperature if isinstance(layer, FlatHead) else 1.0
        layer.bias.copy_(scaled(layer.bias, self.scale) + temperature * self.bias)

    def _minimise(self, over_rows: OverRows, target: Tensor) -> Fit:
        """Set scales and biases to the minimum of the rows' losses and the prior."""
        if self.prior_std == math.inf:
            _check_every_class(target, self.num_classes)
        # In float64, whatever the logits are in: rounding would end the descent before the minimum.
        identity = torch.tensor([1.0, 0.0], dtype=torch.float64, device=target.device).repeat(self.num_classes, 1)

        def objective(found: Tensor) -> Tensor:
            penalty = (found - identity).square().sum() / (2 * self.prior_std**2)
            return over_rows(_nll, *found.unbind(-1)).sum() + penalty

        with torch.no_grad():
            before = over_rows(_nll, *identity.unbind(-1)).mean().item()
        check_fit_starts(before)
        found = identity
        for _ in range(ROUNDS):
            found, steepest = _descend(objective, found, self._posterior_deviation(over_rows, found))
            if steepest <= TOLERANCE:
                break
        else:
            raise RuntimeError(
                f"VectorScaling: no minimum in {ROUNDS} rounds, the gradient is still {steepest:g}; divide the "
                "logits by a fitted temperature first, or give a smaller prior_std"
            )
        scale, bias = found.unbind(-1)
        with torch.no_grad():
            if self.prior_std == math.inf and not over_rows(_wrong, scale, bias).any():
                raise ValueError(
                    "target: expected a held-out row that the scaling cannot make right, got none: the nll falls "
                    "as long as the scales grow; give a finite prior_std"
                )
            after = over_rows(_nll, scale, bias).mean().item()
        self.scale.copy_(scale)
        self.bias.copy_(bias - bias.mean())
        return Fit(before, after)

    def _posterior_deviation(self, over_rows: OverRows, found: Tensor) -> Tensor:
        r"""Return a square root (V, 2, 2) of the covariance that each class's (a, b) has, about, given the rows.

        In steps of it every direction is about as steep, be logits in the hundreds or a class rare. The precision
        is the prior's plus $\sum_r p_{rc} (s_{rc}, 1) (s_{rc}, 1)^\top$, less what classes have in common. These
        moments are derivatives of the log-partition of $\alpha_c s_{rc}^2 + a_c s_{rc} + b_c$ at $\alpha = 0$.
        """
        curve = torch.zeros_like(found[:, 0])
        variables = [x.detach().clone().requires_grad_() for x in (curve, *found.unbind(-1))]
        with torch.enable_grad():
            log_partition = over_rows(_log_partition, *variables).sum()
        square, first, mass = torch.autograd.grad(log_partition, variables)
        precision = torch.stack([square, first, first, mass], -1).view(-1, 2, 2)
        ridge = 1.0 if self.prior_std == math.inf else self.prior_std**-2
        precision.diagonal(dim1=-2, dim2=-1).add_(ridge)
        deviation: Tensor = torch.linalg.inv(torch.linalg.cholesky(precision)).mT
        return deviation

    def _check_classes(self, name: str, values: Tensor, dim: int) -> None:
        if values.shape[dim] != self.num_classes:
            raise ValueError(f"{name}: expected {self.num_classes} classes, got {values.shape[dim]}")

    def extra_repr(self) -> str:
        """Say what was given at construction."""
        return f"num_classes={self.num_classes}, prior_std={self.prior_std:g}"


def _descend(objective: Callable[[Tensor], Tensor], start: Tensor, deviation: Tensor) -> tuple[Tensor, float]:
    """Return where a round of L-BFGS in steps of `deviation` leads from `start`, and the steepest slope there."""
    position = torch.zeros_like(start, requires_grad=True)
    descent = torch.optim.LBFGS(
        [position],
        max_iter=STEPS,
        history_size=STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def found() -> Tensor:
        return start + (deviation @ position.unsqueeze(-1)).squeeze(-1)

    def closure() -> float:
        descent.zero_grad()
        with torch.enable_grad():
            value = objective(found())
        value.backward()
        return value.item()

    descent.step(closure)
    closure()
    assert position.grad is not None
    return found().detach(), position.grad.abs().max().item()


def _log_partition(logits: Tensor, target: Tensor, curve: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    finite = logits.masked_fill(logits.isneginf(), 0.0)
    return (scaled(logits, scale) + curve * finite.square() + bias).logsumexp(-1)


def _nll(logits: Tensor, target: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.cross_entropy(scaled(logits, scale) + bias, target, reduction="none")


def _wrong(logits: Tensor, target: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return (scaled(logits, scale) + bias).argmax(-1) != target


def _check_every_class(target: Tensor, num_classes: int) -> None:
    count = torch.bincount(target, minlength=num_classes)
    if not count.all():
        never = int((count == 0).nonzero()[0])
        raise ValueError(
            f"target: expected every class without a prior, got none of class {never}, whose bias would be -inf; "
            "give a finite prior_std"
        )
