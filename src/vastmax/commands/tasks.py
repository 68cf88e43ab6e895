"""Comparisons on small tasks: classification and contrastive learning, several seeds each."""

from __future__ import annotations

from typing import Annotated

import typer

from vastmax.commands.app import Out, Resume, compare_app, console, new_folder, resumable, say, with_options_of
from vastmax.commands.memory import Command
from vastmax.study.estimator_options import parse_names
from vastmax.tasks.classify.config import ClassifyConfig
from vastmax.tasks.classify.heads import KINDS as HEADS
from vastmax.tasks.contrast.config import ContrastConfig
from vastmax.tasks.contrast.losses import KINDS as LOSSES


@compare_app.command("classify", cls=Command)
@with_options_of(ClassifyConfig)
def compare_classify(
    config: ClassifyConfig,
    heads: Annotated[
        str, typer.Option(help=f"Output layers, with commas between, or all: {', '.join(HEADS)}.")
    ] = "all",
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Compare output layers of a classifier, on handwritten digits or on your texts and their labels."""
    from vastmax.study import classify_report as report
    from vastmax.study.classify import compare_classifiers
    from vastmax.study.repeats import has_begun

    folder = out or new_folder("compare-classify", resume)
    names = parse_names("heads", heads, HEADS)
    with resumable(folder, has_begun):
        results = compare_classifiers(config, names, folder, resume=resume, say=say)
        page = report.write_report(results, folder)
    console.print(report.terminal_table(results))
    console.print(report.verdict(results))
    console.print(f"report: {page}", soft_wrap=True)


@compare_app.command("contrast", cls=Command)
@with_options_of(ContrastConfig)
def compare_contrast(
    config: ContrastConfig,
    losses: Annotated[
        str, typer.Option(help=f"Contrastive losses, with commas between, or all: {', '.join(LOSSES)}.")
    ] = "all",
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Compare contrastive losses on two views of each handwritten digit."""
    from vastmax.study import contrast_report as report
    from vastmax.study.contrast import compare_contrastive
    from vastmax.study.repeats import has_begun

    folder = out or new_folder("compare-contrast", resume)
    names = parse_names("losses", losses, LOSSES)
    with resumable(folder, has_begun):
        results = compare_contrastive(config, names, folder, resume=resume, say=console.print)
        page = report.write_report(results, folder)
    console.print(report.terminal_table(results))
    console.print(report.verdict(results))
    console.print(f"report: {page}", soft_wrap=True)
