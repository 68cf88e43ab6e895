"""The record of a run: time, tokens, losses, and the curve of exact perplexity."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.model import LanguageModel


class Record(Callback):
    """Keeps the training clock, which stands still during evaluation, and ends a run at its budget.

    Args:
        config: the run's options.
        max_steps: steps of the run if it is counted in epochs.
        checkpoint: where to save when the user asks to stop.
        announce: called with each point of the curve.
    """

    def __init__(
        self,
        config: LMConfig,
        max_steps: int | None,
        checkpoint: Path,
        announce: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.config = config
        self.max_steps = max_steps
        self.checkpoint = checkpoint
        self.announce = announce
        self.stop_asked = False
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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a while."""
        running = self.started is not None
        self.pause()
        yield
        if running:
            self.resume()

    @contextmanager
    def stopping_on_ctrl_c(self) -> Iterator[None]:
        """Let the first Ctrl-C end training after the step under way; a second one ends it at once.

        Raises:
            KeyboardInterrupt: it was asked for after the last step, and is due now.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread alone
            return

        def ask(number: int, frame: Any) -> None:
            self.stop_asked = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.stop_asked:
            raise KeyboardInterrupt

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock, unless a resumed run has used up its time."""
        if self.config.budget is not None and self.seconds >= self.config.budget:
            trainer.should_stop = True
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
        """Note the loss; end the run when its time is up or the user asks."""
        self.losses.append(outputs["loss"].item())
        if self.config.budget is not None and self.seconds >= self.config.budget:
            trainer.should_stop = True
        if self.stop_asked:
            trainer.save_checkpoint(self.checkpoint)
            raise KeyboardInterrupt

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Stop the clock."""
        self.pause()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Add a point to the curve and start the clock."""
        self.add_point(trainer.callback_metrics["perplexity"].item())
        self.resume()

    def add_point(self, perplexity: float) -> None:
        """Add a point to the curve."""
        self.curve.append(
            {"step": self.steps, "tokens": self.tokens, "seconds": self.seconds, "perplexity": perplexity}
        )
        if self.announce is not None:
            self.announce(self.curve[-1])

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
