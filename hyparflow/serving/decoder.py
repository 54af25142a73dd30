"""The compiled functions of a model that decodes; all shapes are known, so few are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.serving.cached_model import CachedModel
from hyparflow.serving.samplers import SamplingRows, chosen, logprobs_of
from hyparflow.serving.sampling import GREEDY, MOST_LOGPROBS, SamplerKind, Sampling
from hyparflow.serving.window import EMPTY, Shape

__all__ = ["Caches", "Decoder"]

_MOST_STEPS = 16  # of a window

# Variables, each (rows, ..., length, ...): what changes them copies nothing.
Caches = list[Any]


class Decoder:
    """Takes prompts into caches, and makes tokens from them.

    Args:
        model: what is called.
        jit: whether XLA compiles samplers, as `jit_compile` of a model says: its random numbers
            are others.
    """

    def __init__(self, model: CachedModel, jit: bool = False) -> None:
        self._model, self._jit = model, jit
        self._step = tf.function(self._stepped, autograph=False, jit_compile=True)
        self._taking = tf.function(self._taken_in, autograph=False)
        self._logits_of = tf.function(self._logits, autograph=False)
        self._running: dict[Any, Any] = {}
        self._kinds: list[SamplerKind | None] = []

    @property
    def bytes_of_token(self) -> int:
        """What the caches of one token take."""
        return sum(x.numbers * tf.dtypes.as_dtype(x.dtype).size for x in self._model.cache_sizes)

    def empty(self, shape: Shape) -> Caches:
        """Caches that hold nothing."""
        return [_cache(tf.zeros(x.shape(shape), x.dtype)) for x in self._model.cache_sizes]

    def rebuilt(self, caches: Caches, shape: Shape, sources: Sequence[int]) -> Caches:
        """The caches with other rows, of another length; see `Window.sources`.

        Args:
            caches: what is in them may be lost.
            shape: of the new ones.
            sources: of the new rows.
        """
        places = tf.constant([0 if source == EMPTY else source for source in sources])
        made: Caches = []
        for size in self._model.cache_sizes:
            cache = caches.pop(0)  # so that the old and the new ones never all exist
            axis = 1 + len(size.before)
            kept = tf.gather(cache, places)
            if cache.shape[axis] > shape.length:
                kept = kept[(..., slice(shape.length), *[slice(None)] * len(size.after))]
            longer = [[0, 0]] * kept.shape.rank
            longer[axis] = [0, shape.length - kept.shape[axis]]
            made.append(_cache(tf.pad(kept, longer) if longer[axis][1] else kept))
        return made

    def take_in(
        self, caches: Caches, row: int, start: int, tokens: Sequence[int], padded: int
    ) -> None:
        """Put the keys and values of a piece of a prompt into a row.

        Args:
            caches: of all rows.
            row: of the piece.
            start: the position of its first token.
            tokens: of the piece.
            padded: the number of tokens to compute, of which few occur: the last token fills up.
        """
        filled = [*tokens, *[tokens[-1]] * (padded - len(tokens))]
        places = [start + min(n, len(tokens) - 1) for n in range(padded)]
        given = (tf.constant([x], tf.int32) for x in (filled, places))
        new = self._taking([tf.gather(cache, [row]) for cache in caches], *given)
        for cache, changed in zip(caches, new, strict=True):
            cache.scatter_nd_update([[row]], changed)

    def run(
        self,
        caches: Caches,
        tokens: Sequence[int],
        positions: Sequence[int],
        steps: int,
        sampling: Sequence[Sampling] = (),
        given: Sequence[int] = (),
    ) -> list[Any]:
        """Make tokens.

        Args:
            caches: of all rows.
            tokens: the last one of each row.
            positions: of these; of a row that takes no part, the last place of its cache.
            steps: how many iterations.
            sampling: how each row chooses.
            given: how many tokens each row has made before.

        Returns:
            The tokens (iterations, rows). If any row asks for logarithms of probabilities, also
            those of the tokens, as large, and the likeliest tokens and theirs, (iterations, rows,
            number). All are NumPy arrays.
        """
        sampling = sampling or [GREEDY] * len(tokens)
        for way in sampling:
            if way.kind not in self._kinds:
                self._kinds.append(way.kind)  # and stays, so that few choices are compiled
        known = tuple(self._kinds)
        key = known, any(way.num_logprobs is not None for way in sampling)
        if key not in self._running:
            self._running[key] = self._compiled(*key)
        made = self._running[key](
            caches,
            *(tf.constant(list(x), tf.int32) for x in (tokens, positions)),
            tf.constant(steps),
            sampling_rows(known, sampling, given or [0] * len(tokens)),
        )
        return [part.numpy()[:steps] for part in made]

    def logits(self, caches: Caches, tokens: Any, positions: Any) -> Any:
        """The logits after each of the tokens, (rows, tokens, vocabulary); caches keep them."""
        made, new = self._logits_of([x.value() for x in caches], tokens, positions)
        for cache, changed in zip(caches, new, strict=True):
            cache.assign(changed)
        return made

    # --- traced ---

    def _taken_in(self, caches: Any, tokens: Any, places: Any) -> list[Any]:
        return self._model.call(tokens, places, caches)[1]

    def _logits(self, caches: Any, tokens: Any, positions: Any) -> tuple[Any, list[Any]]:
        return self._model.call(tokens, positions, caches)

    def _stepped(self, caches: Caches, tokens: Any, positions: Any) -> Any:
        """The logits of each row after one more token; caches keep it."""
        made, new = self._logits([x.value() for x in caches], tokens[:, None], positions[:, None])
        for cache, changed in zip(caches, new, strict=True):
            cache.assign(changed)
        return made[:, 0]

    def _compiled(self, kinds: tuple[SamplerKind | None, ...], has_logprobs: bool) -> Any:
        """The loop of a window; what it calls is compiled apart, for it lasts longer."""

        def choose(logits: Any, rows: SamplingRows) -> list[Any]:
            tokens = chosen(logits, kinds, rows)
            return [tokens, *(logprobs_of(logits, tokens) if has_logprobs else ())]

        choose = tf.function(choose, autograph=False, jit_compile=self._jit or None)

        def run(
            caches: Caches, tokens: Any, positions: Any, steps: Any, rows: SamplingRows
        ) -> list[Any]:
            place, seeds, numbers, *rest = rows
            last = caches[0].shape[1 + len(self._model.cache_sizes[0].before)] - 1

            def step(done: Any, tokens: Any, positions: Any, made: list[Any]) -> Any:
                logits = self._step(caches, tokens, positions)
                new = choose(logits, (place, seeds, numbers + done, *rest))
                made = [
                    tf.tensor_scatter_nd_update(x, [[done]], [y])
                    for x, y in zip(made, new, strict=True)
                ]
                return done + 1, new[0], tf.minimum(positions + 1, last), made

            count, top = tokens.shape[0], MOST_LOGPROBS
            made = [tf.zeros([_MOST_STEPS, count], tf.int32)]
            if has_logprobs:
                made += [
                    tf.zeros([_MOST_STEPS, count]),
                    tf.zeros([_MOST_STEPS, count, top], tf.int32),
                    tf.zeros([_MOST_STEPS, count, top]),
                ]
            start = (tf.constant(0), tokens, positions, made)
            looped = tf.while_loop(
                lambda done, *_: done < steps, step, start, parallel_iterations=1
            )
            return list(looped[-1])

        return tf.function(run, autograph=False)


def sampling_rows(
    kinds: Sequence[SamplerKind | None], sampling: Sequence[Sampling], given: Sequence[int]
) -> SamplingRows:
    """What belongs to each row, as tensors."""
    return (
        tf.constant([kinds.index(way.kind) for way in sampling], tf.int32),
        tf.constant([way.seed for way in sampling], tf.int32),
        tf.constant(list(given), tf.int32),
        tf.constant([way.temperature for way in sampling], tf.float32),
        tf.constant([way.p for way in sampling], tf.float32),
    )


def _cache(value: Any) -> Any:
    return tf.Variable(value, trainable=False)
