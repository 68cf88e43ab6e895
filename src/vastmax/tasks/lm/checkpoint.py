"""Checkpoints that are whole or not there, and loading that runs no code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from vastmax.optim.row_optimizer import RowOptimizer
from vastmax.validation import cut, shown

CONTENT = ("state_dict", "optimizer_states", "loops", "callbacks", "recurrent_state")


class WholeCheckpoints(TorchCheckpointIO):
    """Write to a draft beside the checkpoint and rename it: a kill at any moment leaves the old file or the new.

    Args:
        paused: a context to write in, which stops the training clock.
    """

    def __init__(self, paused: Callable[[], AbstractContextManager[None]]) -> None:
        self.paused = paused

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`."""
        draft = Path(f"{path}.draft")
        with self.paused(), draft.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a language-model run; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is cut short or that is no such checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)}: expected the checkpoint of a run, found no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = cut(next(iter(str(error).strip().splitlines()), type(error).__name__))
        raise ValueError(
            f"{shown(path)}: expected a whole checkpoint of tensors, got a file that is not: {reason}"
        ) from error
    if isinstance(content, dict) and not isinstance(content.get("state_dict", {}), dict):
        raise ValueError(
            f"{shown(path)}: expected the weights of a model, got {type(content['state_dict']).__name__}"
        )
    missing = [name for name in CONTENT if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(
            f"{shown(path)}: expected a checkpoint of a language-model run, got one without {', '.join(missing)}"
        )
    return dict(content)


def load_weights(model: torch.nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        ValueError: weights of another model.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = cut(str(error).removeprefix(f"Error(s) in loading state_dict for {type(model).__name__}:"))
        raise ValueError(f"{shown(path)}: expected the weights of this run, got others: {reason}") from error


def pay_debts(optimizer: RowOptimizer, checkpoint: dict[str, Any], path: Path) -> None:
    """Have the rows of a model, which has the checkpoint's weights, make the steps that they missed until it.

    A checkpoint within a run holds the rows as they are, or the run would not be the same without it.

    Raises:
        ValueError: the state of another optimizer.
    """
    states = checkpoint["optimizer_states"]
    if not isinstance(states, list) or len(states) != 1:
        raise ValueError(f"{shown(path)}: expected the state of one optimizer, got {shown(states)}")
    try:
        optimizer.load_state_dict(states[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{shown(path)}: expected the state of this run's optimizer, got another: {cut(str(error))}"
        ) from error
    optimizer.catch_up()
