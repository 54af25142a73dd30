"""Functions whose arguments are declared elsewhere, as fields of a dataclass."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, field
from typing import Any, TypeVar

from hyparflow.formats.argument_checks import Check

__all__ = ["declare", "with_keywords"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def declare(default: Any, check: Check, meaning: str, **more: Any) -> Any:
    """A parallel argument, as a field of a dataclass.

    Args:
        default: the value if the user gives none.
        check: refuses values that are not valid.
        meaning: the text for `help` and the documentation.
        more: planned=True where `hyparflow.plan` decides it if the user does not; per_call=True
            where nothing that is built for a model depends on it; choices: names to choose from;
            several=True where it is a list of numbers, for the command line.
    """
    return field(default=default, metadata={"check": check, "meaning": meaning, **more})


def with_keywords(
    options: Sequence[Field[Any]], alone: bool = False
) -> Callable[[_Function], _Function]:
    """Add arguments to the signature of a function that takes ``**kwargs``.

    Arguments that it already has stay. A line ``{options}`` of its docstring becomes their
    meanings.

    Args:
        options: fields of a dataclass, whose metadata say the `meaning`.
        alone: whether the function takes no other keyword.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function, eval_str=False)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if not (alone and parameter.kind is parameter.VAR_KEYWORD)
        ]
        named = [
            inspect.Parameter(
                o.name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=o.type
            )
            for o in options
            if o.name not in signature.parameters
        ]
        optional = (n for n, p in enumerate(own) if p.kind >= p.KEYWORD_ONLY and not _is_needed(p))
        at = next(optional, len(own))
        function.__signature__ = signature.replace(parameters=[*own[:at], *named, *own[at:]])  # type: ignore[attr-defined]
        if function.__doc__:
            function.__doc__ = function.__doc__.replace("        {options}", _meanings(options))
        return function

    return decorate


def _is_needed(parameter: inspect.Parameter) -> bool:
    named = parameter.kind is parameter.KEYWORD_ONLY
    return named and parameter.default is parameter.empty


def _meanings(options: Iterable[Field[Any]]) -> str:
    """What arguments mean, as docstrings tell it."""
    return "\n".join(
        textwrap.fill(
            f"{option.name}: {option.metadata['meaning']}",
            100,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
        )
        for option in options
    )
