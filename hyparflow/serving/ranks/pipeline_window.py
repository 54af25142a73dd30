"""The tokens of one window, where partitions lie on several ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyparflow.serving.decoding.chooser import TokenChoice
from hyparflow.serving.ranks.runner import WindowResult, result_of
from hyparflow.serving.ranks.stage_messages import StageMessages
from hyparflow.serving.scheduling.window import Window

__all__ = ["PipelineWindow"]


class PipelineWindow:
    """The iterations of one window, on one partition.

    Row r is in group r % P, of P partitions.

    Args:
        window: what is to be done.
        messages: to other partitions.
        choice: of tokens.
        step: (group, tokens, positions) -> the last output of this partition's layers.
    """

    def __init__(
        self,
        window: Window,
        messages: StageMessages,
        choice: TokenChoice,
        step: Callable[[int, Any, Any], Any],
    ) -> None:
        self._window, self._messages, self._choice = window, messages, choice
        self._compute = step
        count, shape = messages.num_partitions, window.shape
        self._tokens = np.zeros(shape.rows, np.int32)
        self._positions = np.full(shape.rows, shape.length - 1, np.int32)
        self._sampling = [window.sampling[0]] * shape.rows
        self._given = [0] * shape.rows
        for place, row in enumerate(window.live):
            self._tokens[row] = window.tokens[place]
            self._positions[row] = window.positions[place]
            self._sampling[row], self._given[row] = window.sampling[place], window.given[place]
        self._last, self._count = shape.length - 1, count
        self._live = sorted({row % count for row in window.live})

    def result(self) -> WindowResult:
        """The tokens, on the first partition; nothing elsewhere."""
        is_first, steps = self._messages.is_first, self._window.steps
        made: list[dict[int, list[Any]]] = []
        for number in range(steps):
            for group in self._live:
                if number and is_first:
                    self._take(group, made[-1])
                self._step(group, number)
            made.append({})
        if not is_first:
            return WindowResult()
        for group in self._live:
            self._take(group, made[-1])
        return result_of(self._window, self._joined(made))

    def _step(self, group: int, number: int) -> None:
        rows = slice(group, None, self._count)
        positions = np.minimum(self._positions[rows] + number, self._last)[:, None]
        logits = self._compute(group, self._tokens[rows][:, None], positions)
        if self._messages.is_last:
            given = [before + number for before in self._given[rows]]
            chosen = self._choice(logits[:, 0], self._choice.rows(self._sampling[rows], given))
            self._messages.send_tokens([part.numpy() for part in chosen])

    def _take(self, group: int, made: dict[int, list[Any]]) -> None:
        rows = len(self._tokens) // self._count
        parts = self._messages.receive_tokens(rows, self._choice.has_logprobs)
        made[group] = parts
        self._tokens[group :: self._count] = parts[0]

    def _joined(self, made: Sequence[dict[int, list[Any]]]) -> list[Any]:
        """Of each part, (iterations, rows, ...)."""
        first = next(iter(made[0].values()))
        found = [
            np.zeros((len(made), len(self._tokens), *part.shape[1:]), part.dtype) for part in first
        ]
        for number, groups in enumerate(made):
            for group, parts in groups.items():
                for whole, part in zip(found, parts, strict=True):
                    whole[number, group :: self._count] = part
        return found
