"""Which operations treat each position of a sequence alone, tried out and not declared.

A model runs on a few random tokens, whole and in two parts, the second one with its positions told,
and with given random numbers in the place of what comes of attention. All tensors are compared, so
the first operation that mixes positions can be named.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.sequence.attention_core import AttentionCore
from hyparflow.engine.sequence.attention_trial import MaskFound, core_of, mask_of
from hyparflow.engine.sequence.cores_found import CoresFound
from hyparflow.engine.sequence.parts_of_tensors import Parts, compare_parts, padded_positions
from hyparflow.engine.sequence.small_windows import SmallWindows
from hyparflow.engine.sequence.tried_model import ROWS, ModelRun, TriedModel
from hyparflow.engine.sequence.undividable import REMEDY, undividable
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.attention import AttentionCall
from hyparflow.model.keras_internals.dropout import other_random_layers
from hyparflow.model.keras_internals.layers import all_layers, seed_states
from hyparflow.model.keras_internals.positions import positions_from, rotary_layers
from hyparflow.model.keras_internals.stand_in_weights import StandInWeights
from hyparflow.pipeline.attention_pattern import AttentionPattern

__all__ = ["find_cores"]

_SHORT, _LONG = 8, 24  # tokens that a model is tried on
# The same to find what reaches far: at most, and fewer if they took more operations than these.
_FAR, _MOST_WORK = 256, 1e11
_SEEDS = 3  # draws of tokens that the model compares with
_REACH = 100  # positions between those that a convolution takes: farther ones are refused at once


def find_cores(graph: FlatGraph, length: int) -> CoresFound:
    """What the attention layers of a model compute, if all else treats each position alone.

    Args:
        graph: the model's.
        length: the length of its sequences.

    Raises:
        ValueError: naming the operation that does not, or the layer that is not known.
    """
    trial = _Trial(graph, length)
    if not trial.model.layers:
        raise ValueError(
            "A model whose sequences are divided must have attention that computes by "
            "`_compute_attention`, as Keras's and KerasHub's layers have. Received: a model of "
            f"class '{type(graph.model).__name__}' without such a layer. {REMEDY}"
        )
    layers = all_layers(graph.model)
    with StandInWeights():
        found = trial.found()
    _require_known(layers)
    with StandInWeights(collect_losses=True) as scope:
        trial.train()
    if scope.losses:
        named = [x.name for x in layers if getattr(x, "activity_regularizer", None) is not None]
        which = f"the layers {named}" if named else "layers"
        raise undividable(
            f"{which} add losses (`add_loss`, activity regularizers), which are not known to be "
            "sums over positions"
        )
    seeds = {id(state) for state in seed_states(graph.model)}
    for variable in graph.model.variables:
        if scope.is_written(variable) and id(variable) not in seeds:
            raise undividable(f"'{variable.path}' changes in each call, as it would for each chunk")
    return found


def _require_known(layers: Sequence[Any]) -> None:
    """Check what no trial can see: layers that normalize over positions, or draw numbers."""
    for layer in layers:
        if isinstance(layer, keras.layers.Conv1D | keras.layers.SeparableConv1D):
            reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
            if reach > _REACH:
                raise undividable(f"'{layer.name}' takes positions that are {reach} apart")
        if isinstance(layer, keras.layers.BatchNormalization):
            raise undividable(f"'{layer.name}' normalizes over all positions of a batch")
        if isinstance(layer, keras.layers.TimeDistributed) and _draws(layer):
            raise undividable(f"'{layer.name}' drops out other values in each step of a loop")
    for layer in other_random_layers(layers):
        raise undividable(f"'{layer.name}' draws random numbers in another way than by dropout")


def _draws(layer: Any) -> bool:
    """Whether anything within a layer drops out values."""
    inside = all_layers(layer, include_self=False)
    return any(isinstance(x, keras.layers.Dropout) and x.rate for x in inside)


class _Trial:
    def __init__(self, graph: FlatGraph, length: int) -> None:
        self._graph, self._length = graph, length
        self._short = min(_SHORT, length)
        self._lengths = sorted({self._short, min(_LONG, length)})
        self._windows = SmallWindows(all_layers(graph.model), _LONG, length)
        work = 4 * ROWS * sum(math.prod(v.shape) for v in graph.model.variables)
        self._far = min(length, max(_LONG, min(_FAR, int(_MOST_WORK / max(1, work)))))
        self.model = TriedModel(graph, self._far)

    def found(self) -> CoresFound:
        """See `find_cores`."""
        whole, _ = self._compared(padded=False)
        padded, at_padding = self._compared(padded=True)
        self._require_near()
        with self._windows.put_in(0):
            read = self.model.traced()
        self._require_any_tokens(read.compared)
        paddings = [mask_of(call) for call in padded.calls]
        _require_one_padding(paddings)
        at_padding &= not any(found is not None and found.hides_queries for found in paddings)
        trials = [self._cores(paddings, shift) for shift in self._windows.shifts]
        cores: dict[int, AttentionCore] = {}
        for call, *seen in zip(whole.calls, *trials, strict=True):
            window = self._windows.real([core.pattern.window for core in seen])
            pattern = AttentionPattern(seen[0].pattern.causal, window)
            core = dataclasses.replace(seen[0], pattern=pattern)
            if cores.setdefault(id(call.layer), core) != core:
                raise undividable(
                    f"'{core.name}' computes one thing in one call, another in the next"
                )
        self._require_rotations({int(call.query.shape[3]) for call in whole.calls})
        has_masks = any(call.mask is not None for call in whole.calls)
        sizes = {id(c.layer): (int(c.key.shape[3]), int(c.value.shape[3])) for c in whole.calls}
        return CoresFound(
            cores=cores,
            sizes=sizes,
            tried=max(self._lengths),
            at_padding=at_padding,
            constants=read.constants if has_masks else {},
            stored=read.stored if has_masks else set(),
        )

    def train(self) -> None:
        """Compare as in training."""
        self._compared(padded=False, training=True)

    def _cores(self, paddings: Sequence[MaskFound | None], shift: int) -> list[AttentionCore]:
        """What each call of attention computes, with small windows."""
        with self._windows.put_in(shift):
            runs = {length: self._run(length) for length in self._lengths}
            found = []
            for number, (call, padding) in enumerate(
                zip(runs[max(self._lengths)].calls, paddings, strict=True)
            ):
                masks = {length: mask_of(run.calls[number]) for length, run in runs.items()}
                found.append(_core(call, padding, masks))
        return found

    def _run(self, length: int) -> ModelRun:
        return self.model.run(self.model.tokens(length, padded=False), 0, length)

    def _require_rotations(self, sizes: set[int]) -> None:
        """Check that rotations by position do not depend on how long a sequence is."""
        for layer in rotary_layers(all_layers(self._graph.model)):
            for size in sizes:
                x = np.random.default_rng(0).standard_normal((1, self._length, 1, size))
                x = tf.constant(x, layer.compute_dtype)
                try:
                    whole = layer(x)
                except Exception:  # it rotates a part of each head
                    continue
                for start in (0, self._length - self._short):
                    with positions_from(start):
                        part = layer(x[:, start : start + self._short])
                    same = whole[:, start : start + self._short]
                    if float(tf.reduce_max(tf.abs(part - same))) > 0.05:
                        raise undividable(
                            f"'{layer.name}' rotates by other angles in longer sequences"
                        )

    # --- whole, and in two parts ---

    def _require_near(self) -> None:
        """Check that nothing mixes positions that are further apart than a short trial shows."""
        kinds = self._kinds(self._parts(self._far, padded=False, only_outputs=True))
        if Parts.OTHER in kinds:
            self._compared(padded=False, length=self._far)

    def _require_any_tokens(self, compared: Sequence[int]) -> None:
        """Check that no token of those that the model compares with makes it mix positions."""
        special = [number for number in compared if self._takes(number)]
        for seed in range(_SEEDS) if special else ():
            self.model.choose(special, seed)
            self._compared(padded=False)
            self._require_near()
        self.model.choose((), 0)

    def _takes(self, number: int) -> bool:
        """Whether the model takes a number as a token."""
        self.model.choose([number] * 6, 0)
        try:
            self._parts(self._short, padded=False, only_outputs=True)
        except ValueError:
            return False
        return True

    def _compared(
        self, padded: bool, training: bool = False, length: int | None = None
    ) -> tuple[ModelRun, bool]:
        """A run on the whole, of which two parts make the same; whether at padding as well."""
        runs = self._parts(length or self._short, padded, training)
        kinds = self._kinds(runs, padded)
        for number, kind in enumerate(kinds):
            if kind == Parts.OTHER or (kind == Parts.UNCLEAR and self._is_output(number)):
                raise undividable(self._mixes(number, [run.values() for run in runs]))
        return runs[0], Parts.PADDING not in kinds

    def _parts(
        self, length: int, padded: bool, training: bool = False, only_outputs: bool = False
    ) -> list[ModelRun]:
        """Runs on all tokens, and on two parts of them; of 8 or 256 both are odd."""
        tokens, cut = self.model.tokens(length, padded), min(length // 2 + 1, length - 1)
        return [
            self.model.run(tokens, start, stop, training, only_outputs)
            for start, stop in ((0, length), (0, cut), (cut, length))
        ]

    @staticmethod
    def _kinds(runs: Sequence[ModelRun], padded: bool = False) -> list[Parts]:
        values = [run.values() for run in runs]
        length = runs[0].length
        there = padded_positions(ROWS, length) if padded else np.ones((ROWS, length), bool)
        return [
            compare_parts(whole, first, second, there)
            for whole, first, second in zip(*values, strict=True)
        ]

    def _is_output(self, number: int) -> bool:
        return number in self._graph.outputs or number >= len(self._graph.tensors)

    def _mixes(self, number: int, values: list[list[np.ndarray]]) -> str:
        """What mixes positions: the operation that makes a tensor, or the first before it that
        makes one without an axis of positions.
        """
        graph, length = self._graph, values[0][self._graph.inputs[0]].shape[1]
        everything = np.ones((ROWS, length), bool)
        name = None
        if number < len(graph.tensors):
            for before in sorted(graph.ancestors(number)):
                whole, first, second = (run[before] for run in values)
                kind = compare_parts(whole, first, second, everything)
                if kind == Parts.UNCLEAR and before not in graph.inputs:
                    number = before
                    break
            name = graph.maker(number)
        where = "the queries, keys or values of an attention layer" if name is None else f"'{name}'"
        return (
            f"what {where} computes for a position depends on other positions, or on how many come "
            "before. (What counts positions can be replaced: give them as an input of the model, "
            "or by keras_hub.layers.PositionEmbedding)"
        )


def _core(
    call: AttentionCall, padding: MaskFound | None, masks: Mapping[int, MaskFound | None]
) -> AttentionCore:
    """What a call computes, with its masks for some lengths of sequences."""
    name, last = call.layer.name, masks[max(masks)]
    if padding is None or last is None:
        raise undividable(f"the mask of '{name}' is neither causal, full, a window nor padding")
    for length, found in masks.items():
        window = last.pattern.window
        expected = last.pattern
        if window is not None and window >= length:  # too wide to be seen
            expected = AttentionPattern(expected.causal)
        if found is None or found.pattern != expected:
            raise undividable(f"the mask of '{name}' depends on how long a sequence is")
    try:
        return core_of(call, last, padding.padding is not None)
    except ValueError as error:
        raise undividable(str(error)) from None


def _require_one_padding(found: Sequence[MaskFound | None]) -> None:
    masks = [one.padding for one in found if one is not None and one.padding is not None]
    if any(not np.array_equal(mask, masks[0]) for mask in masks):
        raise undividable("attention layers have different padding")
