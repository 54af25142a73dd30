"""The compiled functions of a model that decodes; all shapes are known, so few are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.serving.decoding.cached_model import CachedModel
from hyparflow.serving.decoding.caches import (
    Caches,
    HoldsCaches,
    put_rows,
    values_of,
)
from hyparflow.serving.decoding.chooser import TokenChoice, TokenChooser
from hyparflow.serving.decoding.flat_kernels import FlatKernels
from hyparflow.serving.decoding.samplers import SamplingRows
from hyparflow.serving.decoding.traced_by_size import TracedBySize
from hyparflow.serving.scheduling.sampling import GREEDY, MOST_LOGPROBS, Sampling
from hyparflow.serving.scheduling.window import Piece, Shape

__all__ = ["MOST_STEPS", "Decoder"]

MOST_STEPS = 16  # of a window


class Decoder(HoldsCaches):
    """Takes prompts into caches, and makes tokens from them.

    Args:
        model: what is called.
        layers: of the model.
        jit: whether XLA compiles samplers, as `jit_compile` of a model says: its random numbers
            are others.
        compiles: whether XLA compiles calls of the model; not those that talk to other ranks.
    """

    def __init__(
        self,
        model: CachedModel,
        layers: Sequence[Any] = (),
        jit: bool = False,
        compiles: bool = True,
    ) -> None:
        super().__init__(model.cache_sizes)
        self._model, self._chooser = model, TokenChooser(jit)
        self._flattened = FlatKernels(layers if compiles else ())
        self._compiled = TracedBySize(self._stepped, jit_compile=compiles)
        self._step = TracedBySize(self._one_step)
        self._taking = TracedBySize(self._taken_in)
        self._loops: dict[TokenChoice, Any] = {}

    def take_in(self, caches: Caches, pieces: Sequence[Piece]) -> None:
        """Put the keys and values of pieces of prompts into their rows.

        Args:
            caches: of all rows.
            pieces: all with the same number of tokens to compute: the last token fills up.
        """
        rows, padded = [piece.row for piece in pieces], pieces[0].padded
        counts = [len(piece.tokens) for piece in pieces]
        pairs = list(zip(pieces, counts, strict=True))
        filled = [[*x.tokens, *[x.tokens[-1]] * (padded - count)] for x, count in pairs]
        places = [[x.start + min(n, count - 1) for n in range(padded)] for x, count in pairs]
        given = (tf.constant(x, tf.int32) for x in (filled, places))
        put_rows(caches, rows, self._taking([tf.gather(cache, rows) for cache in caches], *given))

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
        choice = self._chooser.choice(sampling)
        if choice not in self._loops:
            # Loops with a choice that knows fewer samplers do not run again.
            self._loops = {x: y for x, y in self._loops.items() if x.kinds == choice.kinds}
            self._loops[choice] = TracedBySize(self._loop(choice))
        made = self._loops[choice](
            caches,
            *(tf.constant(list(x), tf.int32) for x in (tokens, positions)),
            tf.constant(steps),
            choice.rows(sampling, given or [0] * len(tokens)),
        )
        return [part.numpy()[:steps] for part in made]

    # --- see `hyparflow.serving.decoding.self_test.Probed` ---

    probe_rows = 3

    def probe(self, tokens: Any, counts: Sequence[int], steps: int) -> list[Any]:
        """See `Probed.probe`."""
        caches = self.empty(Shape(*tokens.shape))
        for row, count in enumerate(counts):
            for start, stop in ((0, count // 2), (count // 2, count)):
                piece = tuple(tokens[row, start:stop].tolist())
                self.take_in(caches, [Piece(row, start, piece, tokens.shape[1])])
        rows, places = np.arange(len(counts)), np.array(counts, np.int32)
        return [
            self._step(
                caches,
                tf.constant(tokens[rows, places + step]),
                tf.constant(places + step),
            ).numpy()
            for step in range(steps)
        ]

    def plain(self, tokens: Any) -> Any:
        """See `Probed.plain`: all tokens are new ones, in empty caches."""
        caches = values_of(self.empty(Shape(*tokens.shape)))
        places = np.broadcast_to(np.arange(tokens.shape[1], dtype="int32"), tokens.shape)
        return self._model.call(tf.constant(tokens), tf.constant(places), caches)[0]

    # --- traced ---

    def _taken_in(self, caches: Any, tokens: Any, places: Any) -> list[Any]:
        return self._model.call(tokens, places, caches)[1]

    def _one_step(self, caches: Caches, tokens: Any, positions: Any) -> Any:
        return self._compiled(self._flattened.matrices(), caches, tokens, positions)

    def _stepped(self, matrices: Sequence[Any], caches: Caches, tokens: Any, positions: Any) -> Any:
        """The logits of each row after one more token; caches keep it."""
        with self._flattened.given(matrices):
            made, new = self._model.call(tokens[:, None], positions[:, None], values_of(caches))
        for cache, changed in zip(caches, new, strict=True):
            cache.assign(changed)
        return made[:, 0]

    def _chosen(
        self,
        choice: TokenChoice,
        rows: SamplingRows,
        matrices: Sequence[Any],
        caches: Caches,
        tokens: Any,
        positions: Any,
    ) -> list[Any]:
        """What a choice makes of each row, after one more token; caches keep that."""
        return choice(self._compiled(matrices, caches, tokens, positions), rows)

    def _loop(self, choice: TokenChoice) -> Any:
        """The loop of a window; what it calls is compiled apart, for it lasts longer."""

        def run(
            caches: Caches, tokens: Any, positions: Any, steps: Any, rows: SamplingRows
        ) -> list[Any]:
            place, seeds, numbers, *rest = rows
            last = caches[0].shape[1 + len(self.cache_sizes[0].before)] - 1
            matrices = self._flattened.matrices()

            def step(done: Any, tokens: Any, positions: Any, made: list[Any]) -> Any:
                own = place, seeds, numbers + done, *rest
                new = self._chosen(choice, own, matrices, caches, tokens, positions)
                made = [
                    tf.tensor_scatter_nd_update(x, [[done]], [y])
                    for x, y in zip(made, new, strict=True)
                ]
                return done + 1, new[0], tf.minimum(positions + 1, last), made

            made = _made_so_far(tokens.shape[0], choice.has_logprobs)
            start = (tf.constant(0), tokens, positions, made)
            looped = tf.while_loop(
                lambda done, *_: done < steps, step, start, parallel_iterations=1
            )
            return list(looped[-1])

        return run


def _made_so_far(rows: int, has_logprobs: bool) -> list[Any]:
    """Where a loop puts what it makes."""
    made = [tf.zeros([MOST_STEPS, rows], tf.int32)]
    if has_logprobs:
        made.append(tf.zeros([MOST_STEPS, rows]))
        made.append(tf.zeros([MOST_STEPS, rows, MOST_LOGPROBS], tf.int32))
        made.append(tf.zeros([MOST_STEPS, rows, MOST_LOGPROBS]))
    return made
