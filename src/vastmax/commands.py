"""What each command does. Its options are the fields of the run's configuration, and their help is there."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from vastmax.study.estimator_options import ESTIMATORS, FIXED, SAMPLERS, StudyOptions, parse_counts, parse_names
from vastmax.tasks.lm.config import LMConfig
from vastmax.tasks.lm.heads import COMMON, HEADS, parse_heads
from vastmax.validation import check_choice

app = typer.Typer(
    help="Output layers for a vast number of classes.", no_args_is_help=True, pretty_exceptions_enable=False
)
train_app = typer.Typer(help="Train one model under one head.", no_args_is_help=True)
compare_app = typer.Typer(help="Train one body under several heads and compare them.", no_args_is_help=True)
study_app = typer.Typer(help="Measure what the choice of an output layer rests on.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(compare_app, name="compare")
app.add_typer(study_app, name="study")
console = Console(highlight=False, markup=False)
errors = Console(stderr=True, highlight=False, markup=False)

Out = Annotated[Path | None, typer.Option(help="Folder for the results; runs/ and the time if omitted.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")]


def with_options_of(
    config: type[LMConfig], **length: float
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of a configuration, passed to it as one object named `config`.

    `length`, `epochs` or `budget`, is that of a run for which the user names neither.
    """
    hints = get_type_hints(config)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[hints[field.name], typer.Option(**field.metadata)],
        )
        for field in fields(config)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "config"]

        def wrapped(**given: Any) -> None:
            chosen = {field.name: given.pop(field.name) for field in fields(config)}
            if chosen["epochs"] is None and chosen["budget"] is None:
                chosen |= length
            command(config=config(**chosen), **given)

        wrapped.__doc__ = command.__doc__
        wrapped.__name__ = command.__name__
        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
        )
        return wrapped

    return decorate


@train_app.command("lm")
@with_options_of(LMConfig, epochs=1.0)
def train_lm(
    config: LMConfig,
    head: Annotated[str, typer.Option(help=f"Output layer: {', '.join(HEADS)}.")] = "sampled",
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Train a language model, for one epoch unless told otherwise, and score it exactly."""
    from vastmax.study.compare import describe, describe_point
    from vastmax.tasks.lm.corpus import read_streams
    from vastmax.tasks.lm.run import RunFolder, check_folder
    from vastmax.tasks.lm.train import train

    check_choice("head", head, HEADS)
    folder = out or new_folder("train-lm", resume)
    check_folder(folder)
    if resume and not RunFolder(folder).options.exists():
        raise ValueError(f"resume: expected a run to go on with in {folder}, found none")
    streams = read_streams(config)
    console.print(describe(streams))
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


@compare_app.command("lm")
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
    from vastmax.study.compare import compare_language_models
    from vastmax.study.report import terminal_table, verdict, write_report

    folder = out or new_folder("compare-lm", resume)
    results = compare_language_models(config, parse_heads(heads), folder, resume=resume, say=console.print)
    report = write_report(results, folder)
    console.print(terminal_table(results))
    console.print(verdict(results))
    console.print(f"report: {report}", soft_wrap=True)


@study_app.command("estimators")
def study_estimators(
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of a run whose head has a row per class; a made-up model if omitted."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of the mini-batch.")] = 256,
    num_classes: Annotated[int | None, typer.Option(help="Classes of a made-up model; 10,000 if omitted.")] = None,
    width: Annotated[int | None, typer.Option(help="Size d of its hidden rows; 64 if omitted.")] = None,
    estimators: Annotated[
        str, typer.Option(help=f"Losses, with commas between, or all: {', '.join(ESTIMATORS)}.")
    ] = "all",
    samplers: Annotated[
        str, typer.Option(help=f"Noise distributions, with commas between, or all: {', '.join(SAMPLERS)}.")
    ] = ",".join(FIXED),
    k: Annotated[str, typer.Option(help="Rising numbers of samples, with commas between.")] = "1,10,100,1000,10000",
    repeats: Annotated[int, typer.Option(help="Draws of each estimate.")] = 30,
    accuracy: Annotated[float, typer.Option(help="Relative error of the gradient that is wanted.")] = 0.1,
    shared: Annotated[bool, typer.Option(help="One set of candidates for the mini-batch, or one per row.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the made-up model and of the draws.")] = 0,
    out: Out = None,
) -> None:
    """Measure bias and variance of sampled gradients, and how many samples an accuracy takes."""
    from vastmax.study import estimators_report as report
    from vastmax.study.estimators import study_estimators as measure
    from vastmax.study.problems import run_problem, synthetic_problem

    options = StudyOptions(
        estimators=parse_names("estimators", estimators, ESTIMATORS),
        samplers=parse_names("samplers", samplers, SAMPLERS),
        num_samples=parse_counts("k", k),
        repeats=repeats,
        accuracy=accuracy,
        shared=shared,
        seed=seed,
    )
    folder = out or new_folder("study-estimators", resume=False)
    report.check_free(folder)
    if run is None:
        num_classes = 10_000 if num_classes is None else num_classes
        problem = synthetic_problem(rows, num_classes, 64 if width is None else width, seed=seed)
    else:
        for name, given in (("num_classes", num_classes), ("width", width)):
            if given is not None:
                raise ValueError(f"{name}: expected with a made-up model, got {given} beside --run")
        problem = run_problem(run, rows)
    results = measure(problem, options)
    report.write_study(results, folder)
    console.print(report.terminal_table(results))
    console.print(report.legend(results))
    console.print(report.verdict(results))
    console.print(f"results: {folder}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[str | None, typer.Option(help="Another text than the run's own.")] = None,
) -> None:
    """Score a trained model exactly: perplexity, and mean and spread of log Z."""
    from vastmax.tasks.lm.train import evaluate as evaluate_run

    result = evaluate_run(run, data)
    print_scores(result)
    console.print_json(json.dumps(result))


def print_scores(result: dict[str, Any]) -> None:
    """Print the exact scores of a model."""
    for part in ("valid", "test"):
        scores = result[part]
        console.print(
            f"{part:>5}: perplexity {scores['perplexity']:,.2f} on {scores['tokens']:,} tokens, "
            f"log Z {scores['log_z_mean']:+.2f} with spread {scores['log_z_std']:.2f}"
        )


def new_folder(kind: str, resume: bool) -> Path:
    """Name a folder by the time."""
    if resume:
        raise ValueError("resume: expected --out to name the folder to go on with, got none")
    return Path("runs") / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit status."""
    from vastmax.tasks.lm.train import Interrupted

    try:
        app(arguments, prog_name="vastmax")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Interrupted as stop:
        errors.print(f"vastmax: {stop}", soft_wrap=True)
        return 130
    except KeyboardInterrupt:
        errors.print("vastmax: interrupted")
        return 130
    except (ValueError, OSError) as error:
        errors.print(f"vastmax: {error}", soft_wrap=True)
        return 2
    return 0
