"""The fit of an estimator to all data at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.density.nce import NCE
from vastmax.validation import check_finite_number, check_positive_int


class Fit(NamedTuple):
    """How a fit ended: the loss, the iterations that it took, and whether they were enough."""

    loss: float
    iterations: int
    converged: bool


def fit(estimator: NCE, x: Tensor, *, max_iter: int = 500, tolerance: float = 1e-6) -> Fit:
    r"""Minimise the loss of all data at once against one sample of noise, by L-BFGS with strong Wolfe steps.

    With the noise held fixed, as in Gutmann and Hyvarinen, the objective is a function like any other. For data too
    large for that, take steps of an optimizer of your choice on `estimator(batch)`, which draws fresh noise.

    Args:
        estimator: what to fit, in place; its `reduction` is `"mean"`.
        x: (n, event), or any leading shape.
        max_iter: iterations at most.
        tolerance: of the gradient's largest entry; the fit also ends where the loss moves by less than its square.

    Raises:
        TypeError, ValueError: an estimator with another reduction or nothing to fit, an option out of its bounds,
            and what `estimator(x)` raises.
        FloatingPointError: the loss or a parameter is not finite in the end, as where the model can tell the data
            from the noise without error.

    Example:
        >>> from vastmax.density import NCE, UnnormalizedGaussian, gaussian_noise
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(1000, 3)
        >>> estimator = NCE(UnnormalizedGaussian(3), gaussian_noise(x))
        >>> fit(estimator, x).converged
        True
    """
    max_iter = check_positive_int("max_iter", max_iter)
    tolerance = check_finite_number("tolerance", tolerance, above=0.0)
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if estimator.reduction != "mean":
        raise ValueError(f"estimator: expected reduction='mean', got {estimator.reduction!r}")
    parameters = [parameter for parameter in estimator.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("estimator: expected a parameter to fit, in a module or the log-partition, got none")
    noise = estimator.sample_noise(x.shape[: x.ndim - len(estimator.noise.event_shape)])
    most_losses = 4 * max_iter
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iter,
        max_eval=most_losses,
        tolerance_grad=tolerance,
        tolerance_change=tolerance**2,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = estimator(x, noise)
        loss.backward()
        return loss

    optimizer.step(loss_and_gradient)
    with torch.no_grad():
        loss = estimator(x, noise).item()
    if not math.isfinite(loss) or not all(parameter.isfinite().all() for parameter in parameters):
        raise FloatingPointError(f"fit: expected to end at a finite loss and parameters, got a loss of {loss}")
    state = optimizer.state[parameters[0]]
    return Fit(loss, state["n_iter"], state["n_iter"] < max_iter and state["func_evals"] < most_losses)
