"""Builds what one rank computes of a model that is served."""

from __future__ import annotations

import contextlib
from typing import Any

from hyparflow.comm.world import World
from hyparflow.engine.weights.groups import groups_of
from hyparflow.model.checks import check_can_cut
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers, opened_graph
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.decoding.adapters import decoder_of, require_hook
from hyparflow.serving.decoding.chooser import TokenChooser
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.hooked_model import Around, HookedModel
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
    require_hook(model)
    if grid.num_partitions == 1:
        shards = TensorShards(all_layers(model), groups.shards, traffic)
        return Decoder(HookedModel(model, shards.installed), jit, has_exchanges=True)
    check_can_cut(model)
    graph = FlatGraph(model, opened_graph(model))
    table = cut_for_decoding(graph, grid.num_partitions)
    stage = grid.partition(world.rank)
    around: Around = contextlib.nullcontext
    if grid.num_shards > 1:
        layers = [x for n in table.operations(stage) for x in graph.calls[n].layers]
        around = TensorShards(layers, groups.shards, traffic).installed
    has_exchanges = grid.num_shards > 1
    own = DecodingStage(graph, table, stage, around, has_exchanges)
    return PipelineRunner(own, groups.replica, TokenChooser(jit), traffic)
