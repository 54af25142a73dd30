"""First values of variables that may be drawn later, whenever they are needed."""

from __future__ import annotations

import copy
from typing import Any

import keras

__all__ = ["Initial", "is_pure"]

_PLAIN = (bool, int, float, str, type(None))


class Initial:
    """The first value of a variable, as its initializer draws it whenever it is called.

    Args:
        initializer: one for which `is_pure` holds.
        shape, dtype: of the variable.
    """

    def __init__(self, initializer: Any, shape: Any, dtype: str) -> None:
        self._initializer = copy.deepcopy(initializer)  # its owner may change it
        self._shape, self._dtype = tuple(shape), dtype

    def __call__(self) -> Any:
        """Draw the value."""
        return self._initializer(self._shape, dtype=self._dtype)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for those that draw equal values."""
        kind = type(self._initializer)
        config = sorted(vars(self._initializer).items())
        return kind.__module__, kind.__qualname__, config, self._shape, self._dtype


def is_pure(initializer: Any) -> bool:
    """Whether an initializer draws the same value whenever it is called.

    Keras's own do, unless they hold more than plain values: an array, which may change, or a
    generator of seeds, which other initializers may share.
    """
    own = type(initializer).__module__.startswith("keras.")
    if not own or not isinstance(initializer, keras.initializers.Initializer):
        return False
    return _is_plain(vars(initializer))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
