"""Measures the costs of a training step besides the model's operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.recorder import Recorder
from hyparflow.engine.compiled.accumulator import Accumulator
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.gradients.microbatch_sum import GradientSum
from hyparflow.engine.gradients.reducer import Reducer
from hyparflow.model.keras_internals.deferred_variables import present
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.planning.costs.overheads import Overheads

__all__ = ["measure_overheads", "median_seconds"]

_SAMPLED, _SAMPLED_BYTES = 24, 1 << 26  # weights that an optimizer is tried with, at most
_OPERATION = 14e3  # bytes of memory for a compiled operation of an update, as was measured
_LARGE = 2**22  # numbers in an array that tells the speed of memory


def measure_overheads(weights: Sequence[Any], optimizer: Any, call: float) -> Overheads:
    """Measure on this machine, with the model's own weights and a copy of its optimizer.

    Args:
        weights: the trained variables.
        optimizer: the model's optimizer, or None.
        call: seconds of a compiled call that computes nothing.
    """
    default = Overheads()
    chosen = _sampled(weights)
    if not chosen:
        return Overheads(call=call + default.call)
    with present(chosen):
        return _measured(chosen, optimizer, call)


def _sampled(weights: Sequence[Any]) -> list[Any]:
    """Some of the weights, which fit in any memory together with their gradients and slots."""
    chosen, size = [], 0
    for weight in list(weights)[:: max(1, len(weights) // _SAMPLED)]:
        if size + bytes_of(weight) <= _SAMPLED_BYTES:
            chosen.append(weight)
            size += bytes_of(weight)
    return chosen or sorted(weights, key=bytes_of)[:1]


def _measured(chosen: list[Any], optimizer: Any, call: float) -> Overheads:
    default = Overheads()
    gradients = [tf.ones(v.shape, v.dtype) for v in chosen]
    size = sum(map(bytes_of, chosen))
    large = np.ones(_LARGE, np.float32)
    per_byte = median_seconds(lambda: large + large) / large.nbytes

    accumulator = Accumulator([v.value for v in chosen])
    add = FixedFunction(accumulator.add)
    adding = max(0.0, median_seconds(lambda: add(gradients)) - call)
    add_weight = max(0.0, adding - 3 * per_byte * size) / len(chosen)
    applying, program = 0.0, 0.0
    if optimizer is not None:
        apply = _applied(optimizer, chosen)
        applying = median_seconds(lambda: apply(gradients))
        program = _OPERATION * len(apply.concrete(gradients).graph.get_operations()) / len(chosen)
    reducing = median_seconds(_reduced(chosen, gradients))
    apply_weight = max(0.0, applying - 4 * per_byte * size) / len(chosen)
    return Overheads(
        call=call + default.call,
        accumulate=(adding - add_weight * len(chosen)) / size,
        accumulate_weight=add_weight,
        apply=(applying - apply_weight * len(chosen)) / size,
        apply_weight=apply_weight,
        program_of_update=program,
        reduce=4 * per_byte,
        reduce_weight=max(0.0, reducing - 4 * per_byte * size) / len(chosen),
    )


class _Done:
    """A sum that is done."""

    def wait(self) -> None: ...


class _Alone:
    """A communicator of one rank, which sends nothing."""

    rank, size = 0, 2
    recorder = Recorder()

    def all_gather_objects(self, value: Any, what: str) -> list[Any]:
        return [value]

    def start_sum(self, array: np.ndarray, what: str, mine: np.ndarray) -> _Done:
        array[...] = mine
        return _Done()


def _reduced(weights: list[Any], gradients: list[Any]) -> Callable[[], Any]:
    """A function that does the work of a sum over replicas, without its messages."""
    reducer = Reducer(weights, _Alone(), [])  # type: ignore[arg-type]

    def run() -> None:
        total = GradientSum()
        total.add(gradients)
        reducer.reduce(total)

    return run


def _applied(optimizer: Any, weights: list[Any]) -> FixedFunction:
    """A function of gradients: a step of a copy of `optimizer` on copies of `weights`."""
    copy = type(optimizer).from_config(optimizer.get_config())
    variables = [keras.Variable(v, name=f"copy_{i}") for i, v in enumerate(weights)]
    copy.build(variables)
    return FixedFunction(lambda values: copy.apply(values))


def median_seconds(run: Callable[[], Any], times: int = 9) -> float:
    """The median time of `run`, after a first run that compiles."""
    run()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)
