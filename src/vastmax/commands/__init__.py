"""What each command does. Options of a run are the fields of its configuration, and their help is there."""

from __future__ import annotations

from vastmax.commands import lm, studies, tasks
from vastmax.commands.app import app, errors

__all__ = ["app", "lm", "run", "studies", "tasks"]


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
    except (ValueError, OSError, FloatingPointError) as error:
        errors.print(f"vastmax: {error}", soft_wrap=True)
        return 2
    return 0
