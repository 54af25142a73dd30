"""Windows of attention made small, so that a trial on a few tokens shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from hyparflow.engine.sequence.undividable import undividable
from hyparflow.model.keras_internals.patched import patched

__all__ = ["SmallWindows"]

_SIZES = (7, 11, 15, 19)  # that stand for the windows of a model


class SmallWindows:
    """The whole numbers by which layers bound the distance of keys, and small ones in their place.

    Args:
        layers: of the model.
        shown: the number of tokens of a trial; it shows smaller windows as they are.
        length: of sequences, which wider windows do not touch.
    """

    def __init__(self, layers: Sequence[Any], shown: int, length: int) -> None:
        self._places = [
            (layer, name, value)
            for layer in layers
            for name, value in vars(layer).items()
            if "window" in name
            and isinstance(value, int)
            and not isinstance(value, bool)
            and shown - 2 < value < length
        ]
        windows = sorted({value for _, _, value in self._places})
        if len(windows) > len(_SIZES):
            raise undividable(f"attention has windows of {len(windows)} sizes: {windows}")
        self._small = dict(zip(windows, _SIZES, strict=False))

    @property
    def shifts(self) -> tuple[int, ...]:
        """By how much the small ones are to be larger, in one trial after the other."""
        return (0, 1) if self._places else (0,)

    @contextlib.contextmanager
    def put_in(self, shift: int) -> Iterator[None]:
        """While open, layers have small windows, larger by `shift`."""
        with contextlib.ExitStack() as stack:
            for layer, name, value in self._places:
                stack.enter_context(patched(layer, **{name: self._small[value] + shift}))
            yield

    def real(self, seen: Sequence[int | None]) -> int | None:
        """The window of a layer.

        Args:
            seen: what each trial saw: the same in all, if it was none of those that were small.
        """
        first = seen[0]
        if all(window == first for window in seen):
            return first
        for value, small in self._small.items():
            if first is not None and abs(first - small) <= 1 and seen[1] == first + 1:
                return value + first - small
        raise undividable(f"attention has a window that is not understood (seen as {seen})")
