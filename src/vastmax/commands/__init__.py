"""What each command does. Options of a run are the fields of its configuration, and their help is there."""

from __future__ import annotations

import typer

from vastmax.commands import lm, studies, tasks
from vastmax.commands.app import app, errors, one_line
from vastmax.interruption import STATUS, Interrupted, ignore_ctrl_c

__all__ = ["app", "lm", "run", "studies", "tasks"]


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit status."""
    try:
        status = app(arguments, prog_name="vastmax", standalone_mode=False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Interrupted as stop:
        ignore_ctrl_c()
        errors.print(f"vastmax: {stop}", soft_wrap=True)
        return STATUS
    except (typer.TyperException, ValueError, OSError, FloatingPointError) as error:
        if message := one_line(error, arguments):
            errors.print(f"vastmax: {message}", soft_wrap=True)
        return 2
    return status if isinstance(status, int) else 0
