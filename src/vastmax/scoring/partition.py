"""What losses are made of: a row's partition in parts, so that none is the difference of two large numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vastmax.kernels.reference import BlockSums


class SplitPartition(NamedTuple):
    r"""What a row's log-partition is made of, each (N,), in nats.

    $\log Z$ as one number is no use to a loss: beside a large logit its last digit is worth more than the loss, and
    beside a target of probability near 1 it keeps nothing of what is left for the other classes.

    Attributes:
        maximum: m, the largest logit.
        log_mass: $\log Z - m$, from 0 to log V.
        target_logit: $s_y$.
    """

    maximum: Tensor
    log_mass: Tensor
    target_logit: Tensor

    @classmethod
    def of(cls, target_logit: Tensor, others: BlockSums) -> SplitPartition:
        r"""Join the target's logit and what the other classes sum to, $M = \sum_{c \ne y} e^{s_c - m_o}$.

        $$m = \max(s_y, m_o), \qquad \log Z - m = \log \left(e^{s_y - m} + e^{m_o - m} M\right)$$
        """
        maximum = torch.maximum(target_logit, others.maximum)
        log_mass = torch.logaddexp(target_logit - maximum, (others.maximum - maximum) + others.mass.log())
        return cls(maximum, log_mass, target_logit)

    @property
    def log_prob(self) -> Tensor:
        r"""$\log p_y$, from two numbers of at most 0 that cannot cancel."""
        return (self.target_logit - self.maximum) - self.log_mass

    @property
    def log_partition(self) -> Tensor:
        r"""$\log Z$, for what is a function of its size."""
        return self.maximum + self.log_mass

    def probability(self, logit: Tensor) -> Tensor:
        r"""$e^{s - \log Z}$ of one logit (N,) of each row."""
        return torch.exp((logit - self.maximum) - self.log_mass)


class RowStatistics(NamedTuple):
    r"""What a loss needs to know of a row's logits; each (N,), in nats.

    Attributes:
        log_prob: of the target, $\log p_y = s_y - \log Z$.
        target_logit: $s_y$.
        log_partition: $\log Z$.
        weighted_log_prob: $\sum_c v_c \log p_c$ with the scorer's class weights v; 0 without.
    """

    log_prob: Tensor
    target_logit: Tensor
    log_partition: Tensor
    weighted_log_prob: Tensor

    @classmethod
    def of(cls, partition: SplitPartition, weighted_log_prob: Tensor) -> RowStatistics:
        """Put together what a scorer found."""
        return cls(partition.log_prob, partition.target_logit, partition.log_partition, weighted_log_prob)

    def slopes(self, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return what these gradients of the statistics make of each logit, but for the class weights.

        That is $u p_c$ at other classes than the target, $u = g_Z - g_y$, and at the target $u p_y + g_y + g_s$, as
        $g_Z p_y + g_y (1 - p_y) + g_s$ with the digits of $1 - p_y$ that a p near 1 has lost.

        Args:
            log_prob: (N,) of the target, $\log p_y$.

        Returns:
            u and the target's, each (N,).
        """
        of_target = self.log_partition * log_prob.exp() - self.log_prob * torch.expm1(log_prob)
        return self.log_partition - self.log_prob, of_target + self.target_logit


def merged(one: BlockSums, other: BlockSums) -> BlockSums:
    """Return the sums of two sets of a row's classes together."""
    return total(BlockSums(*(torch.stack(parts) for parts in zip(one, other, strict=True))))


def total(sums: BlockSums) -> BlockSums:
    """Return the sums (N,) of all blocks together, of sums (B, N) of each."""
    maximum = sums.maximum.amax(0)
    return BlockSums(maximum, (sums.mass * (sums.maximum - maximum).exp()).sum(0))
