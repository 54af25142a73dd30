"""Estimates costs by counting arithmetic operations and bytes, for a machine elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.weight_parts import divides
from hyparflow.planning.costs.attention import Attention
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.costs.model_weights import mixtures_of, weights_of
from hyparflow.planning.costs.overheads import Overheads
from hyparflow.planning.costs.tensor_sizes import (
    bytes_per_row,
    slots_per_byte,
    used_weights,
)

__all__ = ["estimate"]

_FLOPS = 3e10  # of one core, in float32, by convolutions of a deep learning library
_BYTES = 5e9  # per second, written and read by one core
_SCORES = 2  # tensors of the size of scores that are kept, and that are needed besides
_TRACED_PER_OPERATION = 50  # operations of TensorFlow for one of Keras, backward included


def estimate(
    graph: FlatGraph,
    optimizer: Any = None,
    flops: float = _FLOPS,
    bandwidth: float = _BYTES,
    length: int | None = None,
    attention: Sequence[Attention] = (),
) -> Costs:
    """Costs of a model's operations, counted.

    A forward multiplies and adds each weight at every position, and writes its outputs; a
    backward takes twice as long, for the gradients of inputs and of weights.

    Args:
        graph: the model's graph.
        optimizer: the model's optimizer, for its slots.
        flops: additions and multiplications per second of a rank.
        bandwidth: bytes per second of a rank.
        length: of sequences, where the model leaves it open.
        attention: the layers whose scores count; those of others do not.
    """
    model = graph.model
    operations = graph.operation_graph(model.trainable_variables)
    tensors = np.array([bytes_per_row(x) for x in graph.tensors], float)
    written = np.array([sum(tensors[n] for n in op.outputs) for op in operations.operations])
    works = [graph.work(index) for index in range(len(graph.calls))]
    arithmetic = 2.0 * np.array([work.multiplications for work in works])
    forward = (arithmetic / flops + 2 * written / bandwidth)[:, None]
    each = {"forward": forward[:, 0], "backward": 2 * forward[:, 0], "fused": 3 * forward[:, 0]}
    each |= {"kept": written, "working": 2 * written}
    linear = np.ones((len(each), len(written)))
    for layer in attention:
        _add_scores(each, linear, layer, length or 1)
    return Costs(
        operations=tuple(op.name for op in operations.operations),
        rows=(1,),
        forward=each["forward"][:, None],
        backward=each["backward"][:, None],
        fused=each["fused"][:, None],
        kept=each["kept"],
        working=each["working"],
        program=np.full(len(written), float(_TRACED_PER_OPERATION)),
        by_xla=np.zeros(len(written)),
        tensors=tensors,
        weights=weights_of(model),
        used=used_weights(graph),
        slots=slots_per_byte(model.trainable_variables, optimizer),
        divides=optimizer is None or divides(optimizer),
        mixtures=mixtures_of(graph),
        overheads=Overheads(),
        length=length,
        linear=linear if attention else None,
        attention=tuple(attention),
        source="estimated",
        machine={"flops": flops, "bandwidth": bandwidth, "tensorflow": tf.__version__},
    )


def _add_scores(
    each: dict[str, np.ndarray], linear: np.ndarray, layer: Attention, length: int
) -> None:
    """Count the scores of an attention layer, which grow as the square of the length."""
    pairs, number = layer.heads * float(length) ** 2, layer.operation
    seconds = pairs * layer.forward, pairs * layer.backward
    scores = _SCORES * pairs * layer.number_size
    more = (*seconds, sum(seconds), scores, scores)
    for place, (name, added) in enumerate(zip(each, more, strict=True)):
        before = each[name][number]
        each[name][number] += added
        linear[place, number] *= before / (before + added)
