"""`python -m vastmax` is the command."""

from vastmax.cli import main

main()
