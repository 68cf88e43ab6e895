"""A body under a head, with the optimizer that fits them."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from vastmax import optim
from vastmax.data.batches import IGNORE_INDEX
from vastmax.metrics import PartitionSpread, Perplexity
from vastmax.optim.row_optimizer import RowOptimizer
from vastmax.tasks.lm.bodies import State, build_body
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.heads import build_head, falling
from vastmax.trees import Tree

WARMUP = 0.05
"""Share of a run over which the learning rate rises to its peak."""

PARTITION_ROWS = 8192
"""Rows over which log Z is described: its spread is an average, and a second pass over V is dear."""


def learning_rate(progress: float) -> float:
    """The share of the peak learning rate at a share of the run: up, then down to 0, in straight lines."""
    return min(progress / WARMUP, (1 - progress) / (1 - WARMUP)) if progress < 1 else 0.0


class LanguageModel(LightningModule):
    """A language model whose training is the head's loss and whose evaluation is exact.

    The head's classes are the tokens by falling frequency, which is how some heads and samplers want them.

    Args:
        config: the run's options.
        head: the name of the head.
        counts: (V,) occurrences of each token in the training text.
        tree: of the hierarchical head.
    """

    class_of_token: Tensor

    def __init__(self, config: LMConfig, head: str, counts: Tensor, tree: Tree | None = None) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.config = config
        self.body = build_body(config, len(counts))
        token_of_class = falling(counts)
        self.head = build_head(head, config, counts[token_of_class], tree)
        self.register_buffer("class_of_token", token_of_class.argsort(), persistent=False)
        self.state: State | None = None
        self.progress = 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int = 0) -> Tensor:
        """Return the head's loss of one batch; the recurrent state goes on to the next."""
        tokens, target = batch
        hidden, self.state = self.body(tokens, self.state)
        loss: Tensor = self.head(hidden, self.class_of_token[target])
        return loss

    def configure_optimizers(self) -> RowOptimizer:
        """One optimizer for dense and sparse gradients alike."""
        if self.config.optimizer == "adagrad":
            return optim.RowwiseAdagrad(self.parameters(), lr=self.config.lr)
        return optim.LazyAdamW(self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Bound the gradient of the body, where it can explode; the head's has one sparse row per class."""
        optim.clip_grad_norm_(self.body.parameters(), self.config.clip)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Fix this step's dropout, draws and learning rate by its number, so that a resumed run repeats them."""
        torch.manual_seed(self.config.seed + (self.global_step + 1) * 1_000_003)
        if batch_idx == 0:
            self.state = None
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.config.lr * learning_rate(self.progress)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the recurrent state."""
        checkpoint["recurrent_state"] = None if self.state is None else list(self.state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the recurrent state."""
        state = checkpoint["recurrent_state"]
        self.state = None if state is None else tuple(part.to(self.device) for part in state)

    def catch_up(self) -> None:
        """Have all rows make the optimizer steps that they missed, to be scored or saved for good."""
        for optimizer in self.trainer.optimizers:
            assert isinstance(optimizer, RowOptimizer)
            optimizer.catch_up()

    def on_validation_start(self) -> None:
        """Begin an exact evaluation."""
        self.catch_up()
        self.scores = ExactScores(self)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the exact evaluation."""
        self.scores.update(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the exact perplexity, by which early stopping decides."""
        self.log("perplexity", self.scores.perplexity.compute(), prog_bar=True)


class ExactScores:
    """Exact perplexity and the spread of log Z of a model, batch by batch along a stream."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.state: State | None = None
        self.perplexity = Perplexity()
        self.partition = PartitionSpread()

    @torch.no_grad()
    def update(self, batch: tuple[Tensor, Tensor]) -> None:
        """Add a batch of (input, target); targets of -100 are padding."""
        tokens, target = batch
        hidden, self.state = self.model.body(tokens, self.state)
        counted = target != IGNORE_INDEX
        rows, label = hidden[counted], self.model.class_of_token[target[counted]]
        self.perplexity.update(self.model.head.nll(rows, label))
        if self.partition.count < PARTITION_ROWS:
            self.partition.update(self.model.head.log_partition(rows))

    def as_dict(self) -> dict[str, float]:
        """The scores by name."""
        return {
            "perplexity": self.perplexity.compute(),
            "log_z_mean": self.partition.mean(),
            "log_z_std": self.partition.std(),
            "tokens": self.perplexity.count,
        }


def parameter_count(model: LanguageModel) -> int:
    """Number of trained numbers."""
    return sum(math.prod(p.shape) for p in model.parameters())
