"""One partition of a language model that decodes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import CallContext, Standardize
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.actions import Edge
from hyparflow.pipeline.partition import Partitioning
from hyparflow.serving.decoding.cached_model import Around
from hyparflow.serving.decoding.caches import (
    Caches,
    HoldsCaches,
    put_rows,
    values_of,
)
from hyparflow.serving.decoding.flat_kernels import FlatKernels
from hyparflow.serving.decoding.hooked_model import HookedBody, token_inputs
from hyparflow.serving.decoding.traced_by_size import TracedBySize
from hyparflow.serving.ranks.cut_for_decoding import is_made_anywhere

__all__ = ["DecodingStage"]


class DecodingStage(HoldsCaches):
    """The layers of one stage, compiled, with what crosses to other stages.

    Attributes:
        received: tensors that come from other stages.
        sent: tensors that go to other stages.

    Args:
        graph: the model.
        table: how it is cut.
        stage: the number of this stage.
        around: see `Around`.
        compiles: whether XLA compiles its layers; not those that talk to other ranks.
    """

    def __init__(
        self,
        graph: FlatGraph,
        table: Partitioning,
        stage: int,
        around: Around = contextlib.nullcontext,
        compiles: bool = True,
    ) -> None:
        self._graph = graph
        names = [tensor.name for tensor in graph.functional.inputs]
        self._names = dict(zip(graph.inputs, names, strict=True))
        self._outputs = table.stage_outputs[stage]
        edges = [edge for edge in table.edges if not is_made_anywhere(graph, edge.tensor)]
        self.received = _crossing([edge for edge in edges if edge.consumer == stage])
        self.sent = _crossing([edge for edge in edges if edge.producer == stage])
        first = [n for n, call in enumerate(graph.calls) if isinstance(call.operation, Standardize)]
        operations = [*first, *(n for n in table.operations(stage) if n not in first)]
        self._inputs = (*self.received, *graph.inputs)
        self._function = graph.function(self._inputs, self._outputs, operations)
        self._around = around
        self._body = HookedBody(self._called, self._samples, around)
        super().__init__(self._body.cache_sizes)
        outer = [x for n in operations for x in graph.calls[n].layers] if compiles else []
        self._flattened = FlatKernels([x for layer in outer for x in all_layers(layer)])
        self._compiled = TracedBySize(self._stepped, jit_compile=compiles)
        self._step = TracedBySize(self._one_step)
        self._taking = TracedBySize(self._taken_in)

    # --- computation ---

    def like(self, tensor: int, rows: int, tokens: int) -> tuple[tuple[int, ...], Any]:
        """The shape and NumPy type of a tensor that crosses."""
        found = self._graph.tensors[tensor]
        return (rows, tokens, *found.shape[2:]), tf.dtypes.as_dtype(found.dtype).as_numpy_dtype

    def take_in(
        self, caches: Caches, row: int, given: dict[int, Any], tokens: Any, places: Any
    ) -> dict[int, Any]:
        """Put the keys and values of a piece of a prompt into a row.

        Args:
            caches: of all rows.
            row: of the piece.
            given: tensors from other stages.
            tokens: (1, tokens); only the first stage reads them.
            places: their positions.

        Returns:
            Tensors for other stages.
        """
        of_row = [tf.gather(cache, [row]) for cache in caches]
        made, new = self._taking(of_row, self._flat(given), tokens, places)
        put_rows(caches, [row], new)
        return self._named(made)

    def step(
        self, caches: Caches, given: dict[int, Any], tokens: Any, positions: Any
    ) -> tuple[dict[int, Any], Any]:
        """One more token of each row.

        Args:
            caches: of all rows.
            given: tensors from other stages.
            tokens: (rows, 1).
            positions: as large.

        Returns:
            Tensors for other stages, and the last output, which is the logits on the last stage.
        """
        made = self._step(caches, self._flat(given), tokens, positions)
        return self._named(made), made[-1]

    def plain(self, given: dict[int, Any], tokens: Any) -> tuple[dict[int, Any], Any]:
        """A call without caches; see `step`."""
        with self._around():
            made = self._called([*self._flat(given), tokens])
        return self._named(made), made[-1]

    def _flat(self, given: dict[int, Any]) -> list[Any]:
        return [given[number] for number in self.received]

    def _named(self, made: Sequence[Any]) -> dict[int, Any]:
        found = dict(zip(self._outputs, made, strict=True))
        return {number: found[number] for number in self.sent}

    # --- traced ---

    def _called(self, tensors: list[Any]) -> list[Any]:
        """Tensors from other stages, then the tokens -> outputs."""
        *received, tokens = tensors
        own = token_inputs(tokens)
        given = [*received, *(own[self._names[number]] for number in self._graph.inputs)]
        return self._function(given, CallContext())

    def _samples(self) -> list[Any]:
        shapes = [self.like(number, 1, 1) for number in self.received]
        return [*(tf.zeros(*like) for like in shapes), tf.zeros([1, 1], tf.int32)]

    def _taken_in(self, caches: Any, given: Any, tokens: Any, places: Any) -> Any:
        return self._body.call([*given, tokens], places, caches)

    def _one_step(self, caches: Caches, given: Any, tokens: Any, positions: Any) -> Any:
        return self._compiled(self._flattened.matrices(), caches, given, tokens, positions)

    def _stepped(
        self, matrices: Sequence[Any], caches: Caches, given: Any, tokens: Any, positions: Any
    ) -> Any:
        with self._flattened.given(matrices):
            made, new = self._body.call([*given, tokens], positions, values_of(caches))
        for cache, changed in zip(caches, new, strict=True):
            cache.assign(changed)
        return made


def _crossing(edges: Sequence[Edge]) -> dict[int, list[Edge]]:
    """Number of a tensor -> its edges, in one order on all ranks."""
    found: dict[int, list[Edge]] = {}
    for edge in edges:
        found.setdefault(edge.tensor, []).append(edge)
    return found
