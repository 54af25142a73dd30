"""Gives a step of the model's own, on each replica, the random numbers that one process draws.

All replicas have random generators in the same state. So a draw that does not depend on the rows of
a batch, such as one number for all, is the same on all replicas. For a draw with one or more
numbers per row, each replica draws the numbers of the global batch, and takes those of its own
rows.

Is the size of a draw that of the batch, or a multiple of it? In traced steps whose sizes are known
only when they run, the graph shows it. If sizes are fixed when a step is traced, or steps run
eagerly, two batches of different size show it.
"""

from __future__ import annotations

import contextlib
import secrets
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.log import users_stack_level
from hyparflow.engine.compiled.random_draws import Draw, draw_calls, unknown_draws
from hyparflow.engine.custom_steps.state import generator_states, set_generator_states
from hyparflow.pipeline.row_span import RowSpan

__all__ = ["StepDraws"]


class StepDraws:
    """Draws for a replica the numbers that one process draws.

    Attributes:
        span: the rows of the batch that steps run on; None while no batch is known.
        watched: whether draws are not changed, and only their sizes are noted.

    Args:
        peers: the replicas.
    """

    def __init__(self, peers: Communicator) -> None:
        self._peers = peers
        if (unknown := unknown_draws()) and peers.rank == 0:
            _announce(unknown)
        # Generators for draws without a seed.
        self._entropy = peers.broadcast_object(secrets.randbits(31), 0, "a seed for own steps")
        # Read by compiled steps: start, rows and total; the seed of a trial, or -1 outside of one.
        self._place = tf.Variable(np.array([0, 1, 1], np.int64), trainable=False)
        self._trial = tf.Variable(np.int64(-1), trainable=False)
        self._is_tried = False
        self._step = ""
        self._site = 0
        self.span: RowSpan | None = None
        self.watched = False
        self._sizes: dict[tuple[str, int], dict[int, int]] = {}  # rows -> size
        self._fixed: set[tuple[str, int]] = set()
        self._symbolic: set[tuple[str, int]] = set()

    @property
    def variables(self) -> list[Any]:
        """The variables of this object, which are not those of the user's step."""
        return [self._place, self._trial]

    def set(self, span: RowSpan) -> None:
        """Set the rows that the next step runs on."""
        if span != self.span:
            self._place.assign(np.array(span, np.int64))
        self.span = span

    def begin(self, span: RowSpan, is_eager: bool) -> None:
        """Before a step on these rows. Collective.

        Args:
            span: the rows.
            is_eager: whether the step may use a generator that callbacks on the leader use, too.
        """
        self.set(span)
        if is_eager:
            states = self._peers.broadcast_object(generator_states(), 0, "random generators")
            set_generator_states(states)

    @contextlib.contextmanager
    def leaders_seeds(self, seeds: Sequence[Any]) -> Iterator[None]:
        """While open, this replica draws by the leader's seeds, and by its own again afterwards.
        Collective.
        """
        if not seeds:  # on no replica
            yield
            return
        mine = [state.numpy() for state in seeds]
        leaders = self._peers.broadcast_object(mine, 0, "random seeds")
        for state, value in zip(seeds, leaders, strict=True):
            state.assign(value)
        try:
            yield
        finally:
            if self._peers.rank:
                for state, value in zip(seeds, mine, strict=True):
                    state.assign(value)

    def forget_sizes(self) -> bool:
        """Forget the sizes noted in the last step; returns whether there were any."""
        noted = [site for site in self._sizes if site[0] == self._step]
        for site in noted:
            del self._sizes[site]
        return bool(noted)

    @contextlib.contextmanager
    def tried(self) -> Iterator[None]:
        """While open, draws leave alone the generators of TensorFlow that cannot be set back."""
        self._trial.assign(np.int64(1))
        self._is_tried = True
        try:
            yield
        finally:
            self._trial.assign(np.int64(-1))
            self._is_tried = False
            self.span = None

    @contextlib.contextmanager
    def around(self, step: str) -> Iterator[None]:
        """While open, a step draws numbers of the global batch."""
        self._step, self._site = step, 0
        with draw_calls(self._drawn, self._whole_shape):
            yield

    # --- one draw ---

    def _drawn(self, draw: Draw, original: Any, given: dict[str, Any]) -> Any:
        if draw.alone and given.get("seed") == 0 == given.get("seed2"):  # seeded anew at each start
            given |= {"seed": self._entropy, "seed2": self._site + 1}
        given |= {name: tf.convert_to_tensor(given[name]) for name in draw.parameters}
        shape = given.get("shape")
        size = None if shape is None else _first(shape)
        if size is not None:
            sized = (
                [] if draw.after else [n for n in draw.parameters if _is_for_each(given[n], shape)]
            )
        else:  # as many numbers as parameters
            sized = [name for name in draw.parameters if given[name].shape.rank]
            size = _first(tf.shape(given[sized[0]])) if sized else None
            shape = None
        part = self._part(size)
        if part is None:
            return self._called(draw, original, given)
        wide = given | {name: part.spread(given[name]) for name in sized}
        if shape is not None:
            wide["shape"] = part.whole_shape(shape)
        return part.taken(self._called(draw, original, wide))

    def _called(self, draw: Draw, original: Any, given: dict[str, Any]) -> Any:
        """Call an operation; in a trial, call the replacement of one with a state of its own."""
        if draw.alone is None:
            return original(**given)
        alone, number = draw.alone, self._site
        if tf.executing_eagerly():
            return alone(given, [1, number]) if self._is_tried else original(**given)
        return tf.cond(
            self._trial >= 0, lambda: alone(given, [1, number]), lambda: original(**given)
        )

    def _whole_shape(self, shape: Any) -> Any:
        part = self._part(_first(shape))
        return shape if part is None else part.whole_shape(shape)

    # --- which draws are of rows ---

    def _part(self, size: Any) -> _Part | None:
        """How a size of a draw follows from the rows of the batch; None if it does not."""
        site, self._site = (self._step, self._site), self._site + 1
        if size is None:
            return None
        known = tf.get_static_value(size)
        if known is None:
            self._symbolic.add(site)
            return _Part(self._place, size)
        if self.span is None:
            self._fixed.add(site)  # traced for any number of rows
            return None
        if self.watched:
            self._sizes.setdefault(site, {})[self.span.rows] = int(known)
            return None
        is_of_rows = self._is_of_rows(site, int(known), self.span.rows)
        return _Part(self._place, size) if is_of_rows else None

    def _is_of_rows(self, site: tuple[str, int], size: int, rows: int) -> bool:
        if site in self._fixed:
            return False
        sizes = self._sizes.get(site, {})
        if len(sizes) < 2:  # the step could not be tried, or draws for the first time
            return size % rows == 0 if site in self._symbolic else size == rows
        return size % rows == 0 and len({n / tried for tried, n in sizes.items()}) == 1


def _announce(unknown: Sequence[str]) -> None:
    warnings.warn(
        f"TensorFlow {tf.__version__} has other random operations than hyparflow follows. "
        f"Received: no {', '.join(unknown)}. A step of the model's own that draws by what "
        "replaced them draws other numbers on each replica. Remedy: another version of TensorFlow, "
        "or one process.",
        stacklevel=users_stack_level(),
    )


class _Part:
    """The part of a draw that belongs to a replica's rows.

    If the size is not a multiple of the rows, the part is the whole draw.

    Args:
        place: start, rows and total of the batch.
        size: the size of the draw on this replica.
    """

    def __init__(self, place: Any, size: Any) -> None:
        self._size = size
        start, rows, total = tf.unstack(place.read_value())
        size = tf.cast(size, tf.int64)
        fits = (size % rows == 0) & (size > 0)
        self._times = tf.where(fits, size // rows, 1)
        self._start = tf.where(fits, start, 0)
        self._rows = tf.where(fits, rows, size)
        self._total = tf.where(fits, total, size)

    def whole_shape(self, shape: Any) -> Any:
        """The shape of the global batch's draw."""
        shape = tf.convert_to_tensor(shape)
        first = tf.cast(self._times * self._total, shape.dtype)
        return tf.concat([[first], shape[1:]], 0)

    def spread(self, values: Any) -> Any:
        """The values of this replica's rows, at their places in an array for the global batch."""
        apart = self._apart(values, self._rows)
        after = self._total - self._start - self._rows
        around = tf.pad([[self._start, after]], [[1, len(apart.shape) - 2], [0, 0]])
        return self._together(tf.pad(apart, around, constant_values=1), self._total)

    def taken(self, numbers: Any) -> Any:
        """The numbers of this replica's rows, from those of the global batch."""
        apart = self._apart(numbers, self._total)
        mine = self._together(apart[:, self._start : self._start + self._rows], self._rows)
        mine.set_shape([tf.get_static_value(self._size), *numbers.shape[1:]])
        return mine

    def _apart(self, values: Any, rows: Any) -> Any:
        rest = tf.shape(values, tf.int64)[1:]
        apart = tf.reshape(values, tf.concat([[self._times, rows], rest], 0))
        apart.set_shape([None, None, *values.shape[1:]])
        return apart

    def _together(self, apart: Any, rows: Any) -> Any:
        rest = tf.shape(apart, tf.int64)[2:]
        return tf.reshape(apart, tf.concat([[self._times * rows], rest], 0))


def _is_for_each(values: Any, shape: Any) -> bool:
    """Whether `values` has one value per row of a draw of this shape, and not one for all."""
    same_rank = values.shape.rank == tf.convert_to_tensor(shape).shape.num_elements()
    return bool(same_rank and values.shape[0] != 1)


def _first(shape: Any) -> Any:
    """The first size in a shape; None for the shape of a single number."""
    shape = tf.convert_to_tensor(shape)
    if shape.dtype not in (tf.int32, tf.int64):  # the empty list
        return None
    known = tf.get_static_value(shape)
    if known is not None:
        return None if not len(known) else tf.constant(known[0])
    if shape.shape.num_elements() == 0:
        return None
    # If a shape is stacked from sizes, the first may be known.
    sizes = tf.get_static_value(shape, partial=True)
    if sizes is not None and len(sizes) and sizes[0] is not None:
        return tf.constant(sizes[0])
    return shape[0]
