"""Lets LSTM and GRU layers of Keras compute by `hyparflow.engine.kernels.recurrent`.

A loop of a graph has lost what its steps have in common, so the layers are asked before they
become one. Only what is usual is taken: Keras's own cells and activations, no recurrent dropout.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.kernels.number_types import is_fast_type
from hyparflow.engine.kernels.proof import difference_of
from hyparflow.engine.kernels.recurrent import gated_recurrent, long_short_term_memory
from hyparflow.model.keras_internals.patched import patched

__all__ = ["NAME", "gains", "taken"]

NAME = "recurrent layer"
Compute = Callable[..., tuple[Any, list[Any]]]
_COMPUTE: dict[type, tuple[type, Compute]] = {
    keras.layers.LSTM: (keras.layers.LSTMCell, long_short_term_memory),
    keras.layers.GRU: (keras.layers.GRUCell, gated_recurrent),
}
_ROWS, _STEPS, _NUMBERS, _UNITS = 3, 4, 5, 2  # of the trial


def gains(layer: Any) -> bool:
    """Whether a layer of Keras has what this kernel is for."""
    return _kind(layer) is not None


@contextlib.contextmanager
def taken(
    counts: Counter[str], is_right: Callable[..., bool], differentiated: bool
) -> Iterator[None]:
    """While open, layers that are traced compute by faster loops.

    Args:
        counts: how often which kernel was put in; what is put in here is added.
        is_right: (name, variant, function that finds the difference) -> whether to take a kernel.
        differentiated: whether gradients are taken.
    """
    with contextlib.ExitStack() as stack:
        for kind in _COMPUTE:
            loop = _loop(kind, counts, is_right, differentiated)
            stack.enter_context(patched(kind, inner_loop=loop))
        yield


def _loop(
    kind: type, counts: Counter[str], is_right: Callable[..., bool], differentiated: bool
) -> Any:
    usual: Any = kind.inner_loop  # type: ignore[attr-defined]
    compute = _COMPUTE[kind][1]

    def inner_loop(
        layer: Any, sequences: Any, initial_state: Any, mask: Any, training: bool = False
    ) -> Any:
        policy, variant = layer.dtype_policy, (kind.__name__, layer.dtype_policy.name)
        is_taken = _kind(layer) is kind
        if not is_taken or not is_right(NAME, variant, lambda: _difference(kind, policy)):
            return usual(layer, sequences, initial_state, mask, training)
        counts[NAME] += 1
        x = tf.convert_to_tensor(sequences)
        if training and layer.dropout:  # the same for all steps; Keras has drawn it already
            x *= layer.cell.get_dropout_mask(sequences[:, 0])[:, None]
        state = [tf.convert_to_tensor(s) for s in keras.tree.flatten(initial_state)]
        weights = [layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias]
        weights = [tf.convert_to_tensor(weight) for weight in weights]
        (mask,) = keras.tree.flatten(mask)[:1]
        if layer.go_backwards:
            x, mask = tf.reverse(x, [1]), None if mask is None else tf.reverse(mask, [1])
        outputs, last = compute(x, state, *weights, mask, differentiated)
        if mask is not None:
            outputs = _masked(outputs, mask, layer.zero_output_for_mask)
        return outputs[:, -1], outputs, last

    return inner_loop


def _masked(outputs: Any, mask: Any, all_steps: bool) -> Any:
    """Outputs with 0 at `all_steps` that a row does not have, or only at those before its first.

    At others Keras repeats the output before, which is the state that was left.
    """
    begun = mask if all_steps else tf.cumsum(tf.cast(mask, tf.int32), axis=1) > 0
    return tf.where(begun[..., None], outputs, tf.zeros_like(outputs))


def _kind(layer: Any) -> type | None:
    """Which of the two a layer is, if it computes as usual."""
    for kind, (cell, _) in _COMPUTE.items():
        if isinstance(layer, kind) and _is_usual(layer, cell):
            return kind
    return None


def _is_usual(layer: Any, kind_of_cell: Any) -> bool:
    cell = layer.cell
    functions = cell.activation, cell.recurrent_activation
    return (
        type(cell) is kind_of_cell
        and functions == (keras.activations.tanh, keras.activations.sigmoid)
        and is_fast_type(cell.compute_dtype)
        and is_fast_type(cell.variable_dtype)
        and cell.use_bias
        and not cell.recurrent_dropout
        and not (cell.dropout and hasattr(cell, "dropout_mask_count"))  # one for each gate
        and not layer.unroll
        and getattr(cell, "reset_after", True)
    )


def _difference(kind: type, policy: Any) -> float:
    """How far the results and gradients of the loop are from those of Keras's, as the proof has it.

    `policy` says which numbers the layer computes with.
    """
    # Nothing is drawn and a name is given, so nothing of the user's changes.
    nothing = dict.fromkeys(("kernel_initializer", "recurrent_initializer"), "zeros")
    with tf.init_scope():
        layer = kind(_UNITS, return_sequences=True, seed=0, name="trial", dtype=policy, **nothing)
        layer.build((None, _STEPS, _NUMBERS))
        random = np.random.default_rng(0)
        weights = [random.normal(size=w.shape) for w in layer.trainable_variables]
        x = random.normal(size=(_ROWS, _STEPS, _NUMBERS))
        count = len(keras.tree.flatten(layer.get_initial_state(_ROWS)))

    def keras_computes(x: Any, *weights: Any) -> Sequence[Any]:
        made, _ = layer.stateless_call(list(weights), layer.non_trainable_variables, x)
        return [made]

    def compute(x: Any, *weights: Any) -> Sequence[Any]:
        state = [tf.zeros([tf.shape(x)[0], _UNITS], x.dtype)] * count
        return [_COMPUTE[kind][1](x, state, *(tf.cast(w, x.dtype) for w in weights))[0]]

    numbers = [x.astype(layer.compute_dtype), *(w.astype(layer.variable_dtype) for w in weights)]
    with patched(kind, inner_loop=keras.layers.RNN.inner_loop):
        return difference_of(keras_computes, compute, numbers, [0])
