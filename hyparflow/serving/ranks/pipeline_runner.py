"""Windows of one replica whose partitions lie on several ranks.

The rows are dealt into as many groups as there are partitions, so that each partition has a group
to compute while the others have the rest (Flover, section on pipeline parallelism).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.serving.decoding.caches import Caches
from hyparflow.serving.decoding.chooser import TokenChooser
from hyparflow.serving.ranks.pipeline_window import PipelineWindow
from hyparflow.serving.ranks.runner import WindowResult
from hyparflow.serving.ranks.stage import DecodingStage
from hyparflow.serving.ranks.stage_messages import StageMessages
from hyparflow.serving.ranks.traffic import Traffic
from hyparflow.serving.scheduling.window import EMPTY, Piece, Shape, Window

__all__ = ["PipelineRunner"]


class PipelineRunner:
    """One partition of a replica.

    Args:
        stage: its layers.
        ranks: those of the replica, one of each partition, in order.
        chooser: chooses tokens, on the last partition.
        traffic: counts what is sent.
    """

    def __init__(
        self, stage: DecodingStage, ranks: Communicator, chooser: TokenChooser, traffic: Traffic
    ) -> None:
        self._stage, self._chooser = stage, chooser
        self._messages = StageMessages(stage, ranks, traffic)
        self._groups: list[Caches] = []
        self._shape = Shape(0, 0)

    def run(self, window: Window) -> WindowResult:
        """See `Runner.run`; the result is that of the first partition."""
        self._rebuild(window)
        for piece in window.pieces:
            self._take_in(piece)
        result = WindowResult()
        if window.steps:
            choice = self._chooser.choice(window.sampling)
            result = PipelineWindow(window, self._messages, choice, self._step).result()
        self._messages.finish()
        return result

    def warm_up(self, window: Window) -> None:
        """See `Runner.warm_up`."""
        self.run(window)
        self.close()

    def bytes(self) -> dict[str, int]:
        """See `Runner.bytes`."""
        return {"caches": self._shape.size * self._stage.bytes_of_token}

    def close(self) -> None:
        """See `Runner.close`."""
        self._groups, self._shape = [], Shape(0, 0)

    # --- see `hyparflow.serving.decoding.self_test.Probed` ---

    @property
    def probe_rows(self) -> int:
        """Two of each group."""
        return 2 * self._messages.num_partitions

    def probe(self, tokens: Any, counts: Sequence[int], steps: int) -> list[Any] | None:
        """See `Probed.probe`."""
        shape, groups = Shape(*tokens.shape), self._messages.num_partitions
        self._groups = [
            self._stage.empty(Shape(shape.rows // groups, shape.length)) for _ in range(groups)
        ]
        for row, count in enumerate(counts):
            for start, stop in ((0, count // 2), (count // 2, count)):
                piece = tuple(tokens[row, start:stop].tolist())
                self._take_in(Piece(row, start, piece, tokens.shape[1]))
        found, rows = [], np.arange(shape.rows)
        for step in range(steps):
            places = np.array(counts, np.int32) + step
            logits: list[Any] = [None] * shape.rows
            for group in range(groups):
                mine = slice(group, None, groups)
                given = tokens[rows, places][mine, None]
                made = self._step(group, given, places[mine, None])
                logits[mine] = list(made.numpy()[:, 0])
            found.append(np.stack(logits))
        self._messages.finish()
        self.close()
        return found if self._messages.is_last else None

    def plain(self, tokens: Any) -> Any | None:
        """See `Probed.plain`."""
        given = self._messages.receive(*tokens.shape)
        made, last = self._stage.plain(given, tf.constant(tokens))
        self._messages.send(made)
        self._messages.finish()
        return last if self._messages.is_last else None

    # --- caches: row r is row r // P of group r % P ---

    def _rebuild(self, window: Window) -> None:
        if window.sources is None:
            return
        count, shape = self._messages.num_partitions, window.shape
        of_group = Shape(shape.rows // count, shape.length)
        if window.begins_anew:
            self.close()  # before there are others
            self._groups = [self._stage.empty(of_group) for _ in range(count)]
        else:
            self._groups = self._moved(of_group, window.sources)
        self._shape = shape

    def _moved(self, shape: Shape, sources: Sequence[int]) -> list[Caches]:
        """New groups: rows may come from any of the old ones, which are joined for it."""
        count, old = len(self._groups), self._groups
        joined = [tf.Variable(tf.concat(parts, 0)) for parts in zip(*old, strict=True)]
        rows, self._groups = self._shape.rows // count, []
        old.clear()  # the joined ones have it all
        made = []
        for group in range(count):
            places = [EMPTY if n == EMPTY else n % count * rows + n // count for n in sources]
            made.append(self._stage.rebuilt(list(joined), shape, places[group::count]))
        return made

    # --- computation ---

    def _take_in(self, piece: Piece) -> None:
        missing = piece.padded - len(piece.tokens)
        tokens = [[*piece.tokens, *[piece.tokens[-1]] * missing]]
        last = piece.start + len(piece.tokens) - 1
        places = [[*range(piece.start, last + 1), *[last] * missing]]
        place, group = divmod(piece.row, self._messages.num_partitions)
        made = self._stage.take_in(
            self._groups[group],
            place,
            self._messages.receive(1, piece.padded),
            tf.constant(tokens, tf.int32),
            tf.constant(places, tf.int32),
        )
        self._messages.send(made)

    def _step(self, group: int, tokens: Any, positions: Any) -> Any:
        """One more token of each row of a group: the last output."""
        made, last = self._stage.step(
            self._groups[group],
            self._messages.receive(len(positions), 1),
            tf.constant(tokens, tf.int32),
            tf.constant(positions, tf.int32),
        )
        self._messages.send(made)
        return last
