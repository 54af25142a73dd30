"""A decoder whose rows go on at the ranks of their experts, and whose tokens all ranks get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.serving.coherent.row_gather import RowGather
from hyparflow.serving.coherent.rows_here import RowsHere
from hyparflow.serving.coherent.travelling_model import TravellingModel
from hyparflow.serving.decoding.caches import Caches
from hyparflow.serving.decoding.chooser import TokenChoice
from hyparflow.serving.decoding.decoder import Decoder
from hyparflow.serving.decoding.samplers import SamplingRows

__all__ = ["CoherentDecoder"]

# (the numbers of some rows, their logits) -> tensors of these rows.
_Results = Callable[[Any, Any], list[Any]]


class CoherentDecoder(Decoder):
    """See `Decoder`; every rank has the caches of all rows, and computes those that are with it.

    An iteration begins with row r at rank r % G of G ranks. Each mixture of experts sends rows on,
    and at the end all ranks are told what was made, in one all-gather (Yao et al., "ExFlow",
    arXiv 2401.08383, section IV.A).

    Args:
        model: what is called.
        ranks: those that share the experts.
        order: calls exchanges in one order on all ranks; the model's mixtures have the same.
        jit: see `Decoder`.
    """

    def __init__(
        self, model: TravellingModel, ranks: Communicator, order: OrderedCalls, jit: bool = False
    ) -> None:
        super().__init__(model, jit=jit, compiles=False)
        self._travelling, self._ranks, self._order = model, ranks, order

    # --- traced ---

    def _chosen(
        self,
        choice: TokenChoice,
        rows: SamplingRows,
        matrices: Sequence[Any],
        caches: Caches,
        tokens: Any,
        positions: Any,
    ) -> list[Any]:
        def results(numbers: Any, logits: Any) -> list[Any]:
            own = tuple(tf.gather(x, numbers) for x in rows)
            return choice(logits, own)  # type: ignore[arg-type]

        return self._iterated(caches, tokens, positions, results)

    def _one_step(self, caches: Caches, tokens: Any, positions: Any) -> Any:
        return self._iterated(caches, tokens, positions, lambda _, logits: [logits])[0]

    def _iterated(
        self, caches: Caches, tokens: Any, positions: Any, results: _Results
    ) -> list[Any]:
        """What `results` makes of all rows, after one more token; caches keep that."""
        axes = [1 + len(size.before) for size in self.cache_sizes]
        count = tokens.shape[0]
        first = tf.range(self._ranks.rank, count, self._ranks.size)
        rows = RowsHere(
            numbers=first,
            tokens=tokens[:, None],
            positions=positions[:, None],
            caches=caches,
            axes=axes,
        )
        logits = self._travelling.iterate(rows)
        made = list(results(rows.numbers, logits[:, 0]))
        groups: list[tuple[Any, list[Any]]] = [(rows.numbers, made)]
        for number in range(len(caches)):
            numbers, new = rows.written[number]
            if numbers is groups[-1][0]:  # keys and values of a layer are of the same rows
                groups[-1][1].append(new)
            else:
                groups.append((numbers, [new]))
        made = self._gathered(count, groups)
        told = len(made) - len(caches)
        for cache, axis, new in zip(caches, axes, made[told:], strict=True):
            _write(cache, axis, positions, new)
        return made[:told]

    def _gathered(self, count: int, groups: Sequence[tuple[Any, list[Any]]]) -> list[Any]:
        gather = RowGather(self._ranks, count)

        def run(*flat: np.ndarray) -> list[np.ndarray]:
            left = iter(flat)
            return gather.gathered([(next(left), [next(left) for _ in x]) for _, x in groups])

        arrays = [array for _, arrays in groups for array in arrays]
        return self._order.others(
            run,
            [x for numbers, arrays in groups for x in (numbers, *arrays)],
            [array.dtype for array in arrays],
            [[count, *array.shape[1:]] for array in arrays],
        )


def _write(cache: Any, axis: int, positions: Any, new: Any) -> None:
    """Write the keys or values of new tokens.

    Args:
        cache: variable (rows, ..., length, ...).
        axis: which of its axes counts tokens.
        positions: (rows,) of the tokens.
        new: (rows, ..., ...).
    """
    before = [int(size) for size in new.shape[:axis]]
    ranges = [tf.range(size) for size in before]
    places = list(tf.meshgrid(*ranges, indexing="ij"))
    at = tf.reshape(positions, [-1, *[1] * (len(before) - 1)])
    places.append(tf.broadcast_to(at, before))
    cache.scatter_nd_update(tf.stack(places, -1), new)
