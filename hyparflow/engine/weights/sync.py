"""Weights and optimizer state between ranks: the leader's at the start, the owners' at the end.

During a call a rank has memory for the variables of its partition alone (`holdings.py`). What the
initializers of all ranks draw alike does not travel at the start.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.engine.weights import pieces
from hyparflow.engine.weights.divided_slots import DividedSlot, DividedSlots
from hyparflow.engine.weights.holdings import Holdings, is_elsewhere
from hyparflow.engine.weights.leaders_values import LeadersValues
from hyparflow.engine.weights.moving_statistics import ReplicaStatistics, moving_statistics
from hyparflow.engine.weights.owned_variables import OwnedVariables
from hyparflow.engine.weights.variable_numbers import numbers_of, require_same, unique
from hyparflow.model.keras_internals.compiled import compile_arguments
from hyparflow.model.keras_internals.deferred_variables import (
    bring_in,
    is_absent,
    raw_variable,
    was_read,
)
from hyparflow.model.keras_internals.layers import seed_states
from hyparflow.model.reachable_variables import reachable_variables
from hyparflow.pipeline.grid import Grid

__all__ = ["WeightSync"]

_GOLDEN = 0x9E3779B1  # spreads the replicas' random seeds over 32 bits


class WeightSync:
    """Moves variables between ranks.

    Attributes:
        holdings: which of them this rank needs.
        owned: which of them each rank owns.
        statistics: moving statistics of this rank's partition.
        own: these, and its random generators, which each replica moves for itself.

    Args:
        model: the compiled model, its optimizer built.
        grid: the ranks.
        world, replica, peers: all ranks; the ranks of this replica; the ranks of this partition.
        holders: id of a model variable -> the partitions that use it; the first owns it.
        touched: the optimizer variables (TensorFlow's) that this rank's updates use.
        draws_alike: whether replicas keep random generators in the same state, as the model's own
            steps need it (`hyparflow.engine.custom_steps.draws`).
        replicas: id of a weight -> the one replica that updates it; empty if all do.
        divided: the slots of weights of which each replica updates some rows.
    """

    def __init__(
        self,
        model: Any,
        grid: Grid,
        world: Communicator,
        replica: Communicator,
        peers: Communicator,
        holders: dict[int, tuple[int, ...]],
        touched: Callable[[], Sequence[Any]],
        draws_alike: bool = False,
        replicas: Mapping[int, int] | None = None,
        divided: Sequence[DividedSlot] = (),
    ) -> None:
        self._model, self._grid = model, grid
        self._world, self._replica, self._peers = world, replica, peers
        self._owners = {key: who[0] for key, who in holders.items()}
        self._touched, self._draws_alike = touched, draws_alike
        self._seeds = unique(seed_states(model))
        self._weights = unique([*model.weights, *self._seeds])
        optimizer = getattr(model, "optimizer", None)  # an uncompiled model has none
        self._slots = [] if optimizer is None else unique(optimizer.variables)
        self._known = [*self._weights, *self._slots]
        self._numbers = numbers_of(self._known)
        self._lent: list[Any] = []  # to the leader, which gives it back when it asks again
        seeds = {id(state) for state in self._seeds}
        held = {key: who for key, who in holders.items() if key not in seeds}
        self._divided = DividedSlots(divided, grid, world)
        self.holdings = Holdings(grid, world.rank, held, optimizer, replicas, self._divided)
        self._leaders = LeadersValues(self.holdings, grid, world, peers)
        self.owned = OwnedVariables(
            self._weights, self._slots, self._owners, self.holdings, grid, world, replica, touched
        )
        partition = grid.partition(world.rank)
        self.statistics = ReplicaStatistics(self._of(partition, moving_statistics(model)), peers)
        self.own = [*self.statistics.variables, *self._of(partition, self._seeds)]

    def _of(self, partition: int, variables: Sequence[Any]) -> list[Any]:
        return [v for v in variables if self._owners.get(id(v), 0) == partition]

    @property
    def variables(self) -> list[Any]:
        """The variables that are moved: weights, random seeds, and those of the optimizer."""
        return list(self._known)

    @property
    def slots(self) -> list[Any]:
        """Those of the optimizer."""
        return list(self._slots)

    def bring_in(self) -> None:
        """Let all that this rank needs have its memory: compiled steps do not ask for it."""
        for variable in self._known:
            if self.holdings.needs(variable):
                bring_in(variable)

    def scatter(self, further: Sequence[Any] | None = None) -> None:
        """Give the leader's weights, random seeds and optimizer state to all. Collective.

        Args:
            further: variables of the user's own, in the same order on all ranks.

        Raises:
            ValueError: if ranks have other `further` variables.
        """
        known = self._known
        if further is not None:
            further = [v for v in further if id(v) not in self._numbers]
            require_same(further, self._world)
            known = [*known, *further]
        self._leaders.hand_out(known)
        self.drop()
        for variable in self._weights:
            if self.holdings.parts and self.holdings.needs(variable):
                bring_in(variable)
        self._separate_seeds()

    def drop(self) -> None:
        """Give back the memory of what other partitions need alone."""
        self.holdings.drop(self._weights)
        self.holdings.drop(self._slots)

    def describe(self, variables: Sequence[Any]) -> list[tuple[int, np.ndarray]]:
        """The present values of `variables`, for `write` on other ranks, each with its number.

        Variables that model, losses, metrics and own layers do not lead to are left out.
        """
        numbers = self._numbers
        if any(id(variable) not in numbers for variable in variables):
            numbers = numbers_of([*self._known, *self._users_own()])
        return [(numbers[id(v)], v.numpy()) for v in variables if id(v) in numbers]

    def write(self, values: Sequence[tuple[int, np.ndarray]]) -> None:
        """Write the values that `describe` returned on the leader, which has written the whole."""
        known = self._known
        if any(number >= len(known) for number, _ in values):
            known = [*known, *self._users_own()]
        for number, value in values:
            self._divided.write(known[number], value)
            if self._world.rank != LEADER and not is_elsewhere(known[number]):
                known[number].assign(value)

    def _users_own(self) -> list[Any]:
        """The variables that losses, metrics and own layers lead to, beside weights and slots."""
        own = reachable_variables([self._model, compile_arguments(self._model)])
        return [variable for variable in own if id(variable) not in self._numbers]

    def is_elsewhere(self, variable: Any) -> bool:
        """Whether another rank owns this variable of the model or its optimizer."""
        mine = self._grid.partition(self._world.rank)
        if isinstance(variable, keras.Variable) and id(variable) in self._owners:
            return self._owners[id(variable)] != mine
        used = {id(slot) for slot in self._touched()}
        is_slot = any(variable is slot for slot in self._slots)  # a variable of TensorFlow is none
        parted = self._grid.num_partitions > 1 or self.holdings.is_sharded
        return is_slot and parted and id(raw_variable(variable)) not in used

    def checksums(self) -> list[int | None]:
        """A checksum of each weight and optimizer slot; None of those without memory."""
        return [None if is_absent(v) else pieces.checksum(v) for v in self._known]

    def changed(self, before: Sequence[int | None]) -> list[Any]:
        """The weights and slots that have changed since `checksums` returned `before`.

        What has got its memory since then has been written only if a method of Keras did so.
        """
        triples = zip(self._known, before, self.checksums(), strict=True)
        return [v for v, old, new in triples if None not in (old, new) and old != new]

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
        self.statistics.agree()

    def gather(self, everything: bool = True) -> None:
        """Give owners' variables to all ranks: everything, or what all need. Collective."""
        self.agree()
        seeds = [state.numpy() for state in self._seeds]
        for owner, part in self.owned.by_rank().items():
            if not everything:
                part = [v for v in part if self.holdings.holders(v) is None]
            self._broadcast(part, owner)
        if everything:
            self._divided.gather()
        if self._grid.replica(self._world.rank) and not self._draws_alike:
            for state, value in zip(self._seeds, seeds, strict=True):
                state.assign(value)  # replicas keep their own random numbers until the end

    def gather_to_leader(self, everything: bool = True) -> None:
        """Give every owner's variables to the leader, if ranks hold parts. Collective.

        `drop` gives their memory back.

        Args:
            everything: whether to give it what other partitions alone need.
        """
        if not self.holdings.parts:
            self.gather()
            return
        self.agree()
        for owner, part in self.owned.by_rank().items():
            given = [v for v in part if everything or self.holdings.holders(v) is None]
            for piece in pieces.pieces(given):
                self._bring(piece, owner)
        if everything:
            self._divided.bring_all()

    @property
    def bytes_in_vain(self) -> int:
        """The size of deferred weights that were read here, and that only other ranks need."""
        vain = [v for v in self._weights if was_read(v) and not self.holdings.needs(v)]
        return sum(map(pieces.bytes_of, vain))

    @functools.cached_property
    def bytes_elsewhere(self) -> int:
        """The size of all that this rank does not need."""
        return sum(pieces.bytes_of(v) for v in self._known if not self.holdings.needs(v))

    def bring(self, number: int) -> int:
        """Give the owner's value of one variable to the leader. Collective; returns its size."""
        variable = self._known[number]
        if variable in self._divided:
            self._divided.bring(variable)
        else:
            self._bring([variable], self.holdings.owner(variable))
        return pieces.bytes_of(variable)

    def lend(self, number: int) -> None:
        """Give the leader a variable and those that come next, as many as one message takes.

        They take the place of those that were lent before. Collective.
        """
        self.take_back()
        first, owner = self._known[number], self.holdings.owner
        if first in self._divided:
            self._lent = [first]
            self._divided.bring(first)
            return
        same = itertools.takewhile(
            lambda v: owner(v) == owner(first) and v not in self._divided,
            itertools.islice(self._known, number, None),
        )
        self._lent = pieces.first_piece(same)
        self._bring(self._lent, owner(first))

    def take_back(self) -> None:
        """Give back the leader's memory of what was lent to it."""
        self.holdings.drop(self._lent)
        self._lent = []

    def number(self, variable: Any) -> int:
        """The number of a variable of the model or its optimizer."""
        return self._numbers[id(variable)]

    def _bring(self, piece: Sequence[Any], owner: int) -> None:
        if owner == LEADER:
            return
        if self._world.rank == LEADER:
            pieces.receive(piece, owner, self._world)
        elif self._world.rank == owner:
            pieces.send(piece, LEADER, self._world)

    def finish(self) -> None:
        """Give replica 0's random seeds to all, so that all ranks end alike. Collective."""
        for partition in range(self._grid.num_partitions):
            self._broadcast(self._of(partition, self._seeds), self._grid.rank(0, partition))

    def _broadcast(self, variables: Sequence[Any], root: int) -> None:
        if self._world.size > 1:
            for piece in pieces.pieces(variables):
                pieces.broadcast(piece, root, self._world)
