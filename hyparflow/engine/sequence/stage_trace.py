"""A stage that is traced on some positions of a sequence, and cut where it calls attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import choice
from hyparflow.engine.compiled.section_cut import Pause, Wanted
from hyparflow.engine.kernels.rewriter import Rewriter
from hyparflow.engine.loss.head import Labels
from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.random_bits import dropped
from hyparflow.engine.sequence.tile_head import TileHead, counted_positions
from hyparflow.engine.stages.recorded import rewritten
from hyparflow.engine.stages.stage_call import StageCall
from hyparflow.model.keras_internals.attention import (
    AttentionCall,
    attention_replaced,
    seed_of_scores,
)
from hyparflow.model.keras_internals.dropout import dropout_replaced
from hyparflow.model.keras_internals.positions import positions_from
from hyparflow.model.keras_internals.time_distributed import positions_as_rows

__all__ = ["CutStage", "StageTrace"]


@dataclass
class StageTrace:
    """What is traced of a stage.

    Attributes:
        body: the computation.
        layers: its attention layers.
        weights: the variables (TensorFlow's) that the stage trains.
        gradient_inputs: positions of the inputs that need a gradient.
        gradient_outputs: positions of the outputs whose gradient comes back.
        head: loss and metrics, on the last stage only.
        rewriter: puts in faster kernels; None leaves all as it is.
    """

    body: StageCall
    layers: Sequence[Any]
    weights: Sequence[Any]
    gradient_inputs: Sequence[int] = ()
    gradient_outputs: Sequence[int] = ()
    head: TileHead | None = None
    rewriter: Rewriter | None = None


class CutStage:
    """A traced stage in sections.

    Attributes:
        sections: the sections, which run by `given`.
        attention: (core, sizes of a head of keys and of values, type) of each call of attention.
        seeds: what Keras's dropout was given as seed, for each of its calls.
        seeds_of_scores: the same for the scores of each attention; None where nothing is dropped.
        structure: the results of the last section, None for those that are no tensors.
        rewritten: how often which faster kernel was put in.

    Args:
        stage: what is traced.
        cores: id of an attention layer -> what it computes.
        types: of (position of the first token, inputs, share or labels).
        training: whether there are backwards.
        has_head: whether the last section is loss and metrics; if not, it gives outputs.
        lengths_repeat: whether sequences have few lengths, again and again.
    """

    def __init__(
        self,
        stage: StageTrace,
        cores: Mapping[int, AttentionCore],
        types: Any,
        training: bool,
        has_head: bool,
        lengths_repeat: bool = True,
    ) -> None:
        self._lengths_repeat = lengths_repeat
        self._stage, self._training, self._has_head = stage, training, has_head
        self._cores = cores
        self.attention: list[tuple[AttentionCore, tuple[int, int], Any]] = []
        self.seeds: list[Any] = []
        self.seeds_of_scores: list[Any] = []
        self.structure: list[bool] = []
        self.rewritten: Counter[str] = Counter()
        self.sections = choice.compiler().sections(self._wanted, types, stage.weights, training)

    @property
    def trains(self) -> bool:
        """Whether there are backwards."""
        return self._training

    def _wanted(self, start: Any, inputs: Any, rest: Any) -> Wanted:
        """Trace the stage."""
        stage, places, further = self._stage, _Places(self), list[Any]()
        self.seeds.clear()

        def drop(x: Any, rate: float, noise_shape: Any, seed: Any) -> Any:
            if rate in (0.0, 1.0):
                return x if rate == 0.0 else tf.zeros_like(x)
            further.append(tf.compat.v1.placeholder(tf.int64, [2]))
            self.seeds.append(seed)
            return dropped(x, rate, noise_shape, further[-1], start)

        def compute() -> list[Any]:
            replaced = attention_replaced(stage.layers, places.note)
            alone = positions_as_rows()
            with replaced, positions_from(start), dropout_replaced(drop), alone:
                results = self._results(inputs, rest)
            return [*results, *places.given()]

        flat, self.rewritten = rewritten(
            compute, stage.rewriter, self._training, self._lengths_repeat
        )
        count = len(flat) - len(places.given())
        results = flat[:count]
        self.structure = [isinstance(x, tf.Tensor) for x in results]
        tokens = tf.nest.flatten(inputs)
        return Wanted(
            results=[x for x in results if isinstance(x, tf.Tensor)],
            targets=results[:1] if self._has_head else [results[n] for n in stage.gradient_outputs],
            is_loss=self._has_head,
            places=places.renewed(flat[count:]),
            tokens=tokens,
            sources=[tokens[position] for position in stage.gradient_inputs],
            further=further,
        )

    def _results(self, inputs: Any, rest: Any) -> list[Any]:
        share = rest.share if isinstance(rest, Labels) else rest
        outputs, losses = self._stage.body(inputs, self._training, share)
        if losses:  # in training only: the trial would have seen others
            raise ValueError(
                "Losses that layers add in training are not known to be sums over positions, so a "
                f"sequence cannot be divided. Received: {len(losses)} such losses. Leave "
                "`num_sequence_shards` and `num_sequence_chunks` out, or train without them."
            )
        if not self._has_head:
            return outputs
        counted = counted_positions(outputs, rest)
        loss = self._stage.head.loss(outputs, rest)  # type: ignore[union-attr]
        return [loss * tf.cast(rest.seed, loss.dtype), counted]

    def core_of(self, call: AttentionCall) -> AttentionCore:
        """What a call of attention computes; it is noted."""
        core = self._cores[id(call.layer)]
        rate = core.dropout if self._training else 0.0
        sizes = int(call.key.shape[-1]), int(call.value.shape[-1])
        self.attention.append((core, sizes, call.query.dtype))
        self.seeds_of_scores.append(seed_of_scores(call.layer) if rate else None)
        return core


class _Places:
    """The places where a stage waits for attention, while it is traced."""

    def __init__(self, cut: CutStage) -> None:
        self._cut = cut
        self._waiting: list[Pause] = []
        cut.attention.clear()
        cut.seeds_of_scores.clear()

    def note(self, call: AttentionCall) -> Any:
        """Note what a layer gives to its attention; a placeholder for what comes of it."""
        core = self._cut.core_of(call)
        key, value = (x[:, :, :: core.repeats] for x in (call.key, call.value))
        given = [tf.identity(x) for x in (call.query, key, value)]
        if core.is_padded:
            given.append(_is_there(call))
        shape = [None, None, core.heads, value.shape[-1]]
        awaited = tf.compat.v1.placeholder(call.query.dtype, shape)
        self._waiting.append(Pause(given, awaited))
        return awaited

    def given(self) -> list[Any]:
        """All tensors that are given, in order."""
        return [x for place in self._waiting for x in place.given]

    def renewed(self, tensors: Sequence[Any]) -> list[Pause]:
        """The places, with what is given now in the place of what was noted."""
        following = iter(tensors)
        return [Pause([next(following) for _ in w.given], w.awaited) for w in self._waiting]


def _is_there(call: AttentionCall) -> Any:
    """Which positions of each row are no padding: those that see themselves."""
    mask = tf.cast(call.mask, tf.bool)
    if mask.shape.rank == 4:
        mask = mask[:, 0]
    if mask.shape.rank == 2:
        mask = mask[None]
    rows, length = tf.unstack(tf.shape(call.query)[:2])
    if mask.shape[1] == 1:  # the same keys for all queries
        seen = mask[:, 0]
    else:
        seen = tf.linalg.diag_part(tf.broadcast_to(mask, [tf.shape(mask)[0], length, length]))
    return tf.broadcast_to(seen, [rows, length])
