"""Train one language model, resume it, and score it exactly."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vastmax.data import TokenBatches, Vocabulary
from vastmax.interruption import Interrupted
from vastmax.tasks.files import check_unread
from vastmax.tasks.lm.checkpoint import WholeCheckpoints, load_weights, pay_debts, read_checkpoint
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.corpus import TokenStreams, read_streams
from vastmax.tasks.lm.heads import HIERARCHICAL, build_tree, check_head
from vastmax.tasks.lm.model import ExactScores, LanguageModel, parameter_count
from vastmax.tasks.lm.record import Record
from vastmax.tasks.lm.run import RunFolder
from vastmax.trees import Tree
from vastmax.validation import shown

EVAL_STRANDS = 16
EVAL_LENGTH = 64


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

    The folder receives `config.json`, `vocabulary.json`, `last.ckpt`, `losses.csv` and `result.json`. With
    `resume`, a run that is done is not trained again.

    Raises:
        ValueError: a text too short for one batch, a folder that holds another run, a damaged checkpoint.
        Interrupted: Ctrl-C; the last checkpoint is whole, and `resume` goes on from it.
    """
    check_device(config.device)
    counts = streams.vocabulary.counts
    check_head(head, config, counts)
    batches = TokenBatches(streams.train, config.batch_size, config.seq_len)
    run = RunFolder(folder)
    run.begin(config, head, streams, resume=resume)
    if (done := run.result()) is not None:
        return done
    tree = None
    if head == HIERARCHICAL:
        with Console(stderr=True).status("hierarchical: a tree of the tokens, by their neighbours"):
            tree = build_tree(streams.train, counts)
    model = LanguageModel(config, head, counts, tree)
    resumed = run.checkpoint.exists()
    if resumed:  # a damaged file is reported here, in one line, before any work
        load_weights(model, read_checkpoint(run.checkpoint), run.checkpoint)
    points = TokenBatches(
        streams.valid[: config.point_tokens + 1], EVAL_STRANDS, eval_length(config), drop_last=False
    )
    max_steps = None if config.epochs is None else max(1, round(config.epochs * len(batches)))
    record = Record(config, max_steps, run.checkpoint, announce)
    with quiet(), record.stopping_on_ctrl_c():
        trainer = build_trainer(config, run, record)
        try:
            trainer.fit(model, batches, points, ckpt_path=run.checkpoint if resumed else None, weights_only=True)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C
            if not trainer.interrupted:
                raise
            raise Interrupted(f"stopped at step {record.steps}") from stop
        model.catch_up()
        if not record.curve or record.curve[-1]["step"] < record.steps:  # a curve ends where its run does
            record.add_point(score(model, points, "curve")["perplexity"])
        trainer.save_checkpoint(run.checkpoint)
    write_losses(run.losses, record.losses)
    result = {
        "head": head,
        "parameters": parameter_count(model),
        "steps": record.steps,
        "tokens": record.tokens,
        "seconds": record.seconds,
        "tokens_per_second": record.tokens / record.seconds,
        "ms_per_step": 1000 * record.seconds / record.steps,
        "curve": record.curve,
        "valid": score(model, eval_batches(streams.valid, config), "validation"),
        "test": score(model, eval_batches(streams.test, config), "test"),
    }
    run.finish(result)
    return result


def check_device(device: str) -> None:
    """Raise ValueError if a GPU is asked for and torch can use none."""
    if device == "gpu" and not torch.accelerator.is_available():
        raise ValueError("device: expected cpu or auto on a machine without a GPU that torch can use, got gpu")


def build_trainer(config: LMConfig, run: RunFolder, record: Record) -> Trainer:
    """Return the Lightning trainer of a run."""
    callbacks: list[Callback] = [
        record,
        ModelCheckpoint(
            run.path,
            run.checkpoint.stem,
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
        interval = math.ceil(record.max_steps / config.points)
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
        plugins=[WholeCheckpoints(record.paused)],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )


def load_run(folder: Path) -> tuple[LMConfig, Vocabulary, LanguageModel]:
    """Load a trained model from its run's folder, of a run that was stopped as it stood, with all rows caught up.

    Raises:
        FileNotFoundError: a folder without a run, or a run without a checkpoint.
        ValueError: a file in it that is damaged or foreign.
    """
    run = RunFolder(folder)
    if not run.options.exists():
        raise FileNotFoundError(f"{shown(folder)}: expected the folder of a run, with a config.json")
    config, more = LMConfig.load(run.options)
    vocabulary = Vocabulary.load(run.vocabulary)
    checkpoint = read_checkpoint(run.checkpoint)
    children = checkpoint["state_dict"].get("head._extra_state")  # what a hierarchical head saves of its tree
    tree = None if children is None else Tree(children)
    model = LanguageModel(config, more.get("head", ""), vocabulary.counts, tree)
    load_weights(model, checkpoint, run.checkpoint)
    pay_debts(model.configure_optimizers(), checkpoint, run.checkpoint)
    return config, vocabulary, model


def evaluate(
    folder: Path, data: str | None = None, *, encoding: str = "utf-8", text_column: str | None = None
) -> dict[str, Any]:
    """Score a trained model exactly on the validation and test text of its run, or of `data`.

    Raises:
        FileNotFoundError, ValueError: a folder without a run; a text that cannot be read, or options of one
            without it.
    """
    config, vocabulary, model = load_run(folder)
    if data is not None:
        other = {"data": data, "encoding": encoding, "text_column": text_column}
        config = LMConfig(**{**vars(config), **other})
    else:
        check_unread(LMConfig, encoding=encoding, text_column=text_column)
    streams = read_streams(config, vocabulary)
    return {
        "text": streams.summary(),
        "valid": score(model, eval_batches(streams.valid, config), "validation"),
        "test": score(model, eval_batches(streams.test, config), "test"),
    }


def score(model: LanguageModel, batches: TokenBatches, name: str) -> dict[str, float]:
    """Return exact perplexity and the spread of log Z over a stream."""
    model.eval()
    scores = ExactScores(model)
    for batch in track(batches, f"exact {name} perplexity", transient=True, disable=not sys.stderr.isatty()):
        scores.update((batch[0].to(model.device), batch[1].to(model.device)))
    return scores.as_dict()


def eval_batches(tokens: Tensor, config: LMConfig) -> TokenBatches:
    """Cut a stream, or its first `eval_tokens` tokens, for evaluation."""
    tokens = tokens if config.eval_tokens == 0 else tokens[: config.eval_tokens + 1]
    return TokenBatches(tokens, EVAL_STRANDS, eval_length(config), drop_last=False)


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
        warnings.filterwarnings("ignore", message=".*The dirpath has changed.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return entered
