"""Weights and optimizer state between ranks: the leader's at the start, the owners' at the end.

Every rank holds all variables of the model and of the optimizer; during training it changes only
those of its partition. Variables travel as bytes, joined into one message per owner.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.model.keras_internals.compiled import compile_arguments
from hyparflow.model.keras_internals.layers import all_layers, seed_states
from hyparflow.model.reachable_variables import reachable_variables
from hyparflow.pipeline.grid import Grid

__all__ = ["WeightSync", "checksum"]

_LARGE = 1 << 22  # bytes: a larger variable is sent alone; small ones are joined to about as many
_GOLDEN = 0x9E3779B1  # spreads the replicas' random seeds over 32 bits


class WeightSync:
    """Moves variables between ranks.

    Args:
        model: the compiled model, its optimizer built.
        grid: the ranks.
        world, replica, peers: all ranks; the ranks of this replica; the ranks of this partition.
        owners: id of a model variable -> the partition that owns it.
        touched: the optimizer variables (TensorFlow's) that this rank's updates use.
        draws_alike: whether replicas keep random generators in the same state, as the model's own
            steps need it (`hyparflow.engine.custom_steps.draws`).
    """

    def __init__(
        self,
        model: Any,
        grid: Grid,
        world: Communicator,
        replica: Communicator,
        peers: Communicator,
        owners: dict[int, int],
        touched: Callable[[], Sequence[Any]],
        draws_alike: bool = False,
    ) -> None:
        self._model = model
        self._grid = grid
        self._world, self._replica, self._peers = world, replica, peers
        self._owners = owners
        self._touched = touched
        self._draws_alike = draws_alike
        self._seeds = _unique(seed_states(model))
        self._weights = _unique([*model.weights, *self._seeds])
        optimizer = getattr(model, "optimizer", None)  # an uncompiled model has none
        self._slots = [] if optimizer is None else _unique(optimizer.variables)
        partition = grid.partition(world.rank)
        self._statistics = [
            variable
            for layer in all_layers(model)
            if isinstance(layer, keras.layers.BatchNormalization)
            for variable in layer.non_trainable_variables
            if "float" in variable.dtype and owners.get(id(variable), 0) == partition
        ]

    def scatter(self, further: Sequence[Any] | None = None) -> None:
        """Give the leader's weights, random seeds and optimizer state to all. Collective.

        Args:
            further: variables of the user's own, in the same order on all ranks.

        Raises:
            ValueError: if ranks have other `further` variables.
        """
        known = [*self._weights, *self._slots]
        raw = {id(v) for variable in known for v in (variable, variable.value)}
        if further is not None:
            further = [v for v in further if id(v) not in raw]
            self._require_same(further)
            known += further
        self._broadcast(known, LEADER)
        self._separate_seeds()

    def _require_same(self, variables: Sequence[Any]) -> None:
        """Do ranks find the same variables? Collective."""
        mine = [(f"{tuple(v.shape)} {v.dtype}", str(v.name)) for v in variables]
        everyone = self._world.all_gather_objects(mine, "the variables that own steps lead to")
        for rank, others in enumerate(everyone):
            pairs = itertools.zip_longest(everyone[0], others, fillvalue=("none", ""))
            odd = next((pair for pair in pairs if pair[0][0] != pair[1][0]), None)
            if odd is not None:
                leaders, theirs = (f"{text} {name}".strip() for text, name in odd)
                raise abort.mark_collective(
                    ValueError(
                        "The steps of a model's own must lead to the same variables on all ranks. "
                        f"Received: {leaders} on rank 0 where rank {rank} has {theirs}. Make "
                        "optimizers, models and variables that steps use alike on all ranks."
                    )
                )

    def describe(self, variables: Sequence[Any]) -> list[tuple[int, np.ndarray]]:
        """The present values of `variables`, for `write` on other ranks, each with its number.

        Variables that model, losses, metrics and own layers do not lead to are left out.
        """
        known = [*self._weights, *self._slots]
        numbers = _numbers(known)
        if any(id(variable) not in numbers for variable in variables):
            numbers = _numbers([*known, *self._users_own()])
        return [(numbers[id(v)], v.numpy()) for v in variables if id(v) in numbers]

    def write(self, values: Sequence[tuple[int, np.ndarray]]) -> None:
        """Write the values that `describe` returned on the leader."""
        known = [*self._weights, *self._slots]
        if any(number >= len(known) for number, _ in values):
            known += self._users_own()
        for number, value in values:
            known[number].assign(value)

    def _users_own(self) -> list[Any]:
        """The variables that losses, metrics and own layers lead to, beside weights and slots."""
        known = [*self._weights, *self._slots]
        raw = {id(v) for variable in known for v in (variable, variable.value)}
        own = reachable_variables([self._model, compile_arguments(self._model)])
        return [variable for variable in own if id(variable) not in raw]

    def is_elsewhere(self, variable: Any) -> bool:
        """Whether another partition owns this variable of the model or its optimizer."""
        mine = self._grid.partition(self._world.rank)
        if isinstance(variable, keras.Variable) and id(variable) in self._owners:
            return self._owners[id(variable)] != mine
        used = {id(slot) for slot in self._touched()}
        is_slot = any(variable is slot for slot in self._slots)  # a variable of TensorFlow is none
        return is_slot and self._grid.num_partitions > 1 and id(variable.value) not in used

    def checksums(self) -> list[int]:
        """A checksum of each weight and optimizer slot of this rank."""
        return [checksum(variable) for variable in [*self._weights, *self._slots]]

    def changed(self, before: Sequence[int]) -> list[Any]:
        """The weights and slots that have changed since `checksums` returned `before`."""
        known = [*self._weights, *self._slots]
        triples = zip(known, before, self.checksums(), strict=True)
        return [variable for variable, old, new in triples if old != new]

    def _separate_seeds(self) -> None:
        """Let replicas draw different random numbers; replica 0 draws those of plain Keras."""
        replica = self._grid.replica(self._world.rank)
        if replica and not self._draws_alike:
            for state in self._seeds:
                value = state.numpy().astype(np.uint64)
                value[0] = (value[0] + replica * _GOLDEN) % (1 << 32)
                state.assign(value.astype(np.uint32))

    def agree(self) -> None:
        """Average the moving statistics of BatchNormalization over the replicas. Collective."""
        if self._peers.size == 1 or not self._statistics:
            return
        flat = np.concatenate([v.numpy().astype(np.float64).ravel() for v in self._statistics])
        self._peers.sum(flat, "the average of moving statistics")
        flat /= self._peers.size
        start = 0
        for variable in self._statistics:
            size = int(np.prod(variable.shape, dtype=np.int64))
            variable.assign(flat[start : start + size].reshape(variable.shape))
            start += size

    def gather(self) -> None:
        """Give every owner's variables to all ranks. Collective."""
        self.agree()
        seeds = [state.numpy() for state in self._seeds]
        owned = [(v, self._owners.get(id(v), 0)) for v in self._weights]
        owned += list(zip(self._slots, self._slot_owners(), strict=True))
        for partition in range(self._grid.num_partitions):
            part = [variable for variable, owner in owned if owner == partition]
            self._broadcast(part, self._grid.rank(0, partition))
        if self._grid.replica(self._world.rank) and not self._draws_alike:
            for state, value in zip(self._seeds, seeds, strict=True):
                state.assign(value)  # replicas keep their own random numbers until the end

    def finish(self) -> None:
        """Give replica 0's random seeds to all, so that all ranks end alike. Collective."""
        for partition in range(self._grid.num_partitions):
            part = [v for v in self._seeds if self._owners.get(id(v), 0) == partition]
            self._broadcast(part, self._grid.rank(0, partition))

    def _slot_owners(self) -> list[int]:
        """The partition that updates each optimizer variable: the first that uses it."""
        used = {id(variable) for variable in self._touched()}
        mine = [i for i, slot in enumerate(self._slots) if id(slot.value) in used]
        everyone = self._replica.all_gather_objects(mine, "the owners of optimizer state")
        owners = [0] * len(self._slots)
        for partition in reversed(range(len(everyone))):
            for index in everyone[partition]:
                owners[index] = partition
        return owners

    def _broadcast(self, variables: Sequence[Any], root: int) -> None:
        if self._world.size == 1:
            return
        piece: list[Any] = []
        size = 0
        for variable in variables:
            own = _bytes_of(variable)
            if own >= _LARGE:
                self._broadcast_large(variable, root)
                continue
            piece.append(variable)
            size += own
            if size >= _LARGE:
                self._broadcast_piece(piece, root)
                piece, size = [], 0
        self._broadcast_piece(piece, root)

    def _broadcast_large(self, variable: Any, root: int) -> None:
        """Broadcast a large variable without copies: receivers use the memory of the message."""
        what = f"weights from rank {root}"
        value = tf.convert_to_tensor(variable)
        if self._world.rank == root:
            self._world.broadcast(np.asarray(value, order="C"), root, what)
            return
        buffer = TensorBuffer(value.shape, np.dtype(value.dtype.as_numpy_dtype))
        self._world.broadcast(buffer.array, root, what)
        variable.assign(buffer.tensor)

    def _broadcast_piece(self, variables: Sequence[Any], root: int) -> None:
        """Broadcast small variables in one message; pieces, so that no whole model is copied."""
        values = [np.asarray(variable.numpy(), order="C") for variable in variables]
        if not values:
            return
        joined = np.concatenate([value.reshape(-1).view(np.uint8) for value in values])
        self._world.broadcast(joined, root, f"weights from rank {root}")
        if self._world.rank == root:
            return
        start = 0
        for variable, value in zip(variables, values, strict=True):
            part = joined[start : start + value.nbytes]
            start += value.nbytes
            variable.assign(part.view(value.dtype).reshape(value.shape))


def checksum(variable: Any) -> int:
    """A checksum of the variable's own memory: a copy of a large weight would take too much."""
    value = np.asarray(tf.convert_to_tensor(variable), order="C")
    return zlib.crc32(value.reshape(-1).view(np.uint8).data)


def _bytes_of(variable: Any) -> int:
    return int(np.prod(variable.shape, dtype=np.int64)) * tf.as_dtype(variable.dtype).size


def _numbers(variables: Sequence[Any]) -> dict[int, int]:
    """The number of each variable, by its id and by the id of TensorFlow's variable in it."""
    numbers: dict[int, int] = {}
    for number, variable in enumerate(variables):
        numbers.setdefault(id(variable), number)
        numbers.setdefault(id(getattr(variable, "value", variable)), number)
    return numbers


def _unique(variables: Sequence[Any]) -> list[Any]:
    return list({id(variable): variable for variable in variables}.values())
