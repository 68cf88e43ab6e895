"""The command line: its groups of commands, what they print to, and options made of a configuration."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperGroup

from vastmax.interruption import Interrupted, nothing_kept, saying
from vastmax.validation import cut, shown

LONGEST = 500
"""Characters of an error's line."""


class Commands(TyperGroup):
    """The commands, which tell of Ctrl-C as of training that was stopped: Typer alone ends without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted(nothing_kept()) from stop


app = typer.Typer(
    cls=Commands,
    help="Output layers for a vast number of classes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train one model under one head.", no_args_is_help=True)
compare_app = typer.Typer(help="Train one body under several heads and compare them.", no_args_is_help=True)
study_app = typer.Typer(help="Measure what the choice of an output layer rests on.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(compare_app, name="compare")
app.add_typer(study_app, name="study")
console = Console(highlight=False, markup=False)
errors = Console(stderr=True, highlight=False, markup=False)


def say(line: str) -> None:
    """Print a line, however long it is."""
    console.print(line, soft_wrap=True)


Out = Annotated[Path | None, typer.Option(help="Folder for the results; runs/ and the time if omitted.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoints in --out.")]


def with_options_of(config: type[Any], **length: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
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
            if length and chosen["epochs"] is None and chosen["budget"] is None:
                chosen |= length
            command(config=config(**chosen), **given)

        wrapped.__doc__ = command.__doc__
        wrapped.__name__ = command.__name__
        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
        )
        return wrapped

    return decorate


def new_folder(kind: str, resume: bool) -> Path:
    """Name a folder by the time."""
    if resume:
        raise ValueError("resume: expected --out to name the folder to go on with, got none")
    return Path("runs") / f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"


def one_line(error: Exception, arguments: Sequence[str]) -> str:
    """What an error says, cut to a line whoever says it: Typer and the system quote what they are given whole."""
    message = str(error)
    if isinstance(error, typer.TyperException):
        message = error.format_message()
        for given in (text for argument in arguments for text in (argument, argument.partition("=")[2])):
            message = message.replace(given, cut(given)) if given != cut(given) else message
        message = " ".join(map(cut, message.split()))
        if message and (place := getattr(error, "ctx", None)) is not None:
            message += f" ({place.command_path} --help lists what there is)"
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{shown(Path(error.filename))}: {error.strerror}"
    line = " ".join(message.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


@contextmanager
def resumable(folder: Path, begun: Callable[[Path], object]) -> Iterator[None]:
    """Tell a user who interrupts a command how to go on with what its folder holds by then.

    `begun` says whether the folder holds anything that --resume goes on with.
    """

    def message(what: str = "interrupted") -> str:
        if not begun(folder):
            return nothing_kept()
        options = f"--resume --out {shlex.quote(str(folder))}"
        return f"{what}; what is done is kept, and the same command with {options} goes on"

    with saying(message):
        try:
            yield
        except KeyboardInterrupt as stop:
            raise Interrupted(message()) from stop
        except Interrupted as stop:
            raise Interrupted(message(str(stop))) from stop
