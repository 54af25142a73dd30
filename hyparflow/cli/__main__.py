"""``python -m hyparflow.cli``."""

from hyparflow.cli.main import main

__all__ = ["main"]

main(prog_name="hyparflow")
