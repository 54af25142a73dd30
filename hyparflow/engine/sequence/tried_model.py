"""Runs a model on a few random tokens, with given numbers in the place of what attention makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.compared_constants import compared_constants
from hyparflow.engine.compiled.constants_before import constants_before, is_stored
from hyparflow.engine.sequence.parts_of_tensors import padded_positions
from hyparflow.engine.sequence.undividable import undividable
from hyparflow.formats.text import first_line
from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import CallContext
from hyparflow.model.keras_internals.attention import (
    AttentionCall,
    attention_layers,
    attention_replaced,
)
from hyparflow.model.keras_internals.dropout import dropout_replaced
from hyparflow.model.keras_internals.layers import all_layers, reading_nothing
from hyparflow.model.keras_internals.positions import positions_from
from hyparflow.model.keras_internals.time_distributed import positions_as_rows
from hyparflow.model.layer_names import layer_of

__all__ = ["ROWS", "ModelRun", "TriedModel"]

ROWS = 2  # of a trial
_MOST_COMPARED = 8


@dataclass
class ModelRun:
    """What came of a run.

    Attributes:
        tensors: all tensors, by number.
        calls: the calls of attention.
        length: how many positions there were.
    """

    tensors: list[Any]
    calls: list[AttentionCall]
    length: int

    def values(self) -> list[np.ndarray]:
        """All tensors as arrays, then queries, keys and values."""
        of_calls = [x for call in self.calls for x in (call.query, call.key, call.value)]
        return [np.asarray(tf.convert_to_tensor(x)) for x in (*self.tensors, *of_calls)]


@dataclass
class TracedModel:
    """What is found in the graph of a model.

    Attributes:
        constants: name of an attention layer -> whole numbers that its mask is made with.
        stored: names of attention layers whose masks are read from an array or a weight.
        compared: whole numbers beyond 1 that anything is compared with, as tokens may be.
    """

    constants: dict[str, set[int]]
    stored: set[str]
    compared: list[int]


class TriedModel:
    """A model that is run on random tokens.

    Attributes:
        layers: its attention layers.

    Args:
        graph: the model's.
        most: the largest number of positions of a run.
    """

    def __init__(self, graph: FlatGraph, most: int) -> None:
        self.layers = attention_layers(graph.model)
        self._graph, self._most = graph, most
        self._special: tuple[Sequence[int], int] = ((), 0)
        numbers, calls = range(len(graph.tensors)), range(len(graph.calls))
        self._function = graph.function(graph.inputs, numbers, calls)
        self._outputs = graph.function(graph.inputs, graph.outputs, calls)
        masking = [x for x in all_layers(graph.model) if isinstance(x, keras.layers.Masking)]
        self._padding = masking[0].mask_value if masking else 0.0

    def choose(self, special: Sequence[int], seed: int) -> None:
        """Draw inputs of integers from these numbers, too, and by another seed."""
        self._special = special, seed

    def tokens(self, length: int, padded: bool) -> list[Any]:
        """Random inputs; some positions of the first row are padding, if anything can tell."""
        special, seed = self._special
        random = np.random.default_rng(seed)
        found = []
        for tensor in self._graph.functional.inputs:
            if len(tensor.shape) < 2:
                raise undividable(f"its input '{tensor.name}' has no axis of positions")
            shape = (ROWS, length, *(n or 3 for n in tensor.shape[2:]))
            if "float" in tensor.dtype:
                values: np.ndarray = random.standard_normal(shape)
                if padded:
                    values[~padded_positions(ROWS, length)] = self._padding
            else:
                # Every embedding has 0 and 1; 0 is the padding, of tokens and in masks.
                values = np.ones(shape)
                if not padded and "mask" not in tensor.name:
                    values = random.choice([0, 1, *special], shape)
                if padded:
                    values[~padded_positions(ROWS, length)] = 0
            found.append(tf.cast(values, tensor.dtype))
        return found

    def run(
        self,
        tokens: Sequence[Any],
        start: int,
        stop: int,
        training: bool = False,
        only_outputs: bool = False,
    ) -> ModelRun:
        """Run the model on some of the positions.

        Args:
            tokens: of all positions.
            start, stop: the positions.
            training: whether as in training, but for dropout.
            only_outputs: whether the run's tensors are the outputs, in place of all.

        Raises:
            ValueError: naming the operation that cannot compute them alone.
        """
        calls: list[AttentionCall] = []

        def given(call: AttentionCall) -> Any:
            random = np.random.default_rng(len(calls))
            calls.append(call)
            if len(call.query.shape) != 4:
                raise ValueError("attention over more than one axis, or over another one")
            rows, count, heads, _ = call.query.shape
            shape = (rows, self._most, heads, call.value.shape[-1])
            values = random.standard_normal(shape)[:, start : start + count]
            return tf.cast(values, call.query.dtype)

        parts, tensors = [x[:, start:stop] for x in tokens], None
        try:
            tensors = self._call(parts, start, given, training, only_outputs)
        except Exception as error:
            if not any(call.returns_scores for call in calls):
                where = layer_of(error) or self._graph.call_of(error)
                raise undividable(
                    f"'{where}' cannot compute some of the positions alone ({first_line(error)})"
                ) from error
        for call in calls:
            if call.returns_scores:
                raise _returns_scores(call.layer.name)
        return ModelRun(tensors or [], calls, stop - start)

    def traced(self) -> TracedModel:
        """What the model computes with, found in its graph."""
        found = TracedModel({}, set(), [])
        arguments: set[Any] = set()

        def given(call: AttentionCall) -> Any:
            if call.mask is not None:
                mask = tf.convert_to_tensor(call.mask)
                name = call.layer.name
                found.constants.setdefault(name, set()).update(constants_before(mask))
                if is_stored(mask, arguments):
                    found.stored.add(name)
            rows, count, heads, _ = tf.unstack(tf.shape(call.query))
            made = tf.zeros([rows, count, heads, call.value.shape[-1]], call.query.dtype)
            return tf.ensure_shape(made, [None, None, *call.query.shape[2:3], call.value.shape[-1]])

        def traced(*tokens: Any) -> Any:
            arguments.update(x.op for x in tokens)
            with reading_nothing():
                self._call(list(tokens), 0, given, training=False)
            return tf.zeros([])

        types = [
            tf.TensorSpec([None, None, *x.shape[2:]], x.dtype) for x in self.tokens(1, padded=False)
        ]
        concrete = tf.function(traced, autograph=False).get_concrete_function(*types)
        numbers = compared_constants(concrete.graph, _MOST_COMPARED)
        found.compared += sorted({int(n) for n in numbers if n > 1 and float(n).is_integer()})
        return found

    def _call(
        self,
        tokens: list[Any],
        start: int,
        attention: Callable[[AttentionCall], Any],
        training: bool,
        only_outputs: bool = False,
    ) -> list[Any]:
        context = CallContext(training, tf.constant(1.0, tf.float64), ())
        function = self._outputs if only_outputs else self._function
        replaced = attention_replaced(self.layers, attention)
        undropped, alone = dropout_replaced(lambda inputs, *_: inputs), positions_as_rows()
        with replaced, positions_from(start), undropped, alone:
            return function(tokens, context)


def _returns_scores(name: str) -> ValueError:
    return ValueError(
        "Scores of attention exist for blocks only when sequences are divided, never as a whole. "
        f"Received: layer '{name}' with return_attention_scores=True. Leave it out, or train "
        "without `num_sequence_shards` and `num_sequence_chunks`."
    )
