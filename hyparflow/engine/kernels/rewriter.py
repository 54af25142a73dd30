"""Puts faster kernels in place of operations of a graph, while it is traced."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from hyparflow.comm.log import users_stack_level
from hyparflow.engine.kernels import (
    batch_normalization,
    convolutions,
    depthwise,
    einsum,
    elementwise,
    folded,
    layer_normalization,
    matrix_products,
    products,
    recurrent_layers,
    scaled,
)
from hyparflow.engine.kernels.number_types import is_fast_type
from hyparflow.engine.kernels.proof import largest_difference
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.traced import TracedOperations

__all__ = ["IN_INFERENCE", "IN_TRAINING", "Rewriter", "may_be_rewritten"]

Find = Callable[[TracedOperations], Iterator[Rewrite]]

# The kernels by their names, in the order in which they are put in. In inference no gradients are
# taken, and what follows a convolution is done with it.
_OF_LAYERS = (
    *(batch_normalization, layer_normalization, products, matrix_products),
    *(convolutions, depthwise, elementwise),
)
IN_TRAINING: Mapping[str, Find] = {kernel.NAME: kernel.find for kernel in (*_OF_LAYERS, einsum)}
IN_INFERENCE: Mapping[str, Find] = {
    kernel.NAME: kernel.find
    for kernel in (
        *(layer_normalization, folded, scaled),
        *(products, convolutions, elementwise, einsum),
    )
}


def may_be_rewritten(layer: Any) -> bool:
    """Whether a kernel may take the place of what this layer of Keras computes."""
    return is_fast_type(layer.compute_dtype) and any(
        kernel.gains(layer) for kernel in (*_OF_LAYERS, recurrent_layers)
    )


class Rewriter:
    """Rewrites what has a faster kernel, if the kernel is proved right on this machine.

    Args:
        in_training: what finds the places of each kernel, by its name.
        in_inference: the same where no gradients are taken.
    """

    def __init__(
        self,
        in_training: Mapping[str, Find] = IN_TRAINING,
        in_inference: Mapping[str, Find] = IN_INFERENCE,
    ) -> None:
        self._known = {True: in_training, False: in_inference}
        self._proved: dict[tuple[str, Hashable], bool] = {}

    @property
    def has_rewritten(self) -> bool:
        """Whether it has put in any kernel."""
        return any(self._proved.values())

    def rewrite(
        self,
        operations: Sequence[Any],
        targets: Sequence[Any],
        training: bool = True,
        sizes_repeat: bool = False,
    ) -> tuple[list[Any], Counter[str]]:
        """Put kernels into the graph that is being traced.

        Args:
            operations: what was traced.
            targets: the tensors that it made.
            training: whether gradients of `targets` are taken.
            sizes_repeat: see `TracedOperations`.

        Returns:
            The tensors to take in place of `targets`; and how often each kernel was put in.
        """
        traced, counts = TracedOperations(operations, sizes_repeat), Counter[str]()
        new: dict[Any, Any] = {}  # reference of a tensor -> what is read in its place
        gone: set[Any] = set()  # operations in whose place a kernel was put
        wanted = {tensor.op for tensor in targets} if training else set()
        for name, find in self._known[training].items():
            for place in list(find(traced)):
                inputs = [_current(tensor, new) for tensor in place.inputs]
                found = dataclasses.replace(place, inputs=inputs)
                find_difference = functools.partial(largest_difference, found)
                fits = gone.isdisjoint(found.operations) and _fits(traced, found, wanted)
                if fits and self._is_right(name, found.variant, find_difference):
                    _put_in(traced, found, new)
                    gone |= found.operations
                    counts[name] += 1
        return [_current(tensor, new) for tensor in targets], counts

    @contextlib.contextmanager
    def tracing(self, training: bool = True) -> Iterator[Counter[str]]:
        """While open, layers are traced: those with a kernel of their own compute by it.

        Args:
            training: whether gradients are taken.

        Yields:
            How often which kernel is put in so.
        """
        counts = Counter[str]()
        with recurrent_layers.taken(counts, self._is_right, training):
            yield counts

    def _is_right(self, name: str, variant: Hashable, find: Callable[[], float]) -> bool:
        """Whether a kernel gives what Keras does; `find` finds the difference, once."""
        key = name, variant
        if key not in self._proved:
            difference = find()
            self._proved[key] = difference <= 1.0
            if not self._proved[key]:
                warnings.warn(
                    f"The faster kernel for {name} is left out, for on this machine it gives other "
                    f"numbers than Keras's operations. Received: a difference {difference:.1f} "
                    "times as large as rounding makes. Training goes on without it; "
                    'kernels="keras" keeps this from being said.',
                    stacklevel=users_stack_level(),
                )
        return self._proved[key]


def _put_in(traced: TracedOperations, found: Rewrite, new: dict[Any, Any]) -> None:
    """Let all read what the kernel makes; `new` tells what is read in place of what."""
    made = found.kernel(*found.inputs)
    traced.add(made, found.inputs)
    for old, tensor in zip(found.replaced, made, strict=True):
        tensor.set_shape(old.shape)
        new[old.ref()] = tensor
        traced.replace(old, tensor, found.operations)


def _current(tensor: Any, new: Mapping[Any, Any]) -> Any:
    return new.get(tensor.ref(), tensor)


def _fits(traced: TracedOperations, found: Rewrite, wanted: set[Any]) -> bool:
    """Whether the kernel can run before what reads it, and has the gradients that are taken."""
    behind = traced.downstream(found.replaced, found.operations)
    if any(tensor.op in behind for tensor in found.inputs):
        return False
    tensors = found.without_gradient
    reached = traced.downstream(tensors, found.operations) | {tensor.op for tensor in tensors}
    return reached.isdisjoint(wanted)
