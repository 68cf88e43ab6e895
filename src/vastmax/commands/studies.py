"""Studies: what the choice of an output layer rests on, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vastmax.commands.app import Out, console, new_folder, study_app
from vastmax.commands.memory import Command
from vastmax.study.estimator_options import ESTIMATORS, FIXED, SAMPLERS, StudyOptions, parse_counts, parse_names
from vastmax.tasks.files import check_free
from vastmax.validation import shown


@study_app.command("estimators", cls=Command)
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
    from vastmax.study.density import check_seed
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
    check_seed(seed)
    folder = out or new_folder("study-estimators", resume=False)
    check_free(folder)
    if run is None:
        num_classes = 10_000 if num_classes is None else num_classes
        problem = synthetic_problem(rows, num_classes, 64 if width is None else width, seed=seed)
    else:
        for name, given in (("num_classes", num_classes), ("width", width)):
            if given is not None:
                raise ValueError(f"{name}: expected with a made-up model, got {shown(given)} beside --run")
        problem = run_problem(run, rows)
    results = measure(problem, options)
    report.write_study(results, folder)
    console.print(report.terminal_table(results))
    console.print(report.legend(results))
    console.print(report.verdict(results))
    console.print(f"results: {folder}", soft_wrap=True)


@study_app.command("density", cls=Command)
def study_density(
    features: Annotated[int, typer.Option(help="Dimensions of the Gaussians.")] = 5,
    sample_sizes: Annotated[
        str, typer.Option(help="Rising numbers of data points, with commas between.")
    ] = "100,200,500,1000",
    k: Annotated[str, typer.Option(help="Rising numbers of noise points per data point.")] = "1,10,100",
    repeats: Annotated[int, typer.Option(help="Gaussians, each with data and noise of its own.")] = 40,
    noise: Annotated[
        str, typer.Option(help="Noise distribution: standard-normal, gaussian or uniform.")
    ] = "standard-normal",
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    out: Out = None,
) -> None:
    """Fit unnormalised Gaussians by noise-contrastive estimation, beside maximum likelihood."""
    from vastmax.study import density_report as report
    from vastmax.study.density import DensityOptions, check_rising
    from vastmax.study.density import study_density as measure

    ratios = parse_counts("k", k)
    check_rising("k", ratios)  # by the option's name; the study has another for it
    options = DensityOptions(
        features=features,
        sample_sizes=parse_counts("sample_sizes", sample_sizes),
        ratios=ratios,
        repeats=repeats,
        noise=noise,
        seed=seed,
    )
    folder = out or new_folder("study-density", resume=False)
    check_free(folder)
    results = measure(options, say=console.print)
    report.write_study(results, folder)
    console.print(report.terminal_table(results))
    console.print(report.legend(results))
    console.print(report.verdict(results))
    console.print(f"results: {folder}", soft_wrap=True)


@study_app.command("bottleneck", cls=Command)
def study_bottleneck(
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a trained language model, as often as there are some; a made-up problem if omitted."
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Test contexts of a trained model; 2,048 if omitted.")] = None,
    heads: Annotated[
        str, typer.Option(help="Made-up problem: softmax, sigsoftmax, mixture, with commas between, or all.")
    ] = "all",
    mixtures: Annotated[str, typer.Option(help="Rising numbers of components of the mixture.")] = "2,4",
    widths: Annotated[str, typer.Option(help="Rising sizes d of a hidden row.")] = "2,4,8,16,32,64",
    contexts: Annotated[int, typer.Option(help="Contexts of the made-up problem.")] = 64,
    num_classes: Annotated[int, typer.Option(help="Its classes.")] = 96,
    scale: Annotated[float, typer.Option(help="Standard deviation of its logits.")] = 2.0,
    steps: Annotated[int, typer.Option(help="Steps of training, each on all contexts.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the problem and of the initial weights.")] = 0,
    out: Out = None,
) -> None:
    """Show the softmax bottleneck, and what breaks it: rank of the log-probabilities, and divergence."""
    from vastmax.study import bottleneck_report as report
    from vastmax.study.bottleneck import HEADS, ROWS, BottleneckOptions, study_runs
    from vastmax.study.bottleneck import study_bottleneck as measure

    options = BottleneckOptions(
        heads=parse_names("heads", heads, dict.fromkeys(HEADS)),
        mixtures=parse_counts("mixtures", mixtures),
        widths=parse_counts("widths", widths),
        contexts=contexts,
        num_classes=num_classes,
        scale=scale,
        steps=steps,
        seed=seed,
    )
    if run and options != BottleneckOptions():
        raise ValueError("run: expected without the options of a made-up problem, got both")
    if rows is not None and not run:
        raise ValueError(f"rows: expected beside --run, got {shown(rows)} without it")
    folder = out or new_folder("study-bottleneck", resume=False)
    check_free(folder)
    if run:
        results = study_runs(run, rows=ROWS if rows is None else rows, say=console.print)
    else:
        results = measure(options, say=console.print)
    report.write_study(results, folder)
    console.print(report.terminal_table(results))
    console.print(report.legend(results))
    console.print(report.verdict(results))
    console.print(f"results: {folder}", soft_wrap=True)
