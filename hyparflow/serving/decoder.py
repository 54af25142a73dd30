"""A language model of KerasHub that takes tokens at the positions of their rows, with caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.model.keras_internals.serving_hook import served_from
from hyparflow.serving.cached_attention import Cache, attending
from hyparflow.serving.window import EMPTY, Shape

__all__ = ["Choose", "Decoder"]

_MOST_STEPS = 16  # of a window

# (logits of each row, how many tokens each row had before) -> the next token of each row
Choose = Callable[[Any, Any], Any]


def greedy(logits: Any, positions: Any) -> Any:
    """The token with the largest logit."""
    return tf.argmax(logits, -1, output_type=tf.int32)


class Decoder:
    """The compiled functions of a model; all tensors have known shapes, so few are compiled.

    Args:
        model: a `keras_hub.models.CausalLM` whose attention has KerasHub's serving hook.
        choose: how tokens follow from logits.

    Raises:
        ValueError: if its attention has no such hook.
    """

    def __init__(self, model: Any, choose: Choose = greedy) -> None:
        self._model, self._choose = model, choose
        self._sizes = self._find_sizes()
        if not self._sizes:
            raise ValueError(
                "A model that is served must have attention with KerasHub's serving hook. "
                f"Received: '{model.name}' of class '{type(model).__name__}', which has none. Use "
                "another model, or `model.generate`."
            )
        self._take_in = tf.function(self._taken_in, autograph=False)
        self._run = tf.function(self._decoded, autograph=False)
        self._logits_of = tf.function(self._logits, autograph=False)

    def empty(self, shape: Shape) -> list[Cache]:
        """Caches that hold nothing."""
        return [
            (
                tf.zeros([shape.rows, heads, shape.length, size], dtype),
                tf.zeros([shape.rows, heads, shape.length, size], dtype),
            )
            for heads, size, dtype in self._sizes
        ]

    def rebuilt(self, caches: Sequence[Cache], shape: Shape, sources: Sequence[int]) -> list[Cache]:
        """The caches with other rows, of another length; see `Window.sources`."""
        places = tf.constant([0 if source == EMPTY else source for source in sources])

        def moved(cache: Any) -> Any:
            kept = tf.gather(cache[:, :, : shape.length], places)
            longer = shape.length - kept.shape[2]
            return tf.pad(kept, [[0, 0], [0, 0], [0, longer], [0, 0]]) if longer else kept

        return [(moved(keys), moved(values)) for keys, values in caches]

    def take_in(
        self, caches: Sequence[Cache], row: int, start: int, tokens: Sequence[int], padded: int
    ) -> list[Cache]:
        """Caches with the keys and values of a piece of a prompt.

        Args:
            caches: of all rows; nobody else may hold them.
            row: of the piece.
            start: the position of its first token.
            tokens: of the piece.
            padded: the number of tokens to compute, of which few occur: the last token fills up.
        """
        filled = [*tokens, *[tokens[-1]] * (padded - len(tokens))]
        places = [start + min(n, len(tokens) - 1) for n in range(padded)]
        given = (tf.constant([x], tf.int32) for x in (filled, places))
        made: list[Cache] = self._take_in(list(caches), tf.constant(row), *given)
        return made

    def run(
        self, caches: Sequence[Cache], tokens: Sequence[int], positions: Sequence[int], steps: int
    ) -> tuple[Any, list[Cache]]:
        """The tokens of some iterations, (iterations, rows), and the new caches.

        Args:
            caches: of all rows; nobody else may hold them.
            tokens: the last one of each row.
            positions: of these; of a row that takes no part, the last place of its cache.
            steps: how many iterations.
        """
        given = (tf.constant(list(x), tf.int32) for x in (tokens, positions))
        made: tuple[Any, list[Cache]] = self._run(list(caches), *given, tf.constant(steps))
        return made[0][:steps], made[1]

    def logits(
        self, caches: Sequence[Cache], tokens: Any, positions: Any
    ) -> tuple[Any, list[Cache]]:
        """The logits after each of the tokens, (rows, tokens, vocabulary), and the new caches."""
        made: tuple[Any, list[Cache]] = self._logits_of(list(caches), tokens, positions)
        return made

    # --- traced ---

    def _find_sizes(self) -> list[tuple[int, int, Any]]:
        """Heads of keys, the size of a head and the type of each attention layer."""
        found: list[tuple[int, int, Any]] = []

        def note(cache: Any, query: Any, key: Any, *rest: Any, **more: Any) -> tuple[None, Any]:
            _, _, size, _, key_heads = rest
            found.append((int(key_heads), int(size), key.dtype))
            return None, query

        def traced() -> Any:
            with served_from(note, tf.zeros([1], tf.int32), None):
                self._model.backbone(_inputs(tf.zeros([1, 1], tf.int32)), training=False)
            return tf.zeros([])

        tf.function(traced, autograph=False).get_concrete_function()
        return found

    def _called(self, model: Any, caches: Any, tokens: Any, positions: Any) -> tuple[Any, Any]:
        """What a model makes of tokens, (rows x tokens, 1, ...), and the new caches."""
        flat = tf.reshape(tokens, [-1, 1])
        with served_from(attending(positions), tf.reshape(positions, [-1]), caches) as updated:
            made = model(_inputs(flat), training=False)
            return made, updated()

    def _taken_in(self, caches: Any, row: Any, tokens: Any, places: Any) -> Any:
        of_row = [tuple(x[row][None] for x in pair) for pair in caches]
        _, new = self._called(self._model.backbone, of_row, tokens, places)
        return [
            tuple(
                tf.tensor_scatter_nd_update(x, [[row]], y) for x, y in zip(pair, one, strict=True)
            )
            for pair, one in zip(caches, new, strict=True)
        ]

    def _logits(self, caches: Any, tokens: Any, positions: Any) -> tuple[Any, Any]:
        made, caches = self._called(self._model, caches, tokens, positions)
        return tf.reshape(made, [*tokens.shape, made.shape[-1]]), caches

    def _decoded(self, caches: Any, tokens: Any, positions: Any, steps: Any) -> tuple[Any, Any]:
        most, last = _MOST_STEPS, caches[0][0].shape[2] - 1

        def step(number: Any, tokens: Any, positions: Any, made: Any, caches: Any) -> Any:
            logits, caches = self._logits(caches, tokens[:, None], positions[:, None])
            tokens = self._choose(logits[:, 0], positions)
            made = tf.tensor_scatter_nd_update(made, [[number]], [tokens])
            return number + 1, tokens, tf.minimum(positions + 1, last), made, caches

        made = tf.zeros([most, tokens.shape[0]], tf.int32)
        start = (tf.constant(0), tokens, positions, made, caches)
        *_, made, caches = tf.while_loop(
            lambda number, *_: number < steps, step, start, parallel_iterations=1
        )
        return made, caches


def _inputs(tokens: Any) -> dict[str, Any]:
    return {"token_ids": tokens, "padding_mask": tf.ones_like(tokens)}
