"""Builds the stages of one rank whose sequences are divided."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.loss.head import LossHead
from hyparflow.engine.sequence.cores_found import CoresFound
from hyparflow.engine.sequence.disk_store import DiskStore
from hyparflow.engine.sequence.exchange import ShardExchange
from hyparflow.engine.sequence.position_trial import find_cores
from hyparflow.engine.sequence.sequence_stage import SequenceStage
from hyparflow.engine.sequence.shared_blocks import SharedBlocks
from hyparflow.engine.sequence.stage_trace import StageTrace
from hyparflow.engine.sequence.store import DeviceStore, MemoryStore, RoundedStore, Store
from hyparflow.engine.sequence.tile_head import TileHead
from hyparflow.engine.stages.local_stage import LocalStage
from hyparflow.engine.stages.stage_call import StageCall
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.model import masks
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.attention import attention_layers
from hyparflow.model.keras_internals.layers import all_layers, opened_graph
from hyparflow.model.keras_internals.positions import position_tables
from hyparflow.model.layout import ModelCut
from hyparflow.options import Options

__all__ = ["SequenceBuilder"]


@dataclass
class SequenceBuilder:
    """What the stages of a rank have in common, where sequences are divided.

    Attributes:
        model: the user's model.
        layout: how it is cut.
        place: what the rank holds.
        options: the parallel arguments.
        shards: the ranks that share each sequence.
        head: loss and metrics, if the rank has the last stage.
        rewriter: puts in faster kernels; None leaves all as it is.
    """

    model: Any
    layout: ModelCut
    place: Ownership
    options: Options
    shards: Communicator
    head: LossHead | None
    rewriter: Rewriter | None
    _found: dict[int, CoresFound] = field(default_factory=dict)
    _blocks: SharedBlocks = field(default_factory=SharedBlocks)

    def all(self, bodies: Sequence[StageCall]) -> list[tuple[LocalStage, SequenceStage]]:
        """All stages of this rank, each with its place in the whole model, and alone.

        Args:
            bodies: what each stage computes.
        """
        numbers = self.place.stages
        return [self._local(n, body) for n, body in zip(numbers, bodies, strict=True)]

    def _local(self, number: int, body: StageCall) -> tuple[LocalStage, SequenceStage]:
        table = self.layout.partitioning
        weights = self.place.trained_by(number, self.layout)
        trained = [self.place.trained[position] for position in weights]
        tables = {id(v) for v in position_tables(all_layers(self.model))}
        is_last = number == table.num_stages - 1
        trace = StageTrace(
            body=body,
            layers=attention_layers(self.model),
            weights=[variable.value for variable in trained],
            gradient_inputs=[
                table.stage_inputs[number].index(e.tensor) for e in table.gradient_inputs(number)
            ],
            gradient_outputs=[
                table.stage_outputs[number].index(n) for n in table.gradient_outputs(number)
            ],
            head=TileHead(self.head) if is_last and self.head is not None else None,
            rewriter=self.rewriter,
        )
        stage = SequenceStage(
            trace,
            trained,
            tables=[n for n, variable in enumerate(trained) if id(variable) in tables],
            num_chunks=self.options.num_sequence_chunks,
            exchange=ShardExchange(self.shards),
            store=_store(self.options.sequence_store),
            blocks=self._blocks,
            find=self.find,
            is_first=number == 0,
            keeps=self.options.recompute is None,
        )
        masked = masks.masked_outputs(table, self.layout.masked, number)
        calls: Any = stage  # which has the calls of a `Stage`
        return LocalStage(number, calls, table, masked, weights), stage

    def find(self, length: int) -> CoresFound:
        """What the model's attention layers compute, for sequences up to this length."""
        known = [count for count in self._found if count >= length]
        if not known:
            functional = opened_graph(self.model)
            if functional is None:
                raise abort.mark_collective(_not_functional(self.model))
            try:
                found = find_cores(FlatGraph(self.model, functional), length)
            except ValueError as error:
                raise abort.mark_collective(error) from None
            self._found[length] = found
            known = [length]
        return self._found[min(known)]


def _store(name: str) -> Store:
    if name == "memory" and tf.config.list_logical_devices("GPU"):
        return DeviceStore()
    if name in ("memory", "host"):
        return MemoryStore()
    if name == "bf16":
        return RoundedStore()
    folder = tempfile.gettempdir() if name == "disk" else name
    try:
        return DiskStore(folder)
    except OSError as error:
        raise ValueError(
            "`sequence_store` must be 'memory', 'host', 'bf16', 'disk', or the path of a folder in "
            f"which files can be made. Received: sequence_store={name!r} "
            f"({error.strerror}: {folder})"
        ) from None


def _not_functional(model: Any) -> ValueError:
    return ValueError(
        "A model whose sequences are divided must be Functional or Sequential, so that its "
        f"operations can be tried one by one. Received: model '{model.name}' of class "
        f"'{type(model).__name__}'. Build it from its layers as keras.Model(inputs, outputs), or "
        "leave `num_sequence_shards` and `num_sequence_chunks` out."
    )
