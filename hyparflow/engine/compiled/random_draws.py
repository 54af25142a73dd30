"""Intercepts the operations of TensorFlow that draw random numbers, whoever calls them.

`keras.random`, `tf.random`, generators and layers all call a few generated functions in the end. No
public hook sees these, so for the time of a step they are replaced by functions that report calls.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import (
    gen_random_ops,
    gen_stateless_random_ops,
    gen_stateless_random_ops_v2,
    stateful_random_ops,
)

from hyparflow.model.keras_internals.patched import patched

__all__ = ["Draw", "draw_calls", "eager_generator", "set_eager_generator", "unknown_draws"]


class Draw(NamedTuple):
    """One kind of draw.

    Attributes:
        name: of the operation.
        parameters: the arguments that have one value per number drawn, or one for all.
        after: whether the shape of the result is `shape` followed by that of the parameters.
        alone: (arguments, seed) -> numbers: draws by a seed in place of an operation that has a
            state of its own, which cannot be set back.
    """

    name: str
    parameters: tuple[str, ...] = ()
    after: bool = False
    alone: Callable[[Mapping[str, Any], Any], Any] | None = None


# (draw, the operation itself, its arguments by name) -> what it draws
Around = Callable[[Draw, Callable[..., Any], dict[str, Any]], Any]

_BOUNDS = ("means", "stdevs", "minvals", "maxvals")
_RANDOM = tf.random
_DRAWS = {
    gen_random_ops: [
        Draw(
            "random_standard_normal",
            alone=lambda a, s: _RANDOM.stateless_normal(a["shape"], s, dtype=a["dtype"]),
        ),
        Draw(
            "random_uniform",
            alone=lambda a, s: _RANDOM.stateless_uniform(a["shape"], s, dtype=a["dtype"]),
        ),
        Draw(
            "random_uniform_int",
            alone=lambda a, s: _RANDOM.stateless_uniform(
                a["shape"], s, a["minval"], a["maxval"], tf.convert_to_tensor(a["minval"]).dtype
            ),
        ),
        Draw(
            "truncated_normal",
            alone=lambda a, s: _RANDOM.stateless_truncated_normal(a["shape"], s, dtype=a["dtype"]),
        ),
        Draw(
            "parameterized_truncated_normal",
            _BOUNDS,
            alone=lambda a, s: _RANDOM.stateless_parameterized_truncated_normal(
                a["shape"], s, *(a[name] for name in _BOUNDS)
            ),
        ),
        Draw(
            "random_gamma",
            ("alpha",),
            after=True,
            alone=lambda a, s: _RANDOM.stateless_gamma(
                _and_shape(a["shape"], a["alpha"]), s, a["alpha"], dtype=a["alpha"].dtype
            ),
        ),
        Draw(
            "random_poisson_v2",
            ("rate",),
            after=True,
            alone=lambda a, s: _RANDOM.stateless_poisson(
                _and_shape(a["shape"], a["rate"]), s, a["rate"], dtype=a["dtype"]
            ),
        ),
        Draw(
            "multinomial",
            ("logits",),
            alone=lambda a, s: _RANDOM.stateless_categorical(
                a["logits"], a["num_samples"], s, dtype=a["output_dtype"]
            ),
        ),
        Draw(
            "random_shuffle",
            alone=lambda a, s: _RANDOM.experimental.stateless_shuffle(a["value"], s),
        ),
    ],
    gen_stateless_random_ops: [
        Draw("stateless_multinomial", ("logits",)),
        Draw("stateless_random_binomial", ("counts", "probs")),
        Draw("stateless_random_poisson", ("lam",)),
        Draw("stateless_parameterized_truncated_normal", ("means", "stddevs", *_BOUNDS[2:])),
    ],
    gen_stateless_random_ops_v2: [
        Draw("stateless_random_normal_v2"),
        Draw("stateless_random_uniform_v2"),
        Draw("stateless_random_uniform_int_v2"),
        Draw("stateless_random_uniform_full_int_v2"),
        Draw("stateless_truncated_normal_v2"),
        Draw("stateless_random_gamma_v3", ("alpha",)),
    ],
}


def unknown_draws() -> list[str]:
    """Names of operations that are to be intercepted, and that this TensorFlow does not have."""
    pairs = ((module, draw) for module, draws in _DRAWS.items() for draw in draws)
    return [draw.name for module, draw in pairs if not hasattr(module, draw.name)]


@contextlib.contextmanager
def draw_calls(around: Around, whole: Callable[[Any], Any]) -> Iterator[None]:
    """While open, operations that draw random numbers go through `around`.

    Args:
        around: draws in place of the operation.
        whole: shape -> the shape that `around` will draw; a `tf.random.Generator` moves on by as
            many numbers before it draws.
    """
    depth = [0]
    generator = stateful_random_ops.Generator
    skip = generator._prepare_key_counter

    def prepare(self: Any, shape: Any) -> Any:
        return skip(self, whole(shape))

    with contextlib.ExitStack() as stack:
        stack.enter_context(patched(generator, _prepare_key_counter=prepare))
        for module, draws in _DRAWS.items():
            telling = {
                draw.name: _telling(draw, getattr(module, draw.name), around, depth)
                for draw in draws
                if hasattr(module, draw.name)
            }
            stack.enter_context(patched(module, **telling))
        yield


def _telling(draw: Draw, original: Any, around: Around, depth: list[int]) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if depth[0]:
            return original(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        depth[0] += 1  # a replacement may draw random numbers itself
        try:
            return around(draw, original, dict(bound.arguments))
        finally:
            depth[0] -= 1

    return function


def _and_shape(shape: Any, values: Any) -> Any:
    return tf.concat([tf.cast(shape, tf.int32), tf.shape(values)], 0)


def eager_generator() -> Any:
    """The state of the generator of seeds for eager draws; None until it is first used."""
    generator = _eager_generator()
    return None if generator is None else generator.getstate()


def set_eager_generator(state: Any) -> None:
    """Set the generator back to what `eager_generator` returned."""
    generator = _eager_generator()
    if state is not None and generator is not None:
        generator.setstate(state)


def _eager_generator() -> Any:
    """The generator; without `set_seed` TensorFlow has none."""
    return getattr(context.context(), "_rng", None)
