"""KerasHub's samplers, each called for one row with the row's own seed."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from hyparflow.formats.text import shortened
from hyparflow.serving.scheduling.sampling import GREEDY, MOST_LOGPROBS, SamplerKind, Sampling

__all__ = ["SamplingRows", "chosen", "logprobs_of", "sampling_of"]

# Numbers that requests may set; a compiled choice takes them as tensors.
_NUMBERS = ("temperature", "p")
_LARGEST_SEED = 2**31 - 2

# Tensors of all rows: place of the kind, seed, number of the token, temperature, p.
SamplingRows = tuple[Any, Any, Any, Any, Any]


def sampling_of(sampler: Any, seed: int = 0, num_logprobs: int | None = None) -> Sampling:
    """How a sampler chooses.

    Args:
        sampler: a name, a `keras_hub.samplers.Sampler`, or how one chooses.
        seed: of the request.
        num_logprobs: see `Sampling`.

    Raises:
        ValueError: if it does not choose the token of a row by that row alone.
    """
    if isinstance(sampler, str):
        sampler = _sampling_by_name(sampler)
    if not isinstance(sampler, Sampling):
        sampler = _sampling_by(sampler)
    return replace(sampler, seed=seed % _LARGEST_SEED, num_logprobs=num_logprobs)


# Each sampler that is made has a variable of a new name, for which TensorFlow keeps 35 KB for ever.
@functools.lru_cache(64)
def _sampling_by_name(name: str) -> Sampling:
    return _sampling_by(name)


def _sampling_by(sampler: Any) -> Sampling:
    import keras_hub

    plain = keras_hub.samplers.Sampler
    try:
        found = keras_hub.samplers.get(sampler)
    except ValueError:
        found = None
    if not isinstance(found, plain):
        raise ValueError(
            "`sampler` must be the name of one of KerasHub's samplers, or a sampler. Received: "
            f"sampler={shortened(sampler)}. Use 'greedy', 'random', 'top_k' or 'top_p'."
        )
    sampler = found
    if type(sampler).__call__ is not plain.__call__:
        raise ValueError(
            "A sampler must choose the next token of a row from the logits of this row alone. "
            f"Received: '{type(sampler).__name__}', which runs a loop of its own. Use 'greedy', "
            "'random', 'top_k', 'top_p' or a sampler with a `get_next_token` of its own."
        )
    if type(sampler) is keras_hub.samplers.GreedySampler:
        return GREEDY
    own = vars(sampler)
    generators = [name for name, x in own.items() if isinstance(x, keras.random.SeedGenerator)]
    left_out = {*generators, *_NUMBERS, "_seed_generators", "seed"}
    state = {name: x for name, x in sorted(own.items()) if name not in left_out}
    try:
        kind = SamplerKind(type(sampler), pickle.dumps(state), tuple(generators))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            "A sampler must have attributes that can be pickled, for every rank has it. Received: "
            f"'{type(sampler).__name__}' ({error})"
        ) from None
    temperature, p = (float(own.get(name, 1.0)) for name in _NUMBERS)
    return Sampling(kind=kind, temperature=temperature, p=p)


def chosen(logits: Any, kinds: Sequence[SamplerKind | None], rows: SamplingRows) -> Any:
    """The token of each row.

    Args:
        logits: (rows, vocabulary).
        kinds: all that occur.
        rows: what belongs to each row.
    """
    if all(kind is None for kind in kinds):
        return tf.argmax(logits, -1, output_type=tf.int32)

    def of_row(given: tuple[Any, ...]) -> Any:
        logits, place, *rest = given
        choices = [lambda kind=kind: _token(kind, logits[None], *rest) for kind in kinds]
        return tf.switch_case(place, choices) if len(choices) > 1 else choices[0]()

    made = tf.map_fn(of_row, (logits, *rows), fn_output_signature=tf.int32, parallel_iterations=1)
    return tf.reshape(made, [-1])


def logprobs_of(logits: Any, tokens: Any) -> tuple[Any, Any, Any]:
    """Logarithms of probabilities.

    Args:
        logits: (rows, vocabulary).
        tokens: (rows,).

    Returns:
        Those of the tokens; the likeliest tokens of each row, (rows, `MOST_LOGPROBS`), and theirs.
        Where there are fewer tokens at all, minus infinity.
    """
    found = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    values, places = tf.math.top_k(found, min(MOST_LOGPROBS, found.shape[-1]))
    missing = [[0, 0], [0, MOST_LOGPROBS - places.shape[-1]]]
    values = tf.pad(values, missing, constant_values=-float("inf"))
    return tf.gather(found, tokens, batch_dims=1), tf.pad(places, missing), values


class _RowSeeds(keras.random.SeedGenerator):
    """Gives the seeds of one row, in place of a variable that all rows would share."""

    def __init__(self, seed: Any, number: Any) -> None:
        self._seed, self._number, self.draws = seed, number, 0

    def next(self, ordered: bool = True) -> Any:
        if self.draws:
            raise ValueError(
                "A sampler must draw once for each token, so that the n-th token has the n-th "
                "seed. Received: a sampler that draws twice."
            )
        self.draws += 1
        return tf.stack([self._seed, self._number])


def _token(
    kind: SamplerKind | None, logits: Any, seed: Any, number: Any, temperature: Any, p: Any
) -> Any:
    if kind is None:
        return tf.argmax(logits[0], -1, output_type=tf.int32)
    sampler: Any = object.__new__(kind.sampler)
    state = pickle.loads(kind.state) | {"temperature": temperature, "p": p}
    generators = {name: _RowSeeds(seed, number) for name in kind.generators}
    vars(sampler).update(state | generators)
    made = sampler.get_next_token(sampler.compute_probabilities(logits))
    return tf.cast(tf.reshape(made, []), tf.int32)
