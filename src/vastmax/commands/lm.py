"""Language models: train one, compare heads, score one again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vastmax.commands.app import (
    Out,
    Resume,
    app,
    compare_app,
    console,
    new_folder,
    resumable,
    say,
    train_app,
    with_options_of,
)
from vastmax.commands.memory import Command
from vastmax.study.estimator_options import parse_names
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.heads import COMMON, HEADS
from vastmax.validation import check_choice, shown


@train_app.command("lm", cls=Command)
@with_options_of(LMConfig, epochs=1.0)
def train_lm(
    config: LMConfig,
    head: Annotated[str, typer.Option(help=f"Output layer: {', '.join(HEADS)}.")] = "sampled",
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Train a language model, for one epoch unless told otherwise, and score it exactly."""
    from vastmax.study.compare import describe_point
    from vastmax.tasks.files import check_folder
    from vastmax.tasks.lm.corpus import describe, read_streams
    from vastmax.tasks.lm.run import RunFolder
    from vastmax.tasks.lm.train import train

    check_choice("head", head, HEADS)
    folder = out or new_folder("train-lm", resume)
    check_folder(folder)
    if resume and not RunFolder(folder).begun:
        raise ValueError(f"resume: expected a run to go on with in {shown(folder)}, found none")
    with resumable(folder, lambda folder: RunFolder(folder).begun):
        streams = read_streams(config)
        say(describe(streams))
        result = train(
            config,
            head,
            folder,
            streams,
            resume=resume,
            announce=lambda point: console.print(describe_point(head, point)),
        )
    print_scores(result)
    console.print(f"run: {folder}", soft_wrap=True)


@compare_app.command("lm", cls=Command)
@with_options_of(LMConfig, budget=60.0)
def compare_lm(
    config: LMConfig,
    heads: Annotated[
        str, typer.Option(help=f"Output layers, with commas between, or all: {', '.join(HEADS)}.")
    ] = ",".join(COMMON),
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Compare output layers of a language model, 60 s of training each unless told otherwise."""
    from vastmax.study.compare import compare_language_models, has_begun
    from vastmax.study.report import terminal_table, verdict, write_report

    folder = out or new_folder("compare-lm", resume)
    with resumable(folder, has_begun):
        results = compare_language_models(
            config, parse_names("heads", heads, HEADS), folder, resume=resume, say=say
        )
        report = write_report(results, folder)
    console.print(terminal_table(results))
    console.print(verdict(results))
    console.print(f"report: {report}", soft_wrap=True)


@app.command(cls=Command)
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[str | None, typer.Option(help="Another text than the run's own.")] = None,
    encoding: Annotated[str, typer.Option(help="Its encoding.")] = "utf-8",
    text_column: Annotated[str | None, typer.Option(help="Its column with the texts, if it is a table.")] = None,
) -> None:
    """Score a trained model exactly: perplexity, and mean and spread of log Z."""
    from vastmax.tasks.lm.corpus import describe_unknown
    from vastmax.tasks.lm.train import evaluate as evaluate_run

    result = evaluate_run(run, data, encoding=encoding, text_column=text_column)
    print_scores(result)
    for line in describe_unknown(result["text"]["unknown"]):
        say(line)
    console.print_json(json.dumps(result))


def print_scores(result: dict[str, Any]) -> None:
    """Print the exact scores of a model."""
    for part in ("valid", "test"):
        scores = result[part]
        console.print(
            f"{part:>5}: perplexity {scores['perplexity']:,.2f} on {scores['tokens']:,} tokens, "
            f"log Z {scores['log_z_mean']:+.2f} with spread {scores['log_z_std']:.2f}"
        )
