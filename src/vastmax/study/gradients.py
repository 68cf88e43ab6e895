r"""The exact gradient of a mini-batch, its noise, and the errors of estimates of it.

Two gradients of the mean loss are looked at, each by itself, because their scales have nothing to do with each
other: that of the class rows (weight and bias), and that of the hidden rows, which a body learns from. With $g^*$
the exact one and $g$ an estimate of it, all figures are relative to $\|g^*\|$.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vastmax import heads
from vastmax.heads import FlatHead
from vastmax.scoring import chosen_logits, linear_log_partition
from vastmax.study.problems import Problem

PARTS = ("class_rows", "hidden")


class GradientErrors:
    r"""Running sums over estimates $g$ of one gradient $g^*$, in the memory of two gradients.

    $$\text{rms}^2 = \mathbb{E} \|g - g^*\|^2 = \text{bias}^2 + \text{std}^2, \qquad
      \text{bias} = \|\mathbb{E} g - g^*\|, \qquad \text{std}^2 = \mathbb{E} \|g - \mathbb{E} g\|^2$$

    The mean $\bar g$ of R estimates is off by the bias and by its own noise, so
    $\text{bias}^2 \approx \|\bar g - g^*\|^2 - \text{std}^2 / R$, or 0 where that is negative.

    Args:
        exact: $g^*$, of any shape, not all 0.
    """

    def __init__(self, exact: Tensor) -> None:
        self.exact = exact
        self.norm = norm(exact)
        if self.norm == 0:
            raise ValueError("problem: expected an exact gradient other than 0, got 0")
        self.mean = torch.zeros_like(exact)
        self.count = 0
        self.scatter = 0.0
        self.squared_error = 0.0
        self.cosine = 0.0

    def update(self, estimate: Tensor) -> None:
        """Add an estimate."""
        self.count += 1
        change = estimate - self.mean
        self.mean += change / self.count
        self.scatter += norm(change) ** 2 * (1 - 1 / self.count)
        error = norm(estimate - self.exact)
        self.squared_error += error**2
        self.cosine += self._cosine(norm(estimate), error)

    def _cosine(self, length: float, error: float) -> float:
        """The cosine with the exact gradient of a vector by its length and its distance from there; 0 of none."""
        if length == 0:
            return 0.0
        return (length**2 + self.norm**2 - error**2) / (2 * length * self.norm)

    def compute(self) -> dict[str, float]:
        """Return the figures by name.

        `bias_resolution` is the standard deviation of the mean of all estimates: a bias well below it can't be
        told from 0. `gain` is how long the estimates are, in the mean, along the exact gradient: 1 where there is
        no bias.
        """
        variance = self.scatter / (self.count - 1)
        distance = norm(self.mean - self.exact)
        bias = math.sqrt(max(0.0, distance**2 - variance / self.count))
        component = (norm(self.mean) ** 2 + self.norm**2 - distance**2) / 2  # of the mean, times the norm
        return {
            "bias": bias / self.norm,
            "bias_resolution": math.sqrt(variance / self.count) / self.norm,
            "std": math.sqrt(variance) / self.norm,
            "error": math.sqrt(self.squared_error / self.count) / self.norm,
            "gain": component / self.norm**2,
            "cosine": self.cosine / self.count,
            "cosine_of_mean": self._cosine(norm(self.mean), distance),
        }


def norm(vector: Tensor) -> float:
    """The Euclidean norm, summed in float64."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def load(head: FlatHead, problem: Problem) -> FlatHead:
    """Give a head the problem's class rows."""
    head.load_state_dict({"weight": problem.weight, "bias": problem.bias})
    return head


def gradients(loss: Tensor, head: FlatHead, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weight and bias, as the head makes them, and of hidden."""
    weight, bias, rows = torch.autograd.grad(loss, (head.weight, head.bias, hidden))  # type: ignore[arg-type]
    return weight, bias, rows


def by_part(weight: Tensor, bias: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Return gradients as one dense tensor for each of `PARTS`; that of the class rows is (V, d + 1)."""
    class_rows = torch.cat([weight.to_dense(), bias.to_dense().unsqueeze(1)], 1)
    return dict(zip(PARTS, (class_rows, hidden), strict=True))


def exact_gradients(problem: Problem) -> dict[str, Tensor]:
    """Return the gradients of the mean exact cross-entropy, by part."""
    head = load(heads.Softmax(*problem.weight.shape[::-1], dtype=problem.weight.dtype), problem)
    hidden = problem.hidden.clone().requires_grad_()
    return by_part(*gradients(head(hidden, problem.target), head, hidden))


def mini_batch_noise(problem: Problem, exact: Tensor) -> float:
    r"""Return the noise of the exact gradient of the class rows itself, from one mini-batch of N rows to another.

    $$\frac{1}{\|g^*\|} \sqrt{\frac{1}{N (N - 1)} \Big(\sum_r \|g_r\|^2 - N \|g^*\|^2\Big)}, \qquad
      \|g_r\|^2 = \|p_r - e_{y_r}\|^2 (1 + \|h_r\|^2)$$

    An estimator much more exact than that buys a training run little. The two are compared at the same length
    along the exact gradient, by `unit_gain`: an estimate of 0 has an error of 1 and no noise, and is no use.

    Args:
        problem: the mini-batch.
        exact: (V, d + 1) $g^*$, weight and bias.
    """
    hidden, weight, bias = problem.hidden.double(), problem.weight.double(), problem.bias.double()
    log_z = linear_log_partition(hidden, weight, linear_bias=bias).log_partition
    (target_logit,) = chosen_logits(hidden, weight, problem.target.unsqueeze(1), linear_bias=bias)
    # The sum of squared probabilities is a ratio of partitions, the one at twice the logits.
    log_z_squared = linear_log_partition(2 * hidden, weight, linear_bias=2 * bias).log_partition
    squared = (log_z_squared - 2 * log_z).exp() - 2 * (target_logit.squeeze(1) - log_z).exp() + 1
    per_row = squared * (1 + hidden.square().sum(1))
    count = problem.num_rows
    scatter = per_row.sum().item() - count * norm(exact) ** 2
    return math.sqrt(max(0.0, scatter) / (count * (count - 1))) / norm(exact)
