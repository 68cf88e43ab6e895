"""The command: train, compare and evaluate. `main` turns errors of input into one line and exit status 2."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command."""
    missing = [
        name
        for name in ("typer", "lightning", "tokenizers", "matplotlib", "sklearn", "torchmetrics")
        if not importlib.util.find_spec(name)
    ]
    if missing:
        print(f"vastmax: the command needs {', '.join(missing)}: pip install 'vastmax[train]'", file=sys.stderr)
        sys.exit(2)
    try:
        from vastmax.commands import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # before a command has begun
        print("vastmax: interrupted", file=sys.stderr)
        sys.exit(130)
