"""The error of a command that cannot do what the user asks."""

from __future__ import annotations

import click

__all__ = ["Refused"]


class Refused(click.ClickException):
    """A request that cannot be carried out; like a wrong option, it ends with exit status 2."""

    exit_code = 2
