"""The exact head: every class, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from vastmax.heads.base import FlatHead
from vastmax.scoring import linear_cross_entropy


class Softmax(FlatHead):
    r"""The exact softmax, in memory bounded by one block of logits.

    $$\ell = \log \sum_c e^{s_c} - s_y, \qquad s_c = h \cdot w_c + b_c$$

    A step costs O(V): three matrix products of N x d x V and a dense optimizer step. It is the yardstick of every
    other head, and with its weights any other flat head can be served.

    Args:
        in_features: d, the size of a hidden row.
        num_classes: V.
        bias: whether each class has a bias.
        ignore_index: rows with this target take no part in the loss.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device: where the parameters are.
        dtype: of the parameters.

    Example:
        >>> head = Softmax(16, 1000)
        >>> hidden, target = torch.randn(4, 16), torch.tensor([1, 2, 3, 999])
        >>> loss = head(hidden, target)
        >>> torch.allclose(loss, -head.log_prob(hidden)[range(4), target].mean(), atol=1e-5)
        True
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = True,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            bias=bias,
            ignore_index=ignore_index,
            reduction=reduction,
            device=device,
            dtype=dtype,
        )
        self.reset_parameters()

    def forward(self, hidden: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the cross-entropy of hidden (..., d) and target: a scalar or (...), in nats; see `Head`."""
        self.check(hidden, target, sample_weight)
        if target.ndim == hidden.ndim:
            return self._over_rows(self._row_loss, hidden, target, self.reduction, sample_weight)
        # The reduced loss of one true class per row has its gradient made in the same pass over the classes.
        return linear_cross_entropy(
            hidden,
            self.weight,
            target,
            linear_bias=self.bias,
            sample_weight=sample_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )
