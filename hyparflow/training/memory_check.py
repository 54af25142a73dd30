"""Refuses a training job whose weights cannot be had, before the system kills it without a word.

Only what is certain counts: no activations, no compiled programs; gradients and slots only where
each weight surely has one. What is refused could not have worked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.free_memory import MemoryBound, memory_bounds
from hyparflow.comm.world import World
from hyparflow.engine.pooled_memory import pooled_memory
from hyparflow.engine.weights.certain_gradients import sure_to_be_trained
from hyparflow.engine.weights.holdings import bytes_here
from hyparflow.engine.weights.ownership import holders_of
from hyparflow.formats.sizes import size_text
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.optimizer import weights_of_slots
from hyparflow.model.layout import ModelCut
from hyparflow.model.variable_sizes import bytes_of, slot_sizes
from hyparflow.options import Options

__all__ = ["MemoryNeed", "need_of", "require_memory", "too_little"]

_SLACK = 1 << 28  # bytes that a process may have free, of what it once took for something else
_LARGEST = 8  # bytes of weights, gradients and all slots per byte of weights, at the very most


@dataclass(frozen=True)
class MemoryNeed:
    """What one rank needs beside what it has; in bytes.

    Attributes:
        weights, gradients, slots: of its partition, all at the same time.
        freed: what it gives back before that: other partitions' weights and slots, and experts
            that replicas share out, of which it takes its own rows.
        at_end: what all weights and slots need, where each rank gets them; 0 where none does.
        pooled: what TensorFlow has taken already, and keeps free.
    """

    weights: int = 0
    gradients: int = 0
    slots: int = 0
    freed: int = 0
    at_end: int = 0
    pooled: int = 0

    @property
    def in_training(self) -> int:
        """What it needs at the first step."""
        return self.weights + self.gradients + self.slots - self.freed


def require_memory(model: Any, layout: ModelCut, options: Options, world: World) -> None:
    """Check that each rank may take the memory that it surely needs in `fit`. Collective.

    Raises:
        ValueError: on all ranks, if one may not.
    """
    bounds = memory_bounds(at_most=True)
    share = min(bound.size // world.memory_sharers.get(bound.key, 1) for bound in bounds)
    need, pooled = MemoryNeed(), pooled_memory()
    on_gpu = tf.config.get_visible_devices("GPU")  # weights are in its memory
    if not on_gpu and _at_most(model) > share + pooled:  # few models come near it
        need = need_of(model, layout, options, options.grid.partition(world.rank))
        need = replace(need, pooled=pooled)
    in_doubt = np.array([max(need.in_training, need.at_end) > share + pooled], np.int64)
    world.sum(in_doubt, "the comparison of memory")
    if not in_doubt[0]:
        return
    everyone = world.all_gather_objects((need, bounds), "the memory of each rank")
    found = too_little(everyone)
    if found is not None:
        rank, bound, sharers = found
        raise abort.mark_collective(
            ValueError(
                "The weights of a partition, their gradients and the optimizer's slots must fit "
                "in memory, before anything else does. Received: "
                f"{_described(everyone[rank][0], rank, options)}; {size_text(bound.size)} may be "
                f"taken ({bound.what}{_shared(sharers)}). Use more partitions, hf.deferred() with "
                "gather=False, shard_optimizer=True over replicas, an optimizer with fewer slots, "
                "or a larger limit; recompute='block' spares activations, which come on top."
            )
        )


def need_of(model: Any, layout: ModelCut, options: Options, partition: int) -> MemoryNeed:
    """What a rank of `partition` surely needs in `fit`."""
    grid, optimizer = options.grid, model.optimizer
    holders = holders_of(model, layout, grid)
    mine = {key for key, who in holders.items() if partition in who}
    sure = sure_to_be_trained(model, layout.graph)
    trained = [v for v in model.trainable_variables if id(v) in mine & sure]
    shared = _shared_out(model, options)
    sharded = options.shard_optimizer and grid.num_replicas > 1
    old = _old_slots(optimizer)
    new = {} if optimizer is None else slot_sizes(optimizer, model.trainable_variables)
    alone = bool(sure) and not sharded
    slots = sum(shared.part(v, new.get(id(v), 0)) for v in trained)
    slots += sum(shared.missing(slot, weight) for slot, weight in old if id(weight) in mine)
    others = [v for v in model.weights if id(v) in holders and id(v) not in mine]
    others += [v for v in model.weights if id(v) in mine and v in shared]
    others += [
        slot for slot, weight in old if sharded or weight in shared or id(weight) not in mine
    ]
    apart = grid.num_partitions > 1 or sharded or bool(shared.experts)
    everywhere = options.gather is not False and apart
    whole = [*model.trainable_variables, *(slot for slot, _ in old)]
    return MemoryNeed(
        weights=sum(shared.missing(v, v) for v in model.weights if id(v) in mine),
        gradients=sum(shared.part(v, bytes_of(v)) for v in trained),
        slots=slots if alone else 0,
        freed=sum(bytes_of(v) for v in others if not is_absent(v)),
        at_end=(sum(map(_missing, whole)) + (sum(new.values()) if sure else 0)) * everywhere,
    )


@dataclass(frozen=True)
class _SharedOut:
    """The experts that replicas share out: a rank has rows of them, in variables of its own.

    Attributes:
        experts: ids of their weights.
        sharers: how many replicas there are.
    """

    experts: frozenset[int]
    sharers: int

    def __contains__(self, weight: Any) -> bool:
        return id(weight) in self.experts

    def part(self, weight: Any, size: int) -> int:
        """Of so many bytes that belong to a weight, those of one replica."""
        return size // self.sharers if weight in self else size

    def missing(self, variable: Any, weight: Any) -> int:
        """Bytes that a replica has no memory for yet, of a weight or of a slot of that weight."""
        if weight not in self:
            return _missing(variable)
        rows = bytes_here(variable) if is_absent(variable) else 0
        return max(0, self.part(weight, bytes_of(variable)) - rows)


def _shared_out(model: Any, options: Options) -> _SharedOut:
    count = options.grid.num_replicas
    if not options.expert_parallel or count == 1:
        return _SharedOut(frozenset(), 1)
    layers = expert_layers(all_layers(model))
    return _SharedOut(frozenset(id(weight) for one in layers for weight in one.weights), count)


def too_little(
    everyone: Sequence[tuple[MemoryNeed, Iterable[MemoryBound]]],
) -> tuple[int, MemoryBound, int] | None:
    """A rank that needs more than there is, what limits it, and how many ranks share that.

    Ranks that share a limit need together what each of them needs.
    """
    training: Counter[str] = Counter()
    end: Counter[str] = Counter()
    sharers: Counter[str] = Counter()
    room: dict[str, int] = {}
    for need, bounds in everyone:
        for bound in bounds:
            training[bound.key] += need.in_training - need.pooled
            end[bound.key] += need.at_end - need.pooled
            sharers[bound.key] += 1
            room[bound.key] = max(bound.size, room.get(bound.key, 0))
    for rank, (need, bounds) in enumerate(everyone):
        for bound in sorted(bounds, key=lambda bound: bound.size):
            most = max(training[bound.key], end[bound.key])
            if most > room[bound.key] + _SLACK * sharers[bound.key] and need != MemoryNeed():
                return rank, bound, sharers[bound.key]
    return None


def _at_most(model: Any) -> int:
    """No model and optimizer need more than this."""
    return _LARGEST * sum(map(bytes_of, model.weights))


def _old_slots(optimizer: Any) -> list[tuple[Any, Any]]:
    """The slots of an optimizer that is built, each with its weight."""
    if optimizer is None or not optimizer.built:
        return []
    weights = weights_of_slots(optimizer)
    return [(slot, weights[id(slot)]) for slot in optimizer.variables if id(slot) in weights]


def _missing(variable: Any) -> int:
    """The bytes that a variable has no memory for yet."""
    return bytes_of(variable) if is_absent(variable) else 0


def _described(need: MemoryNeed, rank: int, options: Options) -> str:
    whose = f"partition {options.grid.partition(rank)} on rank {rank}"
    text = (
        f"{whose} needs {size_text(need.weights)} more for weights, {size_text(need.gradients)} "
        f"for gradients, {size_text(need.slots)} more for optimizer slots"
    )
    if need.freed:
        text += f", and gives {size_text(need.freed)} of other ranks back"
    if need.pooled:
        text += f", and has {size_text(need.pooled)} of its own free"
    if need.at_end > need.in_training:
        text += (
            f"; with gather=True it needs {size_text(need.at_end)} for all partitions' at the end"
        )
    return text


def _shared(sharers: int) -> str:
    return f", for {sharers} ranks together" if sharers > 1 else ""
