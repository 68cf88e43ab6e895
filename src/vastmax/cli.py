"""The command: train, compare and evaluate. `main` turns errors of input into one line and exit status 2."""

from __future__ import annotations

import sys

from vastmax.interruption import end_on_ctrl_c, ignore_ctrl_c


def main() -> None:
    """Run the command."""
    end_on_ctrl_c()
    from importlib.util import find_spec

    missing = [
        name
        for name in ("typer", "lightning", "tokenizers", "polars", "matplotlib", "sklearn", "torchmetrics")
        if not find_spec(name)
    ]
    if missing:
        print(f"vastmax: the command needs {', '.join(missing)}: pip install 'vastmax[train]'", file=sys.stderr)
        sys.exit(2)
    from vastmax.commands import run

    status = run(sys.argv[1:])
    ignore_ctrl_c()
    sys.exit(status)
