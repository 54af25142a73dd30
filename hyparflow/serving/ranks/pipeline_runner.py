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
from hyparflow.comm.requests import Transfer
from hyparflow.comm.tags import Tag
from hyparflow.serving.caches import Caches
from hyparflow.serving.chooser import Choice, Chooser
from hyparflow.serving.ranks.stage import DecodingStage
from hyparflow.serving.ranks.traffic import Traffic
from hyparflow.serving.runner import WindowResult, piece_sizes, result_of, warm_up_window
from hyparflow.serving.sampling import MOST_LOGPROBS, Sampling
from hyparflow.serving.window import EMPTY, Piece, Shape, Window

__all__ = ["PipelineRunner"]


class PipelineRunner:
    """One partition of a replica.

    Args:
        stage: its layers.
        ranks: those of the replica, one of each partition, in order.
        chooser: chooses tokens, on the last partition.
        traffic: counts what is sent.
    """

    num_replicas = 1

    def __init__(
        self, stage: DecodingStage, ranks: Communicator, chooser: Chooser, traffic: Traffic
    ) -> None:
        self._stage, self._ranks, self._chooser = stage, ranks, chooser
        self._traffic = traffic
        self._groups: list[Caches] = []
        self._shape = Shape(0, 0)
        self._sent: list[Transfer] = []

    @property
    def _is_first(self) -> bool:
        return self._ranks.rank == 0

    @property
    def _is_last(self) -> bool:
        return self._ranks.rank == self._ranks.size - 1

    def run(self, windows: Sequence[Window | None]) -> list[WindowResult]:
        """See `Runner.run`; the result is that of the first partition."""
        (window,) = windows
        if window is None:
            self.close()
            return [WindowResult()]
        self._rebuild(window)
        for piece in window.pieces:
            self._take_in(piece)
        result = _Decoding(self, window).result() if window.steps else WindowResult()
        self._finish_sending()
        return [result]

    def warm_up(self, shape: Shape, sampling: Sampling, longest_piece: int) -> None:
        """See `Runner.warm_up`."""
        self.run([warm_up_window(shape, sampling, longest_piece)])
        self.run([None])

    def idle(self) -> None:
        """See `Runner.idle`."""

    def bytes(self) -> dict[str, int]:
        """See `Runner.bytes`."""
        return {"caches": self._shape.size * self._stage.bytes_of_token}

    def close(self) -> None:
        """See `Runner.close`."""
        self._groups, self._shape = [], Shape(0, 0)

    # --- see `hyparflow.serving.self_test.Probed` ---

    @property
    def probe_rows(self) -> int:
        """Two of each group."""
        return 2 * self._ranks.size

    def probe(self, tokens: Any, counts: Sequence[int], steps: int) -> list[Any] | None:
        """See `Probed.probe`."""
        shape, groups = Shape(*tokens.shape), self._ranks.size
        self._groups = [
            self._stage.empty(Shape(shape.rows // groups, shape.length)) for _ in range(groups)
        ]
        for row, count in enumerate(counts):
            for start, stop in ((0, count // 2), (count // 2, count)):
                self._take_in(Piece(row, start, tuple(tokens[row, start:stop].tolist())))
        found, rows = [], np.arange(shape.rows)
        for step in range(steps):
            places = np.array(counts, np.int32) + step
            logits: list[Any] = [None] * shape.rows
            for group in range(groups):
                mine = slice(group, None, groups)
                given = tokens[rows, places][mine, None]
                made = self.step(group, given, places[mine, None])
                logits[mine] = list(made.numpy()[:, 0])
            found.append(np.stack(logits))
        self._finish_sending()
        self.close()
        return found if self._is_last else None

    # --- caches: row r is row r // P of group r % P ---

    def _rebuild(self, window: Window) -> None:
        if window.sources is None:
            return
        count, shape = self._ranks.size, window.shape
        if shape.rows % count:
            raise ValueError(f"{shape.rows} rows cannot be dealt into {count} groups")
        of_group = Shape(shape.rows // count, shape.length)
        if not self._groups:
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

    # --- messages ---

    def _finish_sending(self) -> None:
        self._ranks.wait_all(self._sent, "other partitions to take tensors")
        self._sent.clear()

    def receive(self, rows: int, tokens: int) -> dict[int, Any]:
        """Tensors that other partitions send to this one."""
        found, waiting = {}, list[Transfer]()
        for number, edges in self._stage.received.items():
            array = np.empty(*self._stage.like(number, rows, tokens))
            waiting += self._ranks.receive(array, edges[0].producer, Tag.SERVED_TENSORS)
            found[number] = array
        self._ranks.wait_all(waiting, "tensors of another partition")
        return {number: tf.constant(array) for number, array in found.items()}

    def send(self, made: dict[int, Any]) -> None:
        """Start to send tensors to the partitions that take them."""
        for number, edges in self._stage.sent.items():
            array = np.ascontiguousarray(made[number].numpy())
            for edge in edges:
                self._sent += self._ranks.send(array, edge.consumer, Tag.SERVED_TENSORS)
                self._traffic.add("tensors", array.nbytes)

    def send_tokens(self, made: Sequence[Any]) -> None:
        """Start to send what was chosen to the first partition."""
        packed = np.concatenate([np.ascontiguousarray(x).view(np.uint8).reshape(-1) for x in made])
        self._sent += self._ranks.send(packed, 0, Tag.SERVED_TOKENS)
        self._traffic.add("tokens", packed.nbytes)

    def receive_tokens(self, rows: int, has_logprobs: bool) -> list[Any]:
        """What the last partition chose."""
        shapes: list[tuple[tuple[int, ...], Any]] = [((rows,), np.int32)]
        if has_logprobs:
            shapes += [((rows,), np.float32)]
            shapes += [((rows, MOST_LOGPROBS), kind) for kind in (np.int32, np.float32)]
        packed = np.empty(sum(4 * int(np.prod(shape)) for shape, _ in shapes), np.uint8)
        last = self._ranks.size - 1
        waiting = self._ranks.receive(packed, last, Tag.SERVED_TOKENS)
        self._ranks.wait_all(waiting, "tokens of the last partition")
        made, start = [], 0
        for shape, kind in shapes:
            size = 4 * int(np.prod(shape))
            made.append(packed[start : start + size].view(kind).reshape(shape))
            start += size
        return made

    # --- computation ---

    def _take_in(self, piece: Piece) -> None:
        padded = piece_sizes(len(piece.tokens))[-1]
        missing = padded - len(piece.tokens)
        tokens = [[*piece.tokens, *[piece.tokens[-1]] * missing]]
        last = piece.start + len(piece.tokens) - 1
        places = [[*range(piece.start, last + 1), *[last] * missing]]
        place, group = divmod(piece.row, self._ranks.size)
        made = self._stage.take_in(
            self._groups[group],
            place,
            self.receive(1, padded),
            tf.constant(tokens, tf.int32),
            tf.constant(places, tf.int32),
        )
        self.send(made)

    def step(self, group: int, tokens: Any, positions: Any) -> Any:
        """One more token of each row of a group: the last output."""
        made, last = self._stage.step(
            self._groups[group],
            self.receive(len(positions), 1),
            tf.constant(tokens, tf.int32),
            tf.constant(positions, tf.int32),
        )
        self.send(made)
        return last


class _Decoding:
    """The iterations of one window, on one partition."""

    def __init__(self, runner: PipelineRunner, window: Window) -> None:
        self._runner, self._window = runner, window
        count, shape = runner._ranks.size, window.shape
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
        self._choice: Choice = runner._chooser.choice(window.sampling)

    def result(self) -> WindowResult:
        """The tokens, on the first partition; nothing elsewhere."""
        runner, steps = self._runner, self._window.steps
        made: list[dict[int, list[Any]]] = []
        for number in range(steps):
            for group in self._live:
                if number and runner._is_first:
                    self._take(group, made[-1])
                self._step(group, number)
            made.append({})
        if not runner._is_first:
            return WindowResult()
        for group in self._live:
            self._take(group, made[-1])
        return result_of(self._window, self._joined(made))

    def _step(self, group: int, number: int) -> None:
        runner, rows = self._runner, slice(group, None, self._count)
        positions = np.minimum(self._positions[rows] + number, self._last)[:, None]
        logits = runner.step(group, self._tokens[rows][:, None], positions)
        if runner._is_last:
            given = [before + number for before in self._given[rows]]
            chosen = self._choice(logits[:, 0], self._choice.rows(self._sampling[rows], given))
            runner.send_tokens([part.numpy() for part in chosen])

    def _take(self, group: int, made: dict[int, list[Any]]) -> None:
        rows = len(self._tokens) // self._count
        parts = self._runner.receive_tokens(rows, self._choice.has_logprobs)
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
