"""Builds what one rank computes of a model that is served."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.world import World
from hyparflow.engine.weights.groups import groups_of
from hyparflow.model.checks import check_can_cut
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import all_layers, opened_graph
from hyparflow.model.keras_internals.serving_hook import attends_by_hook
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.coherent.coherent_decoder import CoherentDecoder
from hyparflow.serving.coherent.travelling_models import travelling_model_of
from hyparflow.serving.decoding.adapters import cached_model_of, decoder_of, hook_missing
from hyparflow.serving.decoding.cached_model import Around
from hyparflow.serving.decoding.chooser import TokenChooser
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.hooked_model import HookedModel
from hyparflow.serving.decoding.text_inputs import require_text_inputs
from hyparflow.serving.ranks.cut_for_decoding import cut_for_decoding
from hyparflow.serving.ranks.held_experts import HeldExperts
from hyparflow.serving.ranks.pipeline_runner import PipelineRunner
from hyparflow.serving.ranks.shared_experts import SharedExperts
from hyparflow.serving.ranks.stage import DecodingStage
from hyparflow.serving.ranks.tensor_shards import TensorShards
from hyparflow.serving.ranks.traffic import Traffic

__all__ = ["Share", "built_share"]


@dataclass(frozen=True)
class Share:
    """What one rank computes of a model, compiled.

    Attributes:
        computes: the model, or its partition.
        traffic: counts what this rank sends.
        shards: its share of kernels; None if they are whole.
        experts: those that it has, if ranks share them out.
    """

    computes: Decoder | PipelineRunner
    traffic: Traffic
    shards: TensorShards | None = None
    experts: HeldExperts | None = None

    def refresh(self) -> None:
        """Take the weights as they are now."""
        for held in (self.shards, self.experts):
            if held is not None:
                held.refresh()


def built_share(
    model: Any, grid: Grid, world: World | None, jit: bool, experts: SharedExperts | None = None
) -> Share:
    """This rank's share of a model. Collective.

    Args:
        model: what is served.
        grid: who holds what.
        world: all ranks; None if there is one.
        jit: whether XLA compiles samplers.
        experts: how the ranks share them out, if they do.

    Raises:
        ValueError: if the model cannot be cut so.
    """
    traffic = Traffic()
    if world is None or grid.num_partitions == grid.num_shards == 1:
        return Share(decoder_of(model, jit), traffic)
    require_text_inputs(model)
    if experts is not None:
        ranks = groups_of(grid, world).shards
        held = HeldExperts(expert_layers(all_layers(model)), experts.rank_of, ranks)
        return Share(_decoder_of_shared(model, held, experts, ranks, jit), traffic, experts=held)
    if not any(map(attends_by_hook, all_layers(model))):
        raise hook_missing(model)
    groups = groups_of(grid, world)
    if grid.num_partitions == 1:
        shards = TensorShards(all_layers(model), groups.shards, traffic)
        whole = Decoder(HookedModel(model, shards.installed), jit=jit, compiles=False)
        return Share(whole, traffic, shards)
    check_can_cut(model)
    graph = FlatGraph(model, opened_graph(model))
    table = cut_for_decoding(graph, grid.num_partitions)
    stage, own = grid.partition(world.rank), None
    outer = [layer for n in table.operations(stage) for layer in graph.calls[n].layers]
    if grid.num_shards > 1:
        own = TensorShards(outer, groups.shards, traffic)
    around: Around = contextlib.nullcontext if own is None else own.installed
    # How many tokens an expert has is not known before, so XLA compiles no such stage.
    compiles = own is None and not expert_layers([x for one in outer for x in all_layers(one)])
    computes = DecodingStage(graph, table, stage, around, compiles)
    return Share(PipelineRunner(computes, groups.replica, TokenChooser(jit), traffic), traffic, own)


def _decoder_of_shared(
    model: Any, held: HeldExperts, experts: SharedExperts, ranks: Communicator, jit: bool
) -> Decoder:
    """A decoder whose tokens travel to the ranks of their experts."""
    if not experts.stay:
        return Decoder(cached_model_of(model, held.installed), jit=jit, compiles=False)
    travelling = travelling_model_of(model, held.installed, held.travelling(experts.top_k))
    return CoherentDecoder(travelling, ranks, held.order, jit)
