"""The compiled functions of a model that decodes; all shapes are known, so few are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.serving.cached_model import CachedModel
from hyparflow.serving.samplers import SamplingRows, chosen
from hyparflow.serving.sampling import GREEDY, SamplerKind, Sampling
from hyparflow.serving.window import EMPTY, Shape

__all__ = ["Caches", "Decoder"]

_MOST_STEPS = 16  # of a window

# Variables, each (rows, ..., length, ...): what changes them copies nothing.
Caches = list[Any]


class Decoder:
    """Takes prompts into caches, and makes tokens from them.

    Args:
        model: what is called.
        jit: whether XLA compiles, as `jit_compile` of a model says. Its random numbers differ.
    """

    def __init__(self, model: CachedModel, jit: bool = True) -> None:
        self._model, self._jit = model, jit
        self._taking = tf.function(self._taken_in, autograph=False)
        self._logits_of = tf.function(self._logits, autograph=False)
        self._running: dict[tuple[SamplerKind | None, ...], Any] = {}
        self._kinds: list[SamplerKind | None] = []

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
    ) -> Any:
        """Make tokens.

        Args:
            caches: of all rows.
            tokens: the last one of each row.
            positions: of these; of a row that takes no part, the last place of its cache.
            steps: how many iterations.
            sampling: how each row chooses.
            given: how many tokens each row has made before.

        Returns:
            The tokens, a NumPy array (iterations, rows).
        """
        sampling = sampling or [GREEDY] * len(tokens)
        for way in sampling:
            if way.kind not in self._kinds:
                self._kinds.append(way.kind)  # and stays, so that few choices are compiled
        known = tuple(self._kinds)
        if known not in self._running:
            self._running[known] = self._compiled(known)
        made = self._running[known](
            caches,
            *(tf.constant(list(x), tf.int32) for x in (tokens, positions)),
            tf.constant(steps),
            sampling_rows(known, sampling, given or [0] * len(tokens)),
        )
        return made.numpy()[:steps]

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

    def _compiled(self, kinds: tuple[SamplerKind | None, ...]) -> Any:
        def run(caches: Caches, tokens: Any, positions: Any, steps: Any, rows: SamplingRows) -> Any:
            place, seeds, numbers, *rest = rows
            last = caches[0].shape[1 + len(self._model.cache_sizes[0].before)] - 1

            def step(done: Any, tokens: Any, positions: Any, made: Any, held: Any) -> Any:
                logits, held = self._model.call(tokens[:, None], positions[:, None], held)
                ways = (place, seeds, numbers + done, *rest)
                tokens = chosen(logits[:, 0], kinds, ways)
                made = tf.tensor_scatter_nd_update(made, [[done]], [tokens])
                return done + 1, tokens, tf.minimum(positions + 1, last), made, held

            made = tf.zeros([_MOST_STEPS, tokens.shape[0]], tf.int32)
            start = (tf.constant(0), tokens, positions, made, [x.value() for x in caches])
            *_, made, held = tf.while_loop(
                lambda done, *_: done < steps, step, start, parallel_iterations=1
            )
            for cache, changed in zip(caches, held, strict=True):
                cache.assign(changed)
            return made

        return tf.function(run, autograph=False, jit_compile=self._jit)


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
