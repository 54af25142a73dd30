"""Access to private parts of optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.model.keras_internals.patched import patched

__all__ = [
    "accumulated_gradient",
    "applying_part",
    "check_given",
    "check_known",
    "count_finite_step",
    "inner_optimizer",
    "learning_rates",
    "optimizers_of",
    "own_application",
    "same_settings",
    "settable_learning_rates",
    "skip_overflowed_step",
    "slot_lists",
    "slots_of",
    "step_counter",
    "updates_alike",
    "updates_each_alone",
    "weights_of_slots",
    "writes_at_end",
]

_LARGE = 1 << 20  # bytes
# Optimizers that update each weight by nothing but its gradient, its slots and the number of steps.
_EACH_ALONE = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "Ftrl", "Lamb", "Lion"),
    *("RMSprop", "SGD"),
)


_APPLYING = (
    *("apply", "apply_gradients", "_common_apply", "_tf_apply", "_backend_apply_gradients"),
    *("_backend_update_step", "_internal_apply_gradients", "_clip_gradients"),
)


def own_application(optimizer: Any) -> str | None:
    """The method that an optimizer of the user's own overrides, of those that see all gradients."""
    classes = [kind for one in (optimizer, inner_optimizer(optimizer)) for kind in type(one).mro()]
    own = [kind for kind in classes if not kind.__module__.startswith("keras.")]
    return next((name for name in _APPLYING for kind in own if name in vars(kind)), None)


def check_known(optimizer: Any, variables: list[Any]) -> None:
    """Check that an optimizer that is built was built for `variables`, as its `apply` does.

    There is no public way to ask before a step.

    Raises:
        ValueError: Keras's own, about an unknown variable.
    """
    inner = inner_optimizer(optimizer)
    if inner.built and hasattr(inner, "_check_variables_are_known"):
        inner._check_variables_are_known(variables)


def check_given(optimizer: Any, variables: list[Any], given: set[int]) -> None:
    """Warn of variables without a gradient, as the optimizer's `apply` does.

    hyparflow calls `apply` with the gradients of one partition only, so `apply` cannot tell.

    Args:
        optimizer: the model's.
        variables: all that it updates.
        given: numbers of the variables that have a gradient.

    Raises:
        ValueError: Keras's own, if none has.
    """
    gradients = [0.0 if number in given else None for number in range(len(variables))]
    inner_optimizer(optimizer)._filter_empty_gradients(gradients, variables)


def optimizers_of(model: Any) -> list[Any]:
    """All optimizers that a model holds: that of `compile`, and attributes of it and its layers."""
    values = (value for layer in model._flatten_layers() for value in vars(layer).values())
    found = {
        id(value): value
        for value in (getattr(model, "optimizer", None), *values)  # none before `compile`
        if isinstance(value, keras.optimizers.Optimizer)
    }
    return list(found.values())


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer that updates weights: the one inside a LossScaleOptimizer, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def weights_of_slots(optimizer: Any) -> dict[int, Any]:
    """The weight that each slot belongs to, by id of the slot, as far as that is known.

    Keras's own optimizers keep slots in lists with an entry for each weight. Nothing says so of
    optimizers of the user's own; theirs are left out.
    """
    inner = inner_optimizer(optimizer)
    if not type(inner).__module__.startswith("keras."):
        return {}
    found: dict[int, Any] = {}
    for slots in slot_lists(inner).values():
        for slot, weight in zip(slots, inner._trainable_variables, strict=True):
            if isinstance(slot, keras.Variable):
                found[id(slot)] = weight
    return found


def slot_lists(optimizer: Any) -> dict[str, list[Any]]:
    """The lists, by name, in which an optimizer keeps a slot for each weight."""
    count = len(optimizer._trainable_variables)
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, list) and len(value) == count
        if name not in ("_variables", "_trainable_variables")
    }


def writes_at_end(optimizer: Any) -> bool:
    """Whether `finalize_variable_values` changes weights, as averages of weights do."""
    inner = inner_optimizer(optimizer)
    usual = keras.optimizers.Optimizer.finalize_variable_values
    return bool(inner.use_ema) or type(inner).finalize_variable_values is not usual


def settable_learning_rates(model: Any) -> list[Any]:
    """The learning rates that callbacks may set, as variables: of all optimizers, no schedules.

    A MultiOptimizer has those of its parts, and one of its own that nobody may set.
    """
    return [rate for optimizer in optimizers_of(model) for rate in learning_rates(optimizer)]


def learning_rates(optimizer: Any) -> list[Any]:
    """The learning rates of an optimizer, or of its parts, that are variables."""
    inner = inner_optimizer(optimizer)
    rates = [getattr(x, "_learning_rate", None) for x in getattr(inner, "optimizers", [inner])]
    return [rate for rate in rates if isinstance(rate, keras.Variable)]


def step_counter(optimizer: Any) -> Any:
    """The variable that counts steps; `iterations` is none where gradients are accumulated."""
    return optimizer._iterations


def accumulated_gradient(optimizer: Any, variable: Any) -> Any:
    """The sum of the gradients of earlier steps, with `gradient_accumulation_steps`."""
    return optimizer._accumulated_gradients[optimizer._get_variable_index(variable)].value


def skip_overflowed_step(optimizer: Any) -> None:
    """Let a LossScaleOptimizer lower its scale as after an overflow of its own gradients.

    Its public `apply` checks the gradients of this rank only, which may all be finite.
    """
    optimizer._stateful_handle_non_finite_grads()


def count_finite_step(optimizer: Any) -> None:
    """Let a LossScaleOptimizer count a step, and raise its scale, where it has no weight to update.

    Its public `apply` takes one gradient at least.
    """
    with patched(optimizer.inner_optimizer, apply=lambda *args, **kwargs: None):
        optimizer._stateful_handle_finite_grads([], [])


def updates_each_alone(optimizer: Any, variables: list[Any]) -> bool:
    """Whether a step may be made for some of `variables` after the others, and counted once."""
    if not any(type(optimizer) is getattr(keras.optimizers, name, None) for name in _EACH_ALONE):
        return False
    try:
        check_known(optimizer, variables)
    except ValueError:  # it was built for others; its step will say so
        return False
    overwrites = optimizer.use_ema and optimizer.ema_overwrite_frequency
    return not optimizer.gradient_accumulation_steps and not overwrites


def slots_of(optimizer: Any, variable: Any) -> list[Any]:
    """The optimizer's variables for one weight, in an order that all weights share."""
    index = optimizer._get_variable_index(variable)
    found = [values[index] for values in slot_lists(optimizer).values()]
    return [slot for slot in found if isinstance(slot, keras.Variable)]


def updates_alike(optimizer: Any, left: Any, right: Any) -> bool:
    """Whether two weights of one shape are updated alike: by decay, constraint, regularizer."""
    return (
        optimizer._use_weight_decay(left) == optimizer._use_weight_decay(right)
        and same_settings(left.constraint, right.constraint)
        and same_settings(left.regularizer, right.regularizer)
        and not left.overwrite_with_gradient
        and not right.overwrite_with_gradient
    )


def same_settings(left: Any, right: Any) -> bool:
    """Whether two constraints or regularizers of Keras are the same."""
    if left is right:
        return True
    own = not type(left).__module__.startswith("keras.")
    return type(left) is type(right) and not own and left.get_config() == right.get_config()


def _one_large_after_the_other(update_step: Callable[..., Any]) -> Callable[..., Any]:
    """`update_step` that, in a trace, updates a large weight when the large one before is done.

    Each update needs memory for several tensors of the weight's size, and TensorFlow would begin
    all of them at once.
    """
    writes: list[Any] = []

    def update(gradient: Any, variable: Any, learning_rate: Any) -> Any:
        if tf.executing_eagerly() or np.prod(variable.shape) * variable.dtype.size < _LARGE:
            return update_step(gradient, variable, learning_rate)
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        with tf.control_dependencies(writes):
            result = update_step(gradient, variable, learning_rate)
        writes[:] = [op for op in graph.get_operations()[before:] if op.type.startswith("Assign")]
        return result

    return update


@contextlib.contextmanager
def applying_part(
    optimizer: Any,
    variables: list[Any],
    clip: Callable[[Any], Any] | None = None,
    counts: bool = True,
) -> Iterator[None]:
    """While open, an optimizer step is traced for some of the optimizer's variables only.

    hyparflow's clipping, by the norm over all partitions, replaces Keras's. Moving averages follow
    the given variables only, and only their accumulated gradients are reset: other ranks train the
    other variables.

    Args:
        optimizer: the optimizer that updates weights.
        variables: those that this rank trains.
        clip: gradients -> clipped gradients, in place of Keras's clipping.
        counts: whether the step is counted.
    """
    index = {id(v): i for i, v in enumerate(optimizer._trainable_variables)}
    mine = [index[id(v)] for v in variables]
    # Keras sums over the replicas of a tf.distribute strategy, here one. TensorFlow registers that
    # sum's gradient for ever, and with it the graph, the weights and the optimizer's state.
    parts: dict[str, Any] = {
        "_trainable_variables": list(variables),
        "_all_reduce_sum_gradients": list,
    }
    if optimizer.use_ema:
        averages = optimizer._model_variables_moving_average
        parts["_model_variables_moving_average"] = [averages[i] for i in mine]
    if optimizer.gradient_accumulation_steps:
        sums = enumerate(optimizer._accumulated_gradients)
        parts["_accumulated_gradients"] = [x if i in set(mine) else None for i, x in sums]
    if clip is not None:
        parts["_clip_gradients"] = clip
    parts["update_step"] = _one_large_after_the_other(optimizer.update_step)
    uncounted: dict[str, Any] = {} if counts else {"assign_add": lambda value: None}
    with patched(optimizer, **parts), patched(optimizer._iterations, **uncounted):
        yield
