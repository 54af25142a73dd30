"""Runs the same training with plain Keras and with hyparflow, and compares what they leave."""

from __future__ import annotations

import functools
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest

import hyparflow as hf

if TYPE_CHECKING:
    from contract import Outcome

# `contract` starts MPI, so it is imported where something runs: the table is written without.

__all__ = ["Hyparflow", "Plain", "Result", "Runs", "Slower", "layouts", "on_replicas"]


def layouts() -> dict[str, dict[str, Any]]:
    """The strategies that this many ranks can have, with two micro-batches."""
    from contract import WORLD

    if WORLD.size < 4:
        return {
            strategy: {"strategy": strategy, "num_microbatches": 2}
            for strategy in ("data", "model")
        }
    return {"hybrid": {"strategy": "hybrid", "num_partitions": 2, "num_microbatches": 2}}


class Plain:
    """Keras itself."""

    is_plain = True

    def folder(self) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp())

    def fit(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return model.fit(*args, **({"verbose": 0} | kwargs))

    def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return model.evaluate(*args, **({"verbose": 0} | kwargs))

    def predict(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return model.predict(*args, **({"verbose": 0} | kwargs))


@dataclass
class Hyparflow:
    """The same calls on all ranks."""

    options: dict[str, Any]
    is_plain = False

    def folder(self) -> Path:
        """A new, empty folder, the same on all ranks."""
        from contract import WORLD

        return Path(WORLD.bcast(tempfile.mkdtemp() if hf.is_leader() else None))

    def shard(self) -> tuple[int, int]:
        """The number of replicas, and which of them this rank belongs to."""
        parallel = hf.parallelize(dense_model(), **self.options)
        return parallel.num_replicas, parallel.replica

    def fit(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return hf.fit(model, *args, **({"verbose": 0} | kwargs), **self.options)

    def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return hf.evaluate(model, *args, **({"verbose": 0} | kwargs), **self.options)

    def predict(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return hf.predict(model, *args, **({"verbose": 0} | kwargs), **self.options)


@dataclass
class Result:
    """What a training leaves.

    Attributes:
        outcome: History and variables of the trained model.
        extra: anything else that must be the same, as a structure of arrays and strings.
    """

    outcome: Outcome | None = None
    extra: Any = field(default=None)

    def compare(
        self, expected: Result, tolerance: float, exact: Outcome | None = None
    ) -> list[str]:
        """What differs from the expected result, see `contract.differences`."""
        faults = []
        if self.outcome is not None:
            faults += self.outcome.compare(expected.outcome, tolerance, exact)
        return faults + _compare(self.extra, expected.extra, tolerance, "extra")


def _compare(actual: Any, expected: Any, tolerance: float, name: str) -> list[str]:
    if isinstance(expected, dict):
        if list(actual) != list(expected):
            return [f"{name}: {list(actual)} instead of {list(expected)}"]
        return [
            fault
            for key in expected
            for fault in _compare(actual[key], expected[key], tolerance, f"{name}.{key}")
        ]
    if isinstance(expected, list | tuple):
        if len(actual) != len(expected):
            return [f"{name}: {len(actual)} items instead of {len(expected)}"]
        pairs = enumerate(zip(actual, expected, strict=True))
        return [
            fault
            for index, (a, b) in pairs
            for fault in _compare(a, b, tolerance, f"{name}[{index}]")
        ]
    if isinstance(expected, str | bool | type(None)):
        return [] if actual == expected else [f"{name}: {actual!r} instead of {expected!r}"]
    from contract import differences

    return differences(name, actual, expected, tolerance)


Train = Callable[[Any], Any]


class Runs:
    """Handed to each check of the table."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def compare(
        self,
        train: Train,
        tolerance: float = 1e-10,
        dtype: str = "float64",
        exact: Train | None = None,
    ) -> None:
        """Run `train` with plain Keras on the leader and with hyparflow on all ranks.

        Args:
            train: takes a `Plain` or a `Hyparflow`; returns a model with its history, or a pair
                of that (or None) and anything else to compare.
            tolerance: relative.
            dtype: Keras's float type.
            exact: the same training, rounded less, where one machine's kernels round far more
                than another's.
        """
        from contract import float_type, require_none

        with float_type(dtype):
            expected = _expected(train)
            unrounded = None if exact is None else _expected(exact).outcome
            actual = _run(train, Hyparflow(self.options))
            require_none(actual.compare(expected, tolerance, unrounded), f"{self.options}")

    def refuse(self, train: Train, match: str) -> None:
        """Check that `train` raises the same ValueError on every rank, naming `match`."""
        from contract import WORLD, float_type

        with float_type("float64"), pytest.raises(ValueError, match=match) as caught:
            _run(train, Hyparflow(self.options))
        texts = WORLD.allgather(str(caught.value))
        assert len(set(texts)) == 1, texts
        assert "Received" in texts[0], texts[0]

    def warn(self, train: Train, match: str) -> None:
        """Check that `train` warns on the leader, naming `match`."""
        from contract import WORLD, float_type

        with float_type("float64"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _run(train, Hyparflow(self.options))
        text = WORLD.bcast(" ".join(str(warning.message) for warning in caught))
        assert re.search(match, text), text

    def quiet(self, train: Train) -> None:
        """Check that `train` works and warns of nothing."""
        from contract import WORLD, float_type

        with float_type("float64"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _run(train, Hyparflow(self.options))
        texts = WORLD.bcast([str(w.message) for w in caught if w.category is UserWarning])
        assert not texts, texts


def on_replicas() -> Runs:
    """Runs with a replica on every rank, for what cannot be cut."""
    return Runs({"strategy": "data"})


class Slower(keras.callbacks.Callback):
    """Lowers the learning rate of an optimizer of the model, batch by batch."""

    def __init__(self, optimizer_of: Callable[[Any], Any]) -> None:
        super().__init__()
        self._optimizer_of = optimizer_of

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._optimizer_of(self.model).learning_rate = 0.01 / (1 + batch)


def _run(train: Train, run: Any) -> Result:
    from contract import Outcome, State

    keras.utils.clear_session(free_memory=False)  # names are counted anew
    keras.utils.set_random_seed(7)
    returned = train(run)
    model, extra = returned if isinstance(returned, tuple) else (returned, None)
    if model is None:
        return Result(None, extra)
    history = {} if model.history is None else model.history.history
    return Result(Outcome(dict(history), State.of(model)), extra)


@functools.lru_cache(maxsize=2)
def _expected(train: Train) -> Result:
    """The result of plain Keras, which serves all layouts of a check."""
    from contract import on_leader

    return on_leader(lambda: _run(train, Plain()))


def dense_model(outputs: int = 3, activation: str | None = None) -> Any:
    """Four small layers that can be cut."""
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(7, activation="tanh"),
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )


def classifier(**arguments: Any) -> Any:
    """A compiled classifier of `arrays`, as small as can be cut; `arguments` go to `compile`."""
    hidden = keras.layers.Dense(6, activation="tanh")
    model = keras.Sequential([keras.Input((5,)), hidden, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**({"optimizer": "sgd", "loss": loss, "metrics": ["accuracy"]} | arguments))
    return model


def arrays(rows: int = 45) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes."""
    random = np.random.default_rng(0)
    return random.normal(size=(rows, 5)), random.integers(0, 3, rows)


def one_hot(rows: int = 45) -> np.ndarray:
    """The classes of `arrays` as vectors."""
    return np.eye(3)[arrays(rows)[1]]


def batches(size: int = 10, rows: int = 45, times: int = 1) -> Iterator[Any]:
    """The rows of `arrays` in batches."""
    x, y = arrays(rows)
    for _ in range(times):
        for start in range(0, rows, size):
            yield x[start : start + size], y[start : start + size]
