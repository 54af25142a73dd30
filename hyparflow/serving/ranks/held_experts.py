"""The experts of one of the ranks that share out those of a language model.

Each rank has copies of its own experts' weights; what the model itself holds is not read any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.experts.parallel_mixture import ParallelMixture
from hyparflow.engine.experts.travelling_mixture import TravellingMixture
from hyparflow.model.experts.expert_layers import ExpertLayer
from hyparflow.model.keras_internals.deferred_variables import present

__all__ = ["HeldExperts"]

_Call = Callable[[], Any]


class HeldExperts:
    """This rank's experts, in the place of all while a model is traced.

    Args:
        layers: with experts.
        rank_of: for each layer and expert, the rank that has it.
        ranks: those that share the experts.

    Attributes:
        order: of the exchanges of its layers.
    """

    def __init__(
        self, layers: Sequence[ExpertLayer], rank_of: Sequence[Sequence[int]], ranks: Communicator
    ) -> None:
        self.order = OrderedCalls()
        self._ranks, self._held = ranks, list[tuple[ExpertLayer, Sequence[int], list[_Call]]]()
        self._cuts: list[Callable[[], None]] = []
        self._mixtures: list[tuple[ExpertLayer, ParallelMixture]] = []
        self._called: list[_Call] = []  # in the order in which the model calls its layers
        self._nothing = tf.function(self._called_with_nothing, autograph=False)
        for one, placed in zip(layers, rank_of, strict=True):
            mine = np.flatnonzero(np.array(placed) == ranks.rank)
            held = [self._cut(one, weight, mine) for weight in one.weights]
            self._held.append((one, placed, held))
            self._mixtures.append((one, ParallelMixture(ranks, placed, held, self.order)))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While open, tokens of this rank travel to the ranks of their experts. Collective."""
        self._called.clear()
        with contextlib.ExitStack() as stack:
            for one, mixture in self._mixtures:
                stack.enter_context(one.computed_by(self._noting(mixture)))
            yield

    def travelling(self, top_k: Sequence[int]) -> list[tuple[ExpertLayer, TravellingMixture]]:
        """The layers, and mixtures whose tokens stay at the ranks of their experts.

        Args:
            top_k: for each layer, how many experts a token has, at most.
        """
        return [
            (one, TravellingMixture(self._ranks, placed, held, self.order, count))
            for (one, placed, held), count in zip(self._held, top_k, strict=True)
        ]

    def take_part(self) -> None:
        """Compute what other ranks' tokens ask for in one call of the model, without own ones.

        Collective: others call the model.
        """
        self._nothing()

    def refresh(self) -> None:
        """Take the weights anew, for they may have been trained since."""
        for cut in self._cuts:
            cut()

    def _cut(self, one: ExpertLayer, weight: Any, mine: np.ndarray) -> Callable[[], Any]:
        def cut() -> np.ndarray:
            with present([weight]):  # a deferred weight gives its memory back
                return np.take(np.asarray(weight), mine, 0)

        held = tf.Variable(cut(), trainable=False)
        self._cuts.append(lambda: held.assign(cut()))
        return lambda: tf.cast(held, one.layer.compute_dtype)

    def _noting(self, mixture: ParallelMixture) -> Callable[..., Any]:
        def noted(rows: Any, routing: Any, expert: Any) -> Any:
            width, kinds, experts = rows.shape[-1], (rows.dtype, routing.dtype), routing.shape[0]

            def with_nothing() -> Any:
                rows = tf.zeros([0, width], kinds[0])
                return mixture(rows, tf.zeros([experts, 0], kinds[1]), expert)

            self._called.append(with_nothing)
            return mixture(rows, routing, expert)

        return noted

    def _called_with_nothing(self) -> None:
        for call in list(self._called):
            call()
