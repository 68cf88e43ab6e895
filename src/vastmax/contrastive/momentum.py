"""The encoder of keys that follows the encoder of queries slowly."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vastmax.validation import check_finite_number


def momentum_encoder(encoder: nn.Module, momentum: float = 0.999) -> AveragedModel:
    r"""Return a copy of an encoder that wants no gradient and follows it by `update_parameters(encoder)`.

    $$\theta_k \leftarrow m\, \theta_k + (1 - m)\, \theta_q$$

    at each call of `update_parameters`; buffers are copied as they are. It is torch's own `AveragedModel`, started
    so that the first update, too, is an average.

    Args:
        encoder: the module to follow, copied as it is now.
        momentum: m, in [0, 1).

    Raises:
        TypeError: an encoder that is not a module, or a momentum that is not a number.
        ValueError: a momentum out of range.

    References:
        He, Fan, Wu, Xie and Girshick, Momentum Contrast for Unsupervised Visual Representation Learning, 2020.

    Example:
        >>> query_encoder = torch.nn.Linear(8, 4)
        >>> key_encoder = momentum_encoder(query_encoder, 0.99)
        >>> key = key_encoder(torch.randn(2, 8))
        >>> key.requires_grad
        False
        >>> key_encoder.update_parameters(query_encoder)  # after each step of the optimizer
    """
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder: expected a torch.nn.Module, got {type(encoder).__name__}")
    momentum = check_finite_number("momentum", momentum, at_least=0.0, below=1.0)
    average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(momentum))
    average.requires_grad_(False)
    average.update_parameters(encoder)  # AveragedModel's first update copies whatever there is by then
    return average
