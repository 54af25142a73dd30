"""Access to the graph of a model, and to what its layers hold and attach to tensors."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

__all__ = [
    "activity_is_summed",
    "added_losses",
    "additional_losses",
    "all_layers",
    "call_model",
    "called_graph",
    "default_seed",
    "execution_order",
    "filled_in",
    "get_mask",
    "moment_weight",
    "moments",
    "opened_graph",
    "output_structure",
    "replace_moments",
    "restore_moments",
    "reading_no_values",
    "reading_nothing",
    "seed_states",
    "set_default_seed",
    "set_mask",
    "standardize_inputs",
    "state_variables",
    "symbolic_output",
    "takes_training",
]


def opened_graph(layer: Any) -> Any | None:
    """The Functional graph of `layer` if its call is Keras's own walk through that graph.

    The classes are not public; a subclass that overrides `call` has a graph that its call may
    not follow, so it is kept whole.
    """
    from keras.src.models.functional import Functional
    from keras.src.models.sequential import Sequential

    if isinstance(layer, Sequential) and type(layer).call is Sequential.call:
        return layer._functional
    if isinstance(layer, Functional) and type(layer).call is Functional.call:
        return layer
    return None


def all_layers(model: Any, include_self: bool = True) -> list[Any]:
    """`model` and every layer inside it; the public `layers` lists the outermost only."""
    return list(model._flatten_layers(include_self=include_self))


def layer_metrics(layers: Iterable[Any]) -> list[Any]:
    """The metrics that `layers`, and those inside them, keep themselves.

    The public `metrics` of a model holds those of `compile` as well.
    """
    found = {id(m): m for layer in layers for sub in all_layers(layer) for m in sub._metrics}
    return list(found.values())


def execution_order(functional: Any) -> Iterator[Any]:
    """The nodes of a Functional model in the order in which its call runs them.

    No public API lists calls (a layer may be called several times).
    """
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.operation is not None and not node.is_input:
                yield node


def standardize_inputs(functional: Any, inputs: Any) -> list[Any]:
    """`inputs` as the flat list of tensors that the graph's inputs take, as `call` does it.

    Casts, adds or drops a last axis of size 1, and puts dicts in order, with Keras's messages.
    """
    return list(functional._standardize_inputs(inputs))


def check_inputs(model: Any, inputs: Any) -> None:
    """Check `inputs`, of one row, as a call of the model would, with Keras's messages.

    A Sequential model takes shapes that its declared input does not allow, as long as its layers
    do; so where the quick check fails, the model is called.

    Raises:
        ValueError: if a shape or the structure does not fit.
    """
    functional = opened_graph(model)
    if functional is None:
        return
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first step says it, of the rows of the user
        try:
            functional._assert_input_compatibility(tensors)
            functional._standardize_inputs(tensors)
        except ValueError:
            call_model(model, tensors, False)


def output_structure(functional: Any, flat: list[Any]) -> Any:
    """Flat outputs in the structure that the model's call returns (one-element lists undone)."""
    packed = keras.tree.pack_sequence_as(functional._outputs_struct, flat)
    return packed[0] if isinstance(packed, list | tuple) and len(packed) == 1 else packed


def filled_in(operation: Any, values: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an operation's only call, with `values` for its symbolic tensors, by id.

    No public API tells with what an operation was called.
    """
    (node,) = operation._inbound_nodes
    args, kwargs = node.arguments.fill_in(values)
    return args, kwargs


def called_graph(graph: Any, function: str) -> Any | None:
    """The graph that an operation of TensorFlow's `graph` calls by this name, or None.

    TensorFlow has no public way from a name to a traced function with its shapes.
    """
    called = graph._get_function(function)
    return getattr(called, "graph", None)


def call_model(model: Any, inputs: Any, training: bool) -> Any:
    """Call `model` as plain `train_step` and `test_step` do."""
    if model._call_has_training_arg:
        return model(inputs, training=training)
    return model(inputs)


def takes_training(operation: Any) -> bool:
    """Whether Keras passes `training` down to `operation` inside a Functional model."""
    if hasattr(operation, "_call_context_args"):  # Keras 3.13 and later
        return "training" in operation._call_context_args
    return bool(getattr(operation, "_call_has_training_arg", False))


def symbolic_output(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Shapes and dtypes of what `function` returns for symbolic arguments, without running it."""
    from keras.src import backend

    return backend.compute_output_spec(function, *args, **kwargs)


@contextlib.contextmanager
def reading_nothing() -> Iterator[None]:
    """While open, a trace finds handles of variables that need no memory, and changes no state.

    Keras opens the same around `symbolic_output`.
    """
    with keras.StatelessScope(), reading_no_values():
        yield


@contextlib.contextmanager
def reading_no_values() -> Iterator[None]:
    """While open, a trace finds handles of variables that need no memory; the scope is private."""
    from keras.src.backend.common.symbolic_scope import SymbolicScope

    with SymbolicScope():
        yield


def state_variables(layer: Any) -> list[Any]:
    """Variables of `layer` that its call changes: random seeds and non-trainable weights.

    The public `non_trainable_variables` also holds the weights of frozen layers, which do not
    change and may be shared freely.
    """
    state = []
    for sub in layer._flatten_layers():
        if sub.trainable:
            state += sub._non_trainable_variables
        state += [generator.state for generator in sub._seed_generators]
    return state


def seed_states(model: Any) -> list[Any]:
    """The state of every random generator in `model`."""
    layers = model._flatten_layers()
    return [generator.state for layer in layers for generator in layer._seed_generators]


def default_seed() -> np.ndarray | None:
    """The state of the generator for draws without a seed; None until it is first needed."""
    from keras.src.backend.common.global_state import get_global_attribute
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    generator = get_global_attribute(GLOBAL_SEED_GENERATOR)
    return None if generator is None else generator.state.numpy()


def set_default_seed(state: np.ndarray | None) -> None:
    """Set the generator back to what `default_seed` returned."""
    from keras.src.backend.common.global_state import set_global_attribute
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

    if state is None:
        set_global_attribute(GLOBAL_SEED_GENERATOR, None)  # as if it had not been made
    else:
        global_seed_generator().state.assign(state)


def get_mask(tensor: Any) -> Any | None:
    """The Keras mask that travels with `tensor` (an attribute; there is no public getter)."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attach a Keras mask to `tensor`."""
    tensor._keras_mask = mask


def added_losses(model: Any) -> dict[tuple[int, int], Any]:
    """What layers added to the loss in the last call: (number of the layer, position) -> value."""
    return {
        (number, position): loss
        for number, sub in enumerate(all_layers(model))
        for position, loss in enumerate(sub._get_own_losses())
    }


def additional_losses(layer: Any, share: Any, sums: Collection[tuple[int, int]]) -> list[Any]:
    """What the last call of `layer` added by `add_loss` and activity regularizers.

    The public `losses` mixes these with weight regularization, which is counted elsewhere.

    Args:
        layer: a layer that has been called.
        share: n / B, the part of the global batch that it was called with. A sum over rows is
            divided by it, to count like a mean. Some versions of Keras sum activity regularizers.
        sums: (id of a layer, position) of the added losses that are sums over rows.
    """
    losses = []
    for sub in all_layers(layer):
        is_sum = sub.activity_regularizer is not None and activity_is_summed()
        for position, loss in enumerate(sub._get_own_losses()):
            if is_sum or (id(sub), position) in sums:
                part = keras.ops.cast(share, loss.dtype)  # 0 of stand-in rows
                loss = keras.ops.divide_no_nan(keras.ops.sum(loss), part)
            losses.append(loss)
    return losses


@functools.cache
def activity_is_summed() -> bool:
    """Whether this Keras sums activity regularizers over the rows of a batch."""
    layer = keras.layers.Activation("linear", activity_regularizer=keras.ops.sum, dtype="float32")
    from keras.src.utils.module_utils import tensorflow as tf

    with tf.init_scope():  # this may be asked while something is traced
        layer(keras.ops.ones((2, 1), "float32"))
        return float(layer.losses[0]) == 2.0


def moments(layer: Any) -> Any:
    """The function (inputs, mask) -> (mean, variance) of a BatchNormalization layer.

    Keras has no public way to give the layer other statistics than those of its inputs.
    """
    return layer._moments


def replace_moments(layer: Any, function: Any) -> None:
    """Let a BatchNormalization layer take its statistics from `function`."""
    vars(layer)["_moments"] = function


def restore_moments(layer: Any) -> None:
    """Undo `replace_moments`."""
    del vars(layer)["_moments"]


def moment_weight(layer: Any, inputs: Any, mask: Any) -> Any:
    """How many values of each channel the statistics of `inputs` are taken over."""
    axes = layer._reduction_axes
    if mask is not None:
        shape = keras.ops.shape(inputs)
        counted = keras.ops.broadcast_to(keras.ops.expand_dims(mask, -1), shape)
        return keras.ops.sum(keras.ops.cast(counted, inputs.dtype), axis=axes)
    rows = keras.ops.prod(keras.ops.stack([keras.ops.shape(inputs)[axis] for axis in axes]))
    return keras.ops.full_like(layer.moving_mean, 1.0, inputs.dtype) * keras.ops.cast(
        rows, inputs.dtype
    )
