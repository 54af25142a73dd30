"""Saves checkpoints of a running training: one rank's side of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from hyparflow.checkpoint.model_description import MODEL_FILE, described
from hyparflow.checkpoint.own_variables import own_variables
from hyparflow.checkpoint.replica_states import parts_of_replica
from hyparflow.checkpoint.save_point import SavePoint
from hyparflow.checkpoint.settings import Checkpoint
from hyparflow.checkpoint.share_files import ShareRecord, joined, record_name
from hyparflow.checkpoint.share_writer import ShareWriter
from hyparflow.checkpoint.shares import Part, parts_of_rank
from hyparflow.checkpoint.stored_part import StoredPart
from hyparflow.checkpoint.tensor_names import named_variables
from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.engine.weights.pieces import value_of
from hyparflow.engine.weights.sync import WeightSync
from hyparflow.formats.checkpoint.checksum import checksum_of
from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.index import Index, Layout
from hyparflow.formats.checkpoint.names import shard_name
from hyparflow.formats.writing import write_text
from hyparflow.launching.progress_note import note_saved
from hyparflow.pipeline.grid import Grid

__all__ = ["Keeper"]


class Keeper:
    """Saves a model that is trained, of which each rank writes what it owns.

    Args:
        model: built, as is its optimizer.
        settings: where, and how many.
        sync: moves the variables.
        grid: the ranks.
        world: all of them.
        warn: called on the leader with the error if a checkpoint could not be written.
    """

    def __init__(
        self,
        model: Any,
        settings: Checkpoint,
        sync: WeightSync,
        grid: Grid,
        world: Communicator,
        warn: Callable[[Exception], object],
    ) -> None:
        self._model, self._settings = model, settings
        self._sync, self._grid, self._world, self._warn = sync, grid, world, warn
        self._folder = CheckpointFolder(settings.path)
        self._writer = ShareWriter(world.rank, world.size, settings.asynchronous)
        self._names: dict[str, Any] | None = None
        self._own: dict[str, Any] = {}  # on the leader, which writes them
        self._mine: list[Part] | None = None
        self._copies: dict[tuple[str, int], np.ndarray] = {}
        self._described: str | None = None  # what the model is, once it is known

    def begin(self, step: int) -> None:
        """Leader: make room for a checkpoint, when the one before is there; others save then."""
        self.wait()
        self._folder.begin(step)

    def save(self, point: SavePoint, further: dict[str, np.ndarray]) -> None:
        """Save a checkpoint. Collective.

        Args:
            point: where training stands.
            further: on the leader, tensors that are no variables.
        """
        self.wait()
        names = self._agreed_names()
        parts = self._parts(names)
        parts += [
            StoredPart(name=name, whole=value.shape, row=0, value=value)
            for name, value in further.items()
        ]
        parts += [
            StoredPart(name=name, whole=tuple(own.shape), row=0, value=np.array(value_of(own)))
            for name, own in self._own.items()
        ]
        commit = None
        if self._world.rank == LEADER:
            order = [*names, *self._own]
            if self._described is None:
                self._described = described(self._model)

            def commit(shares: list[ShareRecord]) -> None:
                self._commit(point, shares, order)

        self._writer.write(self._folder.step(point.step), parts, commit)
        if not self._settings.asynchronous:
            self._world.broadcast_object(None, LEADER, "the leader to commit a checkpoint")

    def _parts(self, names: dict[str, Any]) -> list[StoredPart]:
        """This rank's share of the variables. Collective."""
        statistics, rank = self._sync.statistics, self._world.rank
        averages = statistics.averages()
        averaged = {id(v): a for v, a in zip(statistics.variables, averages, strict=True)}
        parts = [
            StoredPart(
                name=part.name,
                whole=part.view,
                row=part.start,
                value=averaged[id(part.variable)]
                if id(part.variable) in averaged
                else self._kept(part),
            )
            for part in self._shares(names)
        ]
        return parts + parts_of_replica(names, self._sync, self._grid, rank)

    def _shares(self, names: dict[str, Any]) -> list[Part]:
        """What this rank writes, the same each time. Collective the first time."""
        if self._mine is None:
            self._mine = parts_of_rank(names, self._sync, self._grid, self._world.rank)
        return self._mine

    def _kept(self, part: Part) -> np.ndarray:
        """The value of a part, which stays as it is until it is written.

        If training goes on meanwhile it is a copy, in memory that serves the next save, too: new
        memory takes the machine as long as the copy.
        """
        value = value_of(part.variable)
        value = value if part.rows is None else value[part.rows]
        if not self._settings.asynchronous:
            return value
        key = part.name, part.start
        if key not in self._copies:
            self._copies[key] = np.empty_like(value)
        np.copyto(self._copies[key], value)
        return self._copies[key]

    def _agreed_names(self) -> dict[str, Any]:
        """The variables by the leader's names, for Keras's numbers of layers may differ on ranks.

        Collective the first time.
        """
        if self._names is None:
            mine = named_variables(self._model)
            names = self._world.broadcast_object(list(mine), LEADER, "the names of tensors")
            self._names = dict(zip(names, mine.values(), strict=True))
            if self._world.rank == LEADER:
                self._own = own_variables(self._model)
        return self._names

    def wait(self) -> None:
        """Wait until the last checkpoint is there, as far as this rank writes it."""
        error = self._writer.wait()
        if error is not None and self._world.rank == LEADER:
            self._warn(error)

    def newest(self) -> int | None:
        """Leader: the step of the newest checkpoint, when the last save has ended."""
        self.wait()
        return self._folder.newest()

    def _commit(self, point: SavePoint, shares: Sequence[ShareRecord], order: list[str]) -> None:
        files = {shard_name(rank): share.size for rank, share in enumerate(shares)}
        folder = self._folder.step(point.step)
        checksums = {}
        if self._described:
            write_text(folder / MODEL_FILE, self._described)
            files[MODEL_FILE] = len(self._described.encode())
            checksums[MODEL_FILE] = checksum_of(self._described.encode())
        index = Index(
            step=point.step,
            epoch=point.epoch,
            step_in_epoch=point.step_in_epoch,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            hyparflow=metadata.version("hyparflow"),
            layout=Layout(
                num_partitions=self._grid.num_partitions,
                num_replicas=self._grid.num_replicas,
                num_sequence_shards=self._grid.num_shards,
                is_optimizer_sharded=self._sync.holdings.is_sharded,
            ),
            tensors=joined(shares, order),
            state=point.state,
            files=files,
            checksums=checksums,
        )
        for rank in range(len(shares)):
            (folder / record_name(rank)).unlink()
        self._folder.commit(point.step, index)
        note_saved(point.step)
        self._folder.prune(self._settings.keep, [] if point.best is None else [point.best])
