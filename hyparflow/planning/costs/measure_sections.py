"""What the sections of a model take whose sequences are divided: traced as training traces them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from hyparflow.engine.compiled import choice
from hyparflow.engine.compiled.section_sizes import SectionSizes
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.stage_trace import CutStage, StageTrace
from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import CallContext
from hyparflow.model.keras_internals.attention import attention_layers
from hyparflow.model.keras_internals.deferred_variables import present
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.positions import position_tables
from hyparflow.pipeline.partition import make_partitioning

__all__ = ["sections_of"]


def sections_of(
    graph: FlatGraph, cores: Mapping[int, AttentionCore], faster_kernels: bool
) -> tuple[SectionSizes, ...]:
    """What each section of the whole model takes.

    Nothing is computed. None are known where the compiler cannot cut. What labels will be like is
    not known either, so the loss is that of classes.

    Args:
        graph: the model's.
        cores: id of an attention layer -> what it computes.
        faster_kernels: whether layers compute with them, or as Keras does.
    """
    model, compiler = graph.model, choice.compiler()
    if not compiler.shares:
        return ()
    count = len(graph.calls)
    table = make_partitioning(graph.operation_graph(model.trainable_variables), (0, count))
    function = graph.function(table.stage_inputs[0], table.stage_outputs[0], list(range(count)))

    def body(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
        context = CallContext(training, share)
        outputs = function(list(values), context)
        losses = [_loss(x) for x in outputs if x.dtype.is_floating and len(x.shape) > 2]
        return [tf.add_n(losses)] if losses else outputs, context.losses

    inputs = [graph.tensors[n] for n in table.stage_inputs[0]]
    trained = list(model.trainable_variables)
    with present(model.variables):
        trace = StageTrace(
            body=body,
            layers=attention_layers(model),
            weights=[variable.value for variable in trained],
            gradient_outputs=[0],
            rewriter=Rewriter() if faster_kernels else None,
        )
        start, share = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float64)
        types = start, [_any_part(x) for x in inputs], share
        cut = CutStage(trace, cores, types, training=True, has_head=False)
    tables = {id(variable) for variable in position_tables(all_layers(model))}
    return tuple(cut.sections.sizes([n for n, v in enumerate(trained) if id(v) in tables]))


def _loss(logits: Any) -> Any:
    labels = tf.zeros(tf.shape(logits)[:-1], tf.int32)
    each = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return tf.cast(tf.reduce_sum(each), tf.float32)


def _any_part(x: Any) -> Any:
    """The type of an input, for any number of rows and positions."""
    return tf.TensorSpec([None if axis < 2 else n for axis, n in enumerate(x.shape)], x.dtype)
