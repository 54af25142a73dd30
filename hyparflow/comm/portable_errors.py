"""Errors that travel from one rank to the others and are raised there as they were."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

__all__ = ["is_faithful", "portable"]


def portable(
    error: BaseException, dumps: Callable[[Any], bytes] = pickle.dumps
) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
    """A recipe by which another process makes `error`: a function and its arguments.

    Args:
        error: the error.
        dumps: the function that pickles.
    """
    for recipe in ((_same, (error,)), (_rebuild, (type(error), error.args, vars(error)))):
        try:
            make, arguments = pickle.loads(dumps(recipe))
            twin = make(*arguments)
        except Exception:  # then it cannot be pickled
            continue
        if type(twin) is type(error) and str(twin) == str(error):
            return recipe
    return RuntimeError, (f"{type(error).__name__}: {error}",)


def is_faithful(recipe: tuple[Callable[..., BaseException], tuple[Any, ...]]) -> bool:
    """Whether another rank makes an error of the same class, and not one that only names it."""
    return recipe[0] in (_same, _rebuild)


def _same(error: BaseException) -> BaseException:
    return error


def _rebuild(kind: type[BaseException], args: Any, attributes: dict[str, Any]) -> BaseException:
    """An error made without its own `__init__`, which may want other arguments than `args`."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
