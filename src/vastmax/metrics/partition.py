"""How near a head's scores come to normalised probabilities."""

import math

import torch
from torch import Tensor


class PartitionSpread:
    r"""Mean and standard deviation over rows of $\log Z$, in nats, given batch by batch.

    A head whose scores are log-probabilities has mean and spread 0. A constant offset (the mean) can be
    subtracted; the spread is what is lost by taking scores for log-probabilities without normalising them.

    Example:
        >>> spread = PartitionSpread()
        >>> spread.update(torch.tensor([1.0, 3.0]))
        >>> spread.mean(), spread.std()
        (2.0, 1.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = 0.0
        self._squares = 0.0

    def update(self, log_partition: Tensor) -> None:
        """Add rows: log Z of any shape, in nats."""
        values = log_partition.detach().to(torch.float64).flatten()
        if values.numel() == 0:
            return
        # Chan, Golub and LeVeque (1983): merging means and squares loses nothing to a large offset.
        count, mean = values.numel(), values.mean().item()
        total = self.count + count
        shift = mean - self._mean
        self._squares += (values - mean).square().sum().item() + shift**2 * self.count * count / total
        self._mean += shift * count / total
        self.count = total

    def mean(self) -> float:
        """Return the mean of log Z over all rows so far.

        Raises:
            ValueError: no row has been added.
        """
        self._check()
        return self._mean

    def std(self) -> float:
        """Return the standard deviation of log Z over all rows so far.

        Raises:
            ValueError: no row has been added.
        """
        self._check()
        return math.sqrt(self._squares / self.count)

    def _check(self) -> None:
        if self.count == 0:
            raise ValueError("PartitionSpread: expected at least one row before it is read, got none")
