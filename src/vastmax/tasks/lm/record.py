"""The record of a run: time, tokens, losses, and the curve of exact perplexity."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.model import LanguageModel


class Record(Callback):
    """Keeps the training clock, which stands still during evaluation, and ends a run at its budget.

    Args:
        config: the run's options.
        max_steps: steps of the run if it is counted in epochs.
        announce: called with each point of the curve.
    """

    def __init__(self, config: LMConfig, max_steps: int | None, announce: Any = None) -> None:
        self.config = config
        self.max_steps = max_steps
        self.announce = announce
        self.seconds_before = 0.0
        self.started: float | None = None
        self.losses: list[float] = []
        self.curve: list[dict[str, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.seconds_before + running

    @property
    def steps(self) -> int:
        """Training steps so far."""
        return len(self.losses)

    @property
    def tokens(self) -> int:
        """Training tokens so far."""
        return self.steps * self.config.batch_size * self.config.seq_len

    def pause(self) -> None:
        """Stop the clock."""
        self.seconds_before, self.started = self.seconds, None

    def resume(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        self.resume()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the model how much of the run is behind it."""
        assert isinstance(module, LanguageModel)
        if self.max_steps is not None:
            module.progress = self.steps / self.max_steps
        elif self.config.budget is not None:
            module.progress = self.seconds / self.config.budget

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; end the run when its time is up."""
        self.losses.append(outputs["loss"].item())
        if self.config.budget is not None and self.seconds >= self.config.budget:
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop the clock."""
        self.pause()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Add a point to the curve and start the clock."""
        perplexity = trainer.callback_metrics["perplexity"].item()
        self.curve.append(
            {"step": self.steps, "tokens": self.tokens, "seconds": self.seconds, "perplexity": perplexity}
        )
        if self.announce is not None:
            self.announce(self.curve[-1])
        self.resume()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop the clock."""
        self.pause()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"seconds": self.seconds, "losses": list(self.losses), "curve": [dict(p) for p in self.curve]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved record."""
        self.seconds_before = state_dict["seconds"]
        self.losses = list(state_dict["losses"])
        self.curve = [dict(point) for point in state_dict["curve"]]
