"""Perplexity from exact negative log-likelihoods."""

import math

import torch
from torch import Tensor


class Perplexity:
    r"""The perplexity $\exp(\frac{1}{n} \sum_r \ell_r)$ of rows whose exact nll, in nats, is given batch by batch.

    torchmetrics' `Perplexity` wants the N x V probabilities; a head's `nll` needs none.

    Example:
        >>> perplexity = Perplexity()
        >>> perplexity.update(torch.full((3,), 2.0).log())
        >>> perplexity.update(torch.full((1,), 32.0).log())
        >>> round(perplexity.compute(), 4)
        4.0
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def update(self, nll: Tensor, counted: Tensor | None = None) -> None:
        """Add rows: nll of any shape, in nats, or those of them that `counted`, a bool of that shape, is True for.

        Heads give rows of `ignore_index` an nll of 0: leave them out here, `target != ignore_index`.
        """
        if counted is not None:
            nll = nll[counted]
        self.total += nll.sum(dtype=torch.float64).item()
        self.count += nll.numel()

    def compute(self) -> float:
        """Return the perplexity of all rows so far.

        Raises:
            ValueError: no row has been added.
        """
        if self.count == 0:
            raise ValueError("Perplexity: expected at least one row before compute, got none")
        mean = self.total / self.count
        return math.inf if mean > math.log(torch.finfo(torch.float64).max) else math.exp(mean)
