"""Every use of what Keras does not make public, in one place, with the reason beside it.

Everything else in hyparflow uses the public API of Keras 3.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

__all__ = [
    "additional_losses",
    "all_layers",
    "array_sources",
    "class_weights_to_sample_weights",
    "compile_loss",
    "compile_metrics",
    "copy_with_losses",
    "execution_order",
    "get_mask",
    "has_overridden",
    "is_array_data",
    "loss_entries",
    "loss_values",
    "loss_tracker",
    "opened_graph",
    "set_mask",
    "standardize_inputs",
    "state_variables",
    "symbolic_output",
    "takes_training",
]


# --- the graph of a model -----------------------------------------------------------------------


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


def output_structure(functional: Any, flat: list[Any]) -> Any:
    """Flat outputs in the structure that the model's call returns (one-element lists undone)."""
    packed = keras.tree.pack_sequence_as(functional._outputs_struct, flat)
    return packed[0] if isinstance(packed, list | tuple) and len(packed) == 1 else packed


def call_model(model: Any, inputs: Any, training: bool) -> Any:
    """Call `model` as plain `train_step` and `test_step` do."""
    if model._call_has_training_arg:
        return model(inputs, training=training)
    return model(inputs)


def own_compute_loss(
    model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
) -> Any:
    """The model's own `compute_loss`, with or without its `training` argument."""
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
    )


def takes_training(operation: Any) -> bool:
    """Whether Keras passes `training` down to `operation` inside a Functional model."""
    if hasattr(operation, "_call_context_args"):  # Keras 3.13 and later
        return "training" in operation._call_context_args
    return bool(getattr(operation, "_call_has_training_arg", False))


def symbolic_output(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Shapes and dtypes of what `function` returns for symbolic arguments, without running it."""
    from keras.src import backend

    return backend.compute_output_spec(function, *args, **kwargs)


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


# --- masks and losses that layers attach --------------------------------------------------------


def get_mask(tensor: Any) -> Any | None:
    """The Keras mask that travels with `tensor` (an attribute; there is no public getter)."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attach a Keras mask to `tensor`."""
    tensor._keras_mask = mask


def additional_losses(layer: Any, share: Any) -> list[Any]:
    """What the last call of `layer` added by `add_loss` and activity regularizers.

    The public `losses` mixes these with weight regularization, which is counted elsewhere.

    Args:
        layer: a layer that has been called.
        share: the part of the global batch that it was called with. Some versions of Keras sum
            activity regularizers over rows instead of averaging; divided by the share, a sum
            counts as an average does.
    """
    losses = []
    for sub in all_layers(layer):
        is_sum = sub.activity_regularizer is not None and _activity_is_summed()
        for loss in sub._get_own_losses():
            losses.append(loss / keras.ops.cast(share, loss.dtype) if is_sum else loss)
    return losses


@functools.cache
def _activity_is_summed() -> bool:
    """Whether this Keras sums activity regularizers over the rows of a batch."""
    layer = keras.layers.Activation("linear", activity_regularizer=keras.ops.sum, dtype="float32")
    with tf_init_scope():
        layer(keras.ops.ones((2, 1), "float32"))
        return float(layer.losses[0]) == 2.0


def tf_init_scope() -> Any:
    """Runs eagerly, also while something is traced."""
    from keras.src.utils.module_utils import tensorflow as tf

    return tf.init_scope()


# --- what compile() made ------------------------------------------------------------------------


def loss_tracker(model: Any) -> Any:
    """The metric called "loss" of a compiled model."""
    return model._loss_tracker


def compile_loss(model: Any) -> Any | None:
    """The object that evaluates the losses given to `compile`, or None."""
    return model._compile_loss


def compile_metrics(model: Any) -> Any | None:
    """The object that holds the metrics given to `compile`, or None."""
    return model._compile_metrics


def loss_entries(compiled: Any) -> list[Any]:
    """The flat losses of a built compile-loss object: (path, loss, loss weight, name)."""
    return list(compiled._flat_losses)


def copy_with_losses(
    compiled: Any, losses: Iterable[Any], wrap_metric: Callable[[Any], Any] | None = None
) -> Any:
    """A compile-loss object like `compiled` with each loss, and each metric, replaced.

    Resolving names, structures and weights of several outputs is Keras's; only the leaves are
    wrapped. Without `wrap_metric` the metrics are left alone by the copy.
    """
    ignore = _IgnoredMetric() if wrap_metric is None else None
    metrics = [ignore or wrap_metric(metric) for metric in compiled.metrics]  # type: ignore[misc]

    class Twin(type(compiled)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.__dict__.update(compiled.__dict__)

        @property
        def metrics(self) -> list[Any]:
            return metrics

    twin = Twin()
    entries = loss_entries(compiled)
    twin._flat_losses = [
        entry._replace(loss=loss) for entry, loss in zip(entries, losses, strict=True)
    ]
    return twin


def symbolic_batch(model: Any, specs: Any) -> Any:
    """Symbolic (y, y_pred, sample weights) of a model, or None where there are no labels."""
    x, y, sample_weight = specs
    if y is None:
        return None
    functional = opened_graph(model)
    if functional is None:
        outputs = symbolic_output(lambda x: call_model(model, x, False), _symbolic(x))
    else:
        outputs = output_structure(functional, functional.outputs)
    return _symbolic(y), _symbolic(outputs), _symbolic(sample_weight)


def compile_arguments(model: Any) -> dict[str, Any]:
    """What `compile` was called with."""
    config = getattr(model, "_compile_config", None)
    return {} if config is None else config.config


def build_compiled(model: Any, symbolic: Any) -> None:
    """Create the losses' and metrics' variables, without running the model.

    Keras does this in its first step; a rank that never sees the outputs must do it before, and
    every rank in the same order.
    """
    if symbolic is None:
        return
    metrics = model._compile_metrics
    if metrics is not None and not metrics.built:
        symbolic_output(_updated(metrics), *symbolic)
    loss = model._compile_loss
    if loss is not None and not loss.built:
        symbolic_output(loss, *symbolic)


def _updated(metrics: Any) -> Any:
    def update(y: Any, y_pred: Any, sample_weight: Any) -> Any:
        metrics.update_state(y, y_pred, sample_weight)
        return y_pred

    return update


def _symbolic(structure: Any) -> Any:
    """Symbolic tensors like those in `structure`, with any number of rows."""
    return keras.tree.map_structure(
        lambda x: (
            None
            if x is None
            else keras.KerasTensor(
                (None, *x.shape[1:]), dtype=keras.backend.standardize_dtype(x.dtype)
            )
        ),
        structure,
    )


class _IgnoredMetric:
    """A metric that is never updated."""

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def masked_weight(sample_weight: Any, mask: Any, reduction: str) -> Any | None:
    """Sample weights times mask, broadcast as Keras's losses do it."""
    from keras.src.losses.loss import apply_mask

    return apply_mask(sample_weight, mask, dtype="float64", reduction=reduction)


def loss_values(loss: Any, y_true: Any, y_pred: Any) -> Any | None:
    """The values of a loss before weights and reduction, or None where it has no such step.

    Converts its arguments as Keras's losses do. `ignore_class` leaves a mask on the values.
    """
    if not hasattr(loss, "call"):
        return None

    def convert(x: Any) -> Any:
        return keras.ops.convert_to_tensor(x, dtype=loss.dtype)

    return loss.call(
        keras.tree.map_structure(convert, y_true), keras.tree.map_structure(convert, y_pred)
    )


def has_overridden(model: Any, method: str) -> bool:
    """Whether the class of `model` has its own `method` instead of Keras's."""
    for cls in type(model).__mro__:
        if method in vars(cls):
            return not cls.__module__.startswith("keras.")
    return False


def settable_learning_rate(optimizer: Any) -> float | None:
    """The learning rate if it is a variable, which callbacks may set; None for a schedule."""
    rate = getattr(optimizer, "_learning_rate", None)
    return float(rate) if isinstance(rate, keras.Variable) else None


@contextlib.contextmanager
def applying_part(optimizer: Any, variables: list[Any]) -> Iterator[None]:
    """While an optimizer step is traced for some of its variables only.

    Global clipping is done by hyparflow, over all partitions; moving averages of weights must
    follow the given variables only, for the others are trained elsewhere.
    """
    attributes = vars(optimizer)  # written directly: setting them would track them anew
    names = ("global_clipnorm", "_trainable_variables", "_model_variables_moving_average")
    saved = {name: attributes[name] for name in names if name in attributes}
    attributes["global_clipnorm"] = None
    attributes["_trainable_variables"] = list(variables)
    if optimizer.use_ema:
        index = {id(v): i for i, v in enumerate(saved["_trainable_variables"])}
        averages = saved["_model_variables_moving_average"]
        attributes["_model_variables_moving_average"] = [averages[index[id(v)]] for v in variables]
    try:
        yield
    finally:
        attributes.update(saved)


# --- data ---------------------------------------------------------------------------------------


def is_array_data(x: Any) -> bool:
    """Whether Keras would read `x` as arrays (and not as a dataset or a generator)."""
    from keras.src.trainers.data_adapters import array_data_adapter

    return x is not None and array_data_adapter.can_convert_arrays(x)


def array_sources(
    x: Any, y: Any, sample_weight: Any, class_weight: Any
) -> tuple[tuple[Any, Any, Any], int]:
    """Arrays as Keras prepares them: (x, y, sample weights) of sliceables, and their length.

    Keras's adapter checks lengths, turns class weights into sample weights and picks dtypes;
    its slices are then exactly those of plain `fit`.
    """
    from keras.src.trainers.data_adapters import array_slicing
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

    adapter = ArrayDataAdapter(x, y, sample_weight=sample_weight, class_weight=class_weight)
    inputs = adapter._inputs
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    padded = (*inputs, None, None)[:3]
    sliceable = tuple(
        array_slicing.convert_to_sliceable(part, target_backend="numpy") for part in padded
    )
    return sliceable, adapter._num_samples  # type: ignore[return-value]


def class_weights_to_sample_weights(y: Any, class_weight: dict[int, float]) -> Any:
    """Sample weights for labels `y`, as Keras computes them from `class_weight`."""
    from keras.src.trainers.data_adapters import data_adapter_utils

    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def unpack(data: Any) -> tuple[Any, Any, Any]:
    """A batch as (x, y, sample weights)."""
    return keras.utils.unpack_x_y_sample_weight(data)
