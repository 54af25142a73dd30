"""Models whose weights take memory only where they are used: `hyparflow.deferred`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["deferred"]


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """While open, variables that Keras makes have a shape and an initializer, but no memory.

    What reads a variable gives it its memory, with the value that plain Keras gives it, bit for
    bit: `summary` and `count_params` read none, ``model.get_weights()`` reads all. So a model that
    is built on every rank, and cut into partitions, takes memory on each rank only for the weights
    and the optimizer's state of its own partition.

    The environment variable HYPARFLOW_DEFER=1 does the same for the whole script.

    Raises:
        ValueError: If Keras runs with another backend than TensorFlow.

    Example::

        with hf.deferred():
            model = build_model()
        model.compile("adam", "mse")
        hf.fit(model, x, y, strategy="model")
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "`hyparflow.deferred()` defers variables of Keras's TensorFlow backend. "
            f"Received: the {keras.backend.backend()} backend. Set KERAS_BACKEND=tensorflow."
        )
    from hyparflow.model.keras_internals.deferred_variables import deferring
    from hyparflow.model.keras_internals.stored_values import loading_later

    with deferring(), loading_later():
        yield
