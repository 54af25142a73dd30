"""How a command ends that cannot do what it is asked."""

from __future__ import annotations

import click

__all__ = ["Refused"]


class Refused(click.ClickException):
    """What cannot be done as asked; like a wrong option, it ends the command with code 2."""

    exit_code = 2
