"""The contract: what `hf.fit` leaves behind is what plain `model.fit` leaves behind."""

from __future__ import annotations

import contextlib
import time
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from mpi4py import MPI

from hyparflow.model.keras_internals.layers import seed_states

TOLERANCE = 1e-10  # relative, in float64
WORLD = MPI.COMM_WORLD


@contextlib.contextmanager
def float_type(name: str) -> Iterator[None]:
    """Build models in this float type."""
    before = keras.config.floatx()
    _set_float_type(name)
    try:
        yield
    finally:
        _set_float_type(before)


def _set_float_type(name: str) -> None:
    keras.config.set_floatx(name)
    # A policy once set stays, whatever the float type becomes, so it is set anew.
    keras.config.set_dtype_policy(name)


def grids(size: int) -> list[tuple[int, int]]:
    """All (partitions, replicas) of `size` ranks."""
    return [(p, size // p) for p in range(1, size + 1) if size % p == 0][::-1]


@dataclass
class State:
    """Everything that training changes, by name."""

    values: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: Any) -> State:
        return cls({name: v.numpy() for name, v in _variables(model).items()})

    def restore(self, model: Any) -> None:
        """Put a model back to this state."""
        for name, variable in _variables(model).items():
            variable.assign(self.values[name])


def _variables(model: Any) -> dict[str, Any]:
    groups = {
        "weight": model.weights,
        "slot": model.optimizer.variables,
        "seed": seed_states(model),
    }
    return {
        f"{group} {index} {variable.shape}": variable  # no names: those count creations
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }


def differences(
    name: str, actual: Any, expected: Any, tolerance: float, exact: Any = None
) -> list[str]:
    """What differs by more than `tolerance` relative to the largest expected value.

    Two that are rounded by chance are up to twice as far from each other as one is from the
    `exact` values, so where those are given, that may be the difference, too.
    """
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    if actual.shape != expected.shape:
        return [f"{name}: shape {actual.shape} instead of {expected.shape}"]
    if not actual.size:
        return []
    scale = max(float(np.max(np.abs(expected))), 1e-6)
    rounding = 0.0 if exact is None else float(np.max(np.abs(np.asarray(exact, float) - expected)))
    worst = float(np.max(np.abs(actual - expected)))
    allowed = max(tolerance * scale, 2 * rounding)
    return [] if worst <= allowed else [f"{name}: {worst:.2e} of {scale:.2e}"]


@dataclass
class Outcome:
    """A History and the state after training."""

    history: dict[str, list[float]]
    state: State

    def compare(
        self, expected: Outcome, tolerance: float = TOLERANCE, exact: Outcome | None = None
    ) -> list[str]:
        """Every entry that is not the expected one, see `differences`."""
        known = {} if exact is None else exact.history | exact.state.values
        faults = []
        if list(self.history) != list(expected.history):
            faults.append(f"History has {list(self.history)} not {list(expected.history)}")
        for key, values in expected.history.items():
            faults += differences(key, self.history.get(key, []), values, tolerance, known.get(key))
        for key, values in expected.state.values.items():
            faults += differences(key, self.state.values[key], values, tolerance, known.get(key))
        return faults


@contextlib.contextmanager
def _optimizers_built_first() -> Iterator[None]:
    """Have optimizers of plain Keras make their variables before a step is traced, for the time.

    Left to make them in its first step, Keras traces that twice. The numbers are the same: it
    builds them for the same weights.
    """
    fit = keras.Model.fit

    def built_first(model: Any, *args: Any, **kwargs: Any) -> Any:
        usual = type(model).train_step is keras.Model.train_step and not model.run_eagerly
        if usual and model.built and model.optimizer and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        return fit(model, *args, **kwargs)

    with unittest.mock.patch.object(keras.Model, "fit", built_first):
        yield


def on_leader(function: Callable[[], Any]) -> Any:
    """What `function` returns on rank 0, on all ranks; the others leave the cores to it."""
    value = None
    if WORLD.rank == 0:
        with _optimizers_built_first():
            value = function()
    request = WORLD.Ibarrier()
    while not request.Test():
        time.sleep(0.01)
    return WORLD.bcast(value)


def fit_on_leader(model: Any, *args: Any, **kwargs: Any) -> dict[str, list[float]]:
    """Train on rank 0 with plain Keras; the History, and the model as it is then, on all ranks."""

    def train() -> tuple[dict[str, list[float]], State]:
        return model.fit(*args, **kwargs).history, State.of(model)

    history, state = on_leader(train)
    if WORLD.rank:
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        state.restore(model)
    return history


def require_none(faults: list[str], what: str) -> None:
    """Fail on all ranks if any rank has faults."""
    everyone = WORLD.allgather(faults)
    lines = [f"rank {rank}: {fault}" for rank, found in enumerate(everyone) for fault in found]
    assert not lines, "\n".join([what, *lines[:20]])
