"""Parallel arguments as options of a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import Field
from typing import Any, TypeVar

import click

from hyparflow.options import declared

__all__ = ["decided_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Counts(click.ParamType):
    """Positive integers with commas between them."""

    name = "N,N"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[int]:
        """The integers in `value`; see `click.ParamType`."""
        each: click.ParamType = click.IntRange(1)
        return [each.convert(part, param, ctx) for part in str(value).split(",")]


def decided_options(names: Iterable[str]) -> Callable[[_Command], _Command]:
    """Add options of these names to a command; an option that is not given is None."""

    def decorate(command: _Command) -> _Command:
        for name in reversed(list(names)):
            flag = f"--{name.replace('_', '-')}"
            option = declared()[name]
            help_ = f"Consider only {_words(option)}."
            command = click.option(flag, name, type=_type_of(option), help=help_)(command)
        return command

    return decorate


def _type_of(option: Field[Any]) -> click.ParamType:
    if (choices := option.metadata.get("choices")) is not None:
        return click.Choice(choices)
    return _Counts() if option.metadata.get("several") else click.IntRange(1)


def _words(option: Field[Any]) -> str:
    """The end of an option's help text: what a plan must keep to."""
    words = option.name.removeprefix("num_").replace("_", " ").replace("micro", "micro-")
    if option.metadata.get("several"):
        return "these numbers of layers per partition, or per stage"
    return f"this {words}" if option.metadata.get("choices") else f"this many {words}"
