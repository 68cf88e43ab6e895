"""Train one language model, resume it, and score it exactly."""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.progress import track
from torch import Tensor

from vastmax.data import TokenBatches, Vocabulary
from vastmax.tasks.lm.checkpoint import WholeCheckpoints, read_checkpoint
from vastmax.tasks.lm.config import HEADS, LMConfig
from vastmax.tasks.lm.corpus import TokenStreams, read_streams
from vastmax.tasks.lm.model import ExactScores, LanguageModel, parameter_count
from vastmax.tasks.lm.record import Record
from vastmax.validation import check_choice

CHECKPOINT = "last.ckpt"
EVAL_STRANDS = 16
EVAL_LENGTH = 64


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """Training was interrupted; the message says how to go on."""


def prepare_run(folder: Path, config: LMConfig, head: str, streams: TokenStreams, *, resume: bool) -> bool:
    """Make a run's folder, or check that the one there is this run; return whether there is a checkpoint.

    Raises:
        ValueError: a folder with another run, or with this one and `resume` not asked for.
    """
    check_choice("head", head, HEADS)
    options, vocabulary = folder / "config.json", folder / "vocabulary.json"
    if options.exists():
        if not resume:
            raise ValueError(
                f"out: {folder} holds a run already; add --resume to go on with it, or name another folder"
            )
        saved, more = LMConfig.load(options)
        different = saved.differences(config)
        if more.get("head") != head:
            different.append("head")
        if different:
            raise ValueError(
                f"resume: expected the options that {options} was started with, got another {', '.join(different)}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    streams.vocabulary.save(vocabulary)
    config.save(options, head=head)
    return resume and (folder / CHECKPOINT).exists()


def train(
    config: LMConfig,
    head: str,
    folder: Path,
    streams: TokenStreams,
    *,
    resume: bool = False,
    announce: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train a language model under one head and return what it cost and what it reached.

    The folder receives `config.json`, `vocabulary.json`, `last.ckpt`, `losses.csv` and `result.json`.

    Raises:
        ValueError: a text too short for one batch, or a folder that holds another run.
        Interrupted: Ctrl-C; the last checkpoint is whole.
    """
    batches = TokenBatches(streams.train, config.batch_size, config.seq_len)
    resumed = prepare_run(folder, config, head, streams, resume=resume)
    points = TokenBatches(
        streams.valid[: config.point_tokens + 1], EVAL_STRANDS, eval_length(config), drop_last=False
    )
    model = LanguageModel(config, head, streams.vocabulary.counts)
    max_steps = None if config.epochs is None else max(1, round(config.epochs * len(batches)))
    record = Record(config, max_steps, announce)
    trainer = build_trainer(config, folder, record)
    checkpoint = folder / CHECKPOINT
    if resumed:
        read_checkpoint(checkpoint)  # a damaged file is reported here, in one line, before any work
    with quiet():
        try:
            trainer.fit(model, batches, points, ckpt_path=checkpoint if resumed else None, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            if not trainer.interrupted:
                raise
            raise Interrupted(f"stopped at step {record.steps}; add --resume to go on from {checkpoint}") from stop
        trainer.save_checkpoint(checkpoint)
    write_losses(folder / "losses.csv", record.losses)
    result = {
        "head": head,
        "parameters": parameter_count(model),
        "steps": record.steps,
        "tokens": record.tokens,
        "seconds": record.seconds,
        "tokens_per_second": record.tokens / record.seconds,
        "ms_per_step": 1000 * record.seconds / record.steps,
        "curve": record.curve,
        "valid": score(model, streams.valid, config, "validation"),
        "test": score(model, streams.test, config, "test"),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def build_trainer(config: LMConfig, folder: Path, record: Record) -> Trainer:
    """Return the Lightning trainer of a run."""
    callbacks: list[Callback] = [
        record,
        ModelCheckpoint(
            folder,
            CHECKPOINT.removesuffix(".ckpt"),
            train_time_interval=timedelta(seconds=config.save_every),
            enable_version_counter=False,
        ),
    ]
    if config.patience > 0:
        callbacks.append(EarlyStopping("perplexity", mode="min", patience=config.patience))
    interval: int | timedelta
    if record.max_steps is None:
        assert config.budget is not None
        interval = timedelta(seconds=config.budget / config.points)
    else:
        interval = max(1, record.max_steps // config.points)
    with quiet():
        return Trainer(
            accelerator=config.device,
            devices=1,
            max_epochs=-1 if config.epochs is None else math.ceil(config.epochs),
            max_steps=-1 if record.max_steps is None else record.max_steps,
            val_check_interval=interval,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=config.clip,
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stderr.isatty(),
        )


def load_run(folder: Path) -> tuple[LMConfig, Vocabulary, LanguageModel]:
    """Load a trained model from its run's folder.

    Raises:
        FileNotFoundError: a folder without a run, or a run without a checkpoint.
        ValueError: a file in it that is damaged or foreign.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: expected the folder of a run, with a config.json")
    config, more = LMConfig.load(folder / "config.json")
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    model = LanguageModel(config, more.get("head", ""), vocabulary.counts)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{folder / CHECKPOINT}: expected the weights of this run: {error}") from error
    return config, vocabulary, model


def evaluate(folder: Path, data: str | None = None) -> dict[str, Any]:
    """Score a trained model exactly on the validation and test text of its run, or of `data`."""
    config, vocabulary, model = load_run(folder)
    if data is not None:
        config = LMConfig(**{**vars(config), "data": data})
    streams = read_streams(config, vocabulary)
    return {
        "text": streams.summary(),
        "valid": score(model, streams.valid, config, "validation"),
        "test": score(model, streams.test, config, "test"),
    }


def score(model: LanguageModel, tokens: Tensor, config: LMConfig, name: str) -> dict[str, float]:
    """Return exact perplexity and the spread of log Z over a stream, or over its first `eval_tokens` tokens."""
    tokens = tokens if config.eval_tokens == 0 else tokens[: config.eval_tokens + 1]
    batches = TokenBatches(tokens, EVAL_STRANDS, eval_length(config), drop_last=False)
    model.eval()
    scores = ExactScores(model)
    for batch in track(batches, f"exact {name} perplexity", transient=True, disable=not sys.stderr.isatty()):
        scores.update((batch[0].to(model.device), batch[1].to(model.device)))
    return scores.as_dict()


def eval_length(config: LMConfig) -> int:
    """Tokens of a strand in a batch of evaluation; a transformer sees no further than in training."""
    return EVAL_LENGTH if config.body == "lstm" else config.seq_len


def write_losses(path: Path, losses: list[float]) -> None:
    """Write the loss of every training step, to the last digit."""
    path.write_text(
        "step,loss\n" + "".join(f"{i + 1},{loss!r}\n" for i, loss in enumerate(losses)), encoding="utf-8"
    )


class quiet(warnings.catch_warnings):  # noqa: N801 - used as a statement
    """Hold back what Lightning tells users of Lightning; everything else comes through."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return entered
