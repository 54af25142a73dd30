"""Kernels of attention and of feed-forward layers, cut over ranks that sum what they make.

The heads of attention, and the columns between the two products of a feed-forward block, are dealt
out; so each layer of the model needs two sums (Shoeybi et al., arXiv 1909.08053, section 3). The
axis to cut follows from the equation of an `EinsumDense`, and not from its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.model.keras_internals.deferred_variables import present
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.patched import patched
from hyparflow.model.keras_internals.replaced_calls import replaced_call
from hyparflow.serving.decoding.product_letters import ProductLetters
from hyparflow.serving.ranks.traffic import Traffic

__all__ = ["TensorShards"]

_PRODUCTS = (keras.layers.Dense, keras.layers.EinsumDense)


class TensorShards:
    """This rank's share of the kernels of some layers, in their place while a model is traced.

    Args:
        layers: of the model, or of a stage; those without attention stay as they are.
        ranks: those that share the layers.
        traffic: counts sums.

    Raises:
        ValueError: if they cannot be cut.
    """

    def __init__(self, layers: Sequence[Any], ranks: Communicator, traffic: Traffic) -> None:
        self._ranks, self._traffic, self._ordered = ranks, traffic, OrderedCalls()
        self._replaced: list[Callable[[], contextlib.AbstractContextManager[None]]] = []
        self._cuts: list[Callable[[], None]] = []
        blocks = [layer for layer in layers if _attention_in(layer) is not None]
        for block in blocks:
            self._cut_block(block, _attention_in(block))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While open, the layers compute this rank's share."""
        with contextlib.ExitStack() as stack:
            for replaced in self._replaced:
                stack.enter_context(replaced())
            yield

    def refresh(self) -> None:
        """Cut the weights anew, for they may have been trained since."""
        for cut in self._cuts:
            cut()

    # --- what is cut ---

    def _cut_block(self, block: Any, attention: Any) -> None:
        *projections, output = _attention_products(attention)
        for layer in projections:
            self._cut_columns(layer, block)
        self._cut_rows(output, block)
        count = self._ranks.size
        heads = {
            name: getattr(attention, name) // count
            for name in ("num_key_value_heads", "num_query_heads")
            if hasattr(attention, name)
        }
        if heads:
            self._replaced.append(lambda: patched(attention, **heads))
        inside = {id(layer) for layer in all_layers(attention)}
        others = [x for x in all_layers(block) if isinstance(x, _PRODUCTS) and id(x) not in inside]
        if len(others) < 2:
            raise _cannot_cut(block, f"has {len(others)} products beside attention, and not two")
        for layer in others[:-1]:
            self._cut_columns(layer, block)
        self._cut_rows(others[-1], block)

    def _cut_columns(self, layer: Any, block: Any) -> None:
        """Each rank makes its share of the outputs."""
        inputs, kernel, outputs = ProductLetters.of(layer)
        letter = next(x for x in kernel if x not in inputs)
        cut = self._share(layer.kernel, kernel.index(letter), layer, block)
        bias = None
        if layer.bias is not None:
            axis = outputs.index(letter) - (len(outputs) - len(layer.bias.shape))
            bias = self._share(layer.bias, axis, layer, block)

        def call(given: Any, *args: Any, **kwargs: Any) -> Any:
            made = _product(layer, given, cut)
            made = made if bias is None else made + tf.cast(bias, made.dtype)
            return made if layer.activation is None else layer.activation(made)

        self._replaced.append(lambda: replaced_call(layer, call))

    def _cut_rows(self, layer: Any, block: Any) -> None:
        """Each rank takes its share of the inputs; what they make is added up."""
        _, kernel, outputs = ProductLetters.of(layer)
        letter = next(x for x in kernel if x not in outputs)
        cut = self._share(layer.kernel, kernel.index(letter), layer, block)

        def call(given: Any, *args: Any, **kwargs: Any) -> Any:
            made = _product(layer, given, cut)
            made = self._ordered(self._sum, made, made.shape)
            made = made if layer.bias is None else made + tf.cast(layer.bias.value, made.dtype)
            return made if layer.activation is None else layer.activation(made)

        self._replaced.append(lambda: replaced_call(layer, call))

    def _share(self, weight: Any, axis: int, layer: Any, block: Any) -> Any:
        size, count = weight.shape[axis], self._ranks.size
        if size % count:
            raise _cannot_cut(
                block, f"has {size} heads or columns in '{layer.name}', which {count} do not divide"
            )
        if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
            raise _cannot_cut(block, f"has quantized or low-rank weights in '{layer.name}'")
        share = range(self._ranks.rank * size // count, (self._ranks.rank + 1) * size // count)

        def cut() -> Any:
            with present([weight]):  # a deferred weight gives its memory back: this share is used
                return np.take(np.asarray(weight), share, axis)

        made = tf.Variable(cut(), trainable=False)
        self._cuts.append(lambda: made.assign(cut()))
        return made

    def _sum(self, array: np.ndarray) -> np.ndarray:
        total = np.array(array)
        self._ranks.sum(total, "the sum of the shards of a layer")
        self._traffic.add("sums", total.nbytes)
        return total


def _attention_in(layer: Any) -> Any:
    """The attention of a block; None if it has none, or is one itself."""
    for name in ("_self_attention_layer", "self_attention", "attention"):
        found = getattr(layer, name, None)
        if found is not None and _attention_products(found):
            return found
    return None


def _attention_products(attention: Any) -> list[Any]:
    """Query, key, value and output."""
    for form in ("_{}_dense", "{}_dense", "{}_proj", "_{}_proj"):
        names = [form.format(part) for part in ("query", "key", "value", "output")]
        if all(isinstance(getattr(attention, name, None), _PRODUCTS) for name in names):
            return [getattr(attention, name) for name in names]
    return []


def _product(layer: Any, given: Any, kernel: Any) -> Any:
    kernel = tf.cast(kernel, layer.compute_dtype)
    if isinstance(layer, keras.layers.EinsumDense):
        return tf.einsum(layer.equation, given, kernel)
    return tf.matmul(given, kernel)


def _cannot_cut(block: Any, why: str) -> ValueError:
    return ValueError(
        "`num_shards` must divide the heads of queries and keys, and the columns of feed-forward "
        f"layers. Received: a model whose '{block.name}' {why}. Use fewer shards, or partitions."
    )
