"""One mini-batch before one output layer, to study gradients on: made up, or out of a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vastmax.data.batches import IGNORE_INDEX
from vastmax.heads import FlatHead
from vastmax.scoring import linear_logits
from vastmax.tasks.lm.corpus import read_streams
from vastmax.tasks.lm.train import eval_batches, load_run
from vastmax.validation import check_positive_int, shown

LOGIT_SPREAD = 2.0
"""Standard deviation of hidden . weight in the made-up model: its softmax is 2 nats from the class frequencies."""

MOST_PROBABILITIES = 1 << 24
"""Probabilities held at a time while targets are drawn."""


@dataclass(frozen=True)
class Problem:
    """A mini-batch and the class rows that score it; classes by falling frequency.

    Attributes:
        source: what it is, for a reader.
        hidden: (N, d).
        target: (N,) int64.
        weight: (V, d).
        bias: (V,).
        counts: (V,) how often each class occurs, at least 1.
    """

    source: str
    hidden: Tensor
    target: Tensor
    weight: Tensor
    bias: Tensor
    counts: Tensor

    @property
    def num_rows(self) -> int:
        """N, the size of the mini-batch."""
        return len(self.hidden)

    @property
    def num_classes(self) -> int:
        """V."""
        return len(self.weight)


def synthetic_problem(
    num_rows: int = 256,
    num_classes: int = 10_000,
    width: int = 64,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    r"""Make up a model of Zipfian classes, and targets that follow it.

    $$n_c \propto \frac 1 {c + 1}, \qquad b_c = \log n_c, \qquad h \sim N(0, I), \qquad
      w_c \sim N(0, \tfrac 4 d I), \qquad y \sim \text{softmax}(h \cdot w + b)$$

    Raises:
        ValueError: fewer than two rows or classes, or no width.

    Example:
        >>> synthetic_problem(8, 100, 4).weight.shape
        torch.Size([100, 4])
    """
    num_rows = check_rows(num_rows)
    num_classes = check_positive_int("num_classes", num_classes)
    if num_classes < 2:
        raise ValueError("num_classes: expected at least 2, got 1")
    width = check_positive_int("width", width)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, width, dtype=dtype, generator=generator)
    weight = torch.randn(num_classes, width, dtype=dtype, generator=generator) * (LOGIT_SPREAD / width**0.5)
    counts = num_classes / torch.arange(1, num_classes + 1, dtype=torch.float64)
    bias = (counts / counts.sum()).log().to(dtype)
    return Problem(
        source=f"synthetic, Zipfian, d = {width}",
        hidden=hidden,
        target=draw_targets(hidden, weight, bias, generator),
        weight=weight,
        bias=bias,
        counts=counts,
    )


def draw_targets(hidden: Tensor, weight: Tensor, bias: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a class (N,) for each row from its softmax, a few rows at a time."""
    step = max(1, MOST_PROBABILITIES // len(weight))
    drawn = []
    for rows in hidden.split(step):
        cumulative = linear_logits(rows, weight, linear_bias=bias).double().softmax(-1).cumsum(-1)
        uniform = torch.rand(len(rows), 1, dtype=torch.float64, generator=generator)
        drawn.append(torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1))
    return torch.cat(drawn)


@torch.no_grad()
def run_problem(folder: Path, num_rows: int = 256) -> Problem:
    """Take the first rows of a language-model run's validation text, and its head.

    Raises:
        FileNotFoundError: a folder without a run.
        ValueError: a run that is damaged, or whose head has no row of weight per class; more rows than
            validation text.
    """
    num_rows = check_rows(num_rows)
    config, vocabulary, model = load_run(folder)
    head = model.head
    if not isinstance(head, FlatHead):
        raise ValueError(
            f"run: expected a head with one row of weight per class, got {type(head).__name__} in {shown(folder)}"
        )
    model.eval()
    hidden, target, state = [], [], None
    missing = num_rows
    for tokens, following in eval_batches(read_streams(config, vocabulary).valid, config):
        rows, state = model.body(tokens, state)
        counted = following != IGNORE_INDEX
        hidden.append(rows[counted][:missing])
        target.append(model.class_of_token[following[counted]][:missing])
        missing -= len(hidden[-1])
        if missing == 0:
            break
    else:
        raise ValueError(
            f"rows: expected at most {num_rows - missing}, the tokens of validation text, got {num_rows}"
        )
    bias = head.exact_bias()
    return Problem(
        source=f"{folder}, {config.body} of d = {config.width}",
        hidden=torch.cat(hidden),
        target=torch.cat(target),
        weight=head.weight.detach(),
        bias=head.weight.new_zeros(head.num_classes) if bias is None else bias.to(head.weight.dtype),
        counts=vocabulary.counts.sort(descending=True, stable=True).values.clamp(min=1),
    )


def check_rows(num_rows: int) -> int:
    """Return the number of rows if there are enough to have a spread."""
    num_rows = check_positive_int("rows", num_rows)
    if num_rows < 2:
        raise ValueError("rows: expected at least 2, so that a mini-batch has noise, got 1")
    return num_rows
