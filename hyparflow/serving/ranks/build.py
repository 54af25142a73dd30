"""Builds what one rank computes of a model that is served."""

from __future__ import annotations

import contextlib
from typing import Any

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.world import World
from hyparflow.engine.weights.groups import groups_of
from hyparflow.model.checks import check_can_cut
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers, opened_graph
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.decoding.adapters import decoder_of, hook_missing
from hyparflow.serving.decoding.chooser import TokenChooser
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.hooked_model import Around, HookedModel
from hyparflow.serving.decoding.text_inputs import require_text_inputs
from hyparflow.serving.ranks.cut_for_decoding import cut_for_decoding
from hyparflow.serving.ranks.pipeline_runner import PipelineRunner
from hyparflow.serving.ranks.stage import DecodingStage
from hyparflow.serving.ranks.tensor_shards import TensorShards
from hyparflow.serving.ranks.traffic import Traffic

__all__ = ["built_share"]


def built_share(
    model: Any, grid: Grid, world: World, jit: bool, traffic: Traffic
) -> Decoder | PipelineRunner:
    """This rank's share of a model. Collective.

    Args:
        model: what is served.
        grid: who holds what.
        world: all ranks.
        jit: whether XLA compiles samplers.
        traffic: counts what this rank sends.

    Raises:
        ValueError: if the model cannot be cut so.
    """
    groups = groups_of(grid, world)
    if grid.num_partitions == grid.num_shards == 1:
        return decoder_of(model, jit)
    require_text_inputs(model)
    if grid.num_partitions == 1:
        shards = TensorShards(all_layers(model), groups.shards, traffic)
        whole = HookedModel(model, shards.installed)
        if not whole.cache_sizes:
            raise hook_missing(model)
        return Decoder(whole, jit, has_exchanges=True)
    own = _stage(model, grid, world, groups.shards, traffic)
    has_hook = world.all_gather_objects(own.bytes_of_token > 0, "the ranks to find attention")
    if not any(has_hook):
        raise hook_missing(model)
    return PipelineRunner(own, groups.replica, TokenChooser(jit), traffic)


def _stage(
    model: Any, grid: Grid, world: World, shards: Communicator, traffic: Traffic
) -> DecodingStage:
    check_can_cut(model)
    graph = FlatGraph(model, opened_graph(model))
    table = cut_for_decoding(graph, grid.num_partitions)
    stage = grid.partition(world.rank)
    around: Around = contextlib.nullcontext
    if grid.num_shards > 1:
        layers = [x for n in table.operations(stage) for x in graph.calls[n].layers]
        around = TensorShards(layers, shards, traffic).installed
    return DecodingStage(graph, table, stage, around, has_exchanges=grid.num_shards > 1)
