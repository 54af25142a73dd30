"""``python -m hyparflow.cli``."""

from hyparflow.cli import main

__all__ = ["main"]

main(prog_name="hyparflow")
