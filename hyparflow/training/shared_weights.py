"""Keeps the weights of all ranks equal: gathers them, and sends what callbacks write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from hyparflow.comm.freed_memory import give_back_freed_memory
from hyparflow.comm.leader import LEADER
from hyparflow.comm.world import World
from hyparflow.engine.weights.sync import WeightSync
from hyparflow.model.keras_internals.compiled import tracked_metrics
from hyparflow.model.keras_internals.optimizer import settable_learning_rates
from hyparflow.training import notices
from hyparflow.training.commands import Command, Fetch, Finalize, Finish, Gather, Scatter, Write
from hyparflow.training.left_weights import note_left
from hyparflow.training.write_log import WriteLog

__all__ = ["SharedWeights"]

_FEW = 1 << 22  # bytes that nobody minds


class SharedWeights:
    """The weights of one call, on one rank.

    Attributes:
        log: the variables that callbacks write.

    Args:
        model: the user's model.
        sync: copies its variables.
        world: all ranks.
        to_all: whether all ranks get all weights at the end.
    """

    def __init__(self, model: Any, sync: WeightSync, world: World, to_all: bool) -> None:
        self._model, self._sync, self._world = model, sync, world
        self._to_all = to_all or not sync.holdings.parts
        self.streams = False  # whether the leader is lent weights of other partitions
        self._fetched = 0  # bytes that were asked for one by one since the last step
        self.log = WriteLog(self._told_otherwise, self._is_behind)
        self._watched: list[int | None] | None = None
        self._are_everywhere = True  # the leader holds the present weights of all partitions
        self._brought = False  # the leader has weights of other partitions
        self._differ = False  # statistics changed since the replicas agreed on them
        self.actions: dict[type[Command], Callable[[Any], Any]] = {
            Write: self._write,
            Fetch: self._fetch,
            Gather: self._gather,
            Scatter: self._scatter,
            Finalize: self._finalize,
            Finish: self._finish,
        }

    @property
    def are_parted(self) -> bool:
        """Whether ranks hold parts of the weights and slots."""
        return self._sync.holdings.parts

    @property
    def bytes_elsewhere(self) -> int:
        """The size of what this rank's partition does not need."""
        return self._sync.bytes_elsewhere

    def note_step(self) -> None:
        """Note that a training step changes weights."""
        self._are_everywhere, self._differ = False, True
        self.drop()

    def drop(self) -> None:
        """Give back the leader's memory of other partitions' weights, if callbacks are done."""
        if self._brought and self._watched is None:
            self._sync.drop()
            self._brought, self._fetched = False, 0

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """While open, the leader gives weights that it asked for back when it asks for others."""
        self.streams = True
        try:
            yield
        finally:
            self.streams = False
            self._sync.take_back()

    def agree(self) -> None:
        """Let replicas agree on moving statistics, before a use without training. Collective."""
        if self._differ:
            self._sync.agree()
            self._differ = False

    # --- what callbacks write, on the leader ---

    def written(self) -> Write | None:
        """The command with the values that callbacks wrote since the last one; None if none."""
        written = self.log.take()
        if self._watched is not None:
            written += self._sync.changed(self._watched)
        if not written:
            return None
        return Write(self._sync.describe(list({id(v): v for v in written}.values())))

    def watch(self, watched: bool) -> None:
        """Begin, or end, to look for writes that did not go through Keras."""
        self._watched = self._sync.checksums() if watched else None

    def watch_anew(self) -> None:
        """Begin to look again: writes so far have been sent."""
        self.watch(self._watched is not None)

    def _told_otherwise(self) -> list[Any]:
        """Variables whose changes on the leader reach the other ranks in another way."""
        metrics = tracked_metrics(self._model) if self._model.compiled else []
        rates = settable_learning_rates(self._model)
        return [v for metric in metrics for v in metric.variables] + rates

    def _is_behind(self, variable: Any) -> bool:
        return not self._are_everywhere and self._sync.is_elsewhere(variable)

    # --- commands ---

    def _write(self, command: Write) -> None:
        self._sync.write(command.values)

    def _gather(self, command: Gather) -> None:
        self._world.board.write("gathers weights")
        self._make_room()
        self._sync.gather_to_leader(command.everything)
        self._are_everywhere, self._differ = True, False
        self._brought = self._world.rank == LEADER

    def _fetch(self, command: Fetch) -> None:
        self._world.board.write("takes a weight to the leader")
        if command.is_lent:
            self._sync.lend(command.number)
            return
        size = self._sync.bring(command.number)
        if self._world.rank == LEADER:
            self._brought = True
            self._fetched += size
            if self._fetched > max(self._sync.bytes_elsewhere // 2, _FEW):
                notices.announce_fetched(self._model, self._fetched)

    def _scatter(self, command: Scatter) -> None:
        self._world.board.write("takes the leader's weights")
        self._sync.scatter()
        self._are_everywhere = True

    def _make_room(self) -> None:
        """For weights of other ranks: what the steps have freed, they would lie beside."""
        if self._sync.holdings.parts and self._sync.bytes_elsewhere > _FEW:
            give_back_freed_memory()

    def _finalize(self, command: Finalize) -> None:
        holdings = self._sync.holdings
        if holdings.is_sharded and not holdings.parts:
            self._sync.gather()  # every rank takes averages for all weights, which it has then
        if self._world.rank != LEADER:
            self._model.optimizer.finalize_variable_values(self._model.trainable_variables)

    def _finish(self, command: Finish) -> None:
        self._world.recorder.on = False
        self._world.board.write("gathers weights")
        self._make_room()
        self._sync.gather(everything=self._to_all)
        self._sync.drop() if not self._to_all else self._sync.holdings.divided.release()
        note_left(self._model, None if self._to_all else self._sync)
        self._are_everywhere, self._differ = self._to_all, False
        self._sync.finish()
