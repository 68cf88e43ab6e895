"""The numerical rank of a model's log-probabilities: how many directions its distributions vary in."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.validation import check_finite, check_finite_number


@torch.no_grad()
def log_prob_spectrum(log_prob: Tensor) -> Tensor:
    """Return the singular values of a contexts x classes matrix of log-probabilities, falling, in float64.

    Args:
        log_prob: (N, V) finite, in nats: a row per context.

    Returns:
        (min(N, V),) singular values.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: not a matrix with a row and a class at least, or NaN or infinite entries.

    Example:
        >>> log_prob_spectrum(torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()).shape
        torch.Size([2])
    """
    if not isinstance(log_prob, Tensor) or not log_prob.is_floating_point():
        kind = log_prob.dtype if isinstance(log_prob, Tensor) else type(log_prob).__name__
        raise TypeError(f"log_prob: expected a floating-point tensor (N, V), got {kind}")
    if log_prob.ndim != 2 or 0 in log_prob.shape:
        raise ValueError(f"log_prob: expected shape (N, V), neither of them 0, got {tuple(log_prob.shape)}")
    check_finite("log_prob", log_prob)
    tall = log_prob.double() if log_prob.shape[0] >= log_prob.shape[1] else log_prob.double().mT
    # The triangular factor has the same singular values, to rounding, and is as small as the matrix's smaller side.
    singular_values: Tensor = torch.linalg.svdvals(torch.linalg.qr(tall, mode="r").R)
    return singular_values


def log_prob_rank(log_prob: Tensor, *, tolerance: float | None = None) -> int:
    r"""Return the number of singular values of a contexts x classes matrix of log-probabilities that are not 0.

    $$\text{rank} = \#\{ i : \sigma_i > \epsilon \, \sigma_1 \}$$

    A softmax of d features has $\log P = H W^\top + 1 b^\top - \log Z \, 1^\top$, of rank at most d + 2, and d + 1
    without a bias, whatever the body of the model is: the softmax bottleneck. Mixtures of softmaxes have no such
    bound.

    Args:
        log_prob: (N, V) finite, in nats: a row per context, more of them than d + 2.
        tolerance: $\epsilon$, in [0, 1); if omitted max(N, V) times the spacing of `log_prob`'s dtype at 1, above
            which rounding does not lift a 0. Where max(N, V) is vast that hides small values, in float32 from
            about 10^4, in half precision from 10: give float64.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: not a matrix with a row and a class at least, NaN or infinite entries, a tolerance outside
            [0, 1), or a dtype so coarse that the default one is.

    References:
        Yang et al., Breaking the Softmax Bottleneck: A High-Rank RNN Language Model, 2018.

    Example:
        >>> hidden, weight = torch.randn(20, 3), torch.randn(30, 3)
        >>> log_prob_rank((hidden @ weight.T).log_softmax(-1))
        4
    """
    spectrum = log_prob_spectrum(log_prob)
    if tolerance is None:
        tolerance = max(log_prob.shape) * torch.finfo(log_prob.dtype).eps
        if tolerance >= 1:
            raise ValueError(
                f"log_prob: expected a finer dtype for shape {tuple(log_prob.shape)}, got {log_prob.dtype}"
            )
    tolerance = check_finite_number("tolerance", tolerance, at_least=0.0, below=1.0)
    return int((spectrum > tolerance * spectrum[0]).sum())
