"""Parallel arguments as options of a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import Field
from typing import Any, TypeVar

import click

from hyparflow.formats import argument_checks as checks
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
            kind: dict[str, Any] = {"type": _type_of(option)}
            if isinstance(option.default, bool):
                kind = {"is_flag": True, "default": None}
            command = click.option(flag, name, help=help_, **kind)(command)
        return command

    return decorate


def _type_of(option: Field[Any]) -> click.ParamType:
    if (choices := option.metadata.get("choices")) is not None:
        return click.Choice(choices)
    if option.metadata["check"] is checks.text:
        return click.STRING
    return _Counts() if option.metadata.get("several") else click.IntRange(1)


def _words(option: Field[Any]) -> str:
    """The end of an option's help text: what a plan must keep to."""
    words = option.name.removeprefix("num_").replace("_", " ").replace("micro", "micro-")
    if option.metadata.get("several"):
        return "these numbers of layers per partition, or per stage"
    if isinstance(option.default, bool):
        return f"layouts with {option.name}=True"
    if option.default is None and option.metadata.get("choices"):
        return f"layouts with this `{option.name}`"
    is_name = option.metadata.get("choices") or option.metadata["check"] is checks.text
    return f"this {words}" if is_name else f"this many {words}"
