"""Same numbers as plain Keras, for every layout, number of micro-batches and schedule."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, float_type, grids, on_leader, require_none
from zoo import CASES, Case

import hyparflow as hf

MICROBATCHES = (1, 2, 3, 4)
SCHEDULES = ("gpipe", "1f1b")


def prepare(case: Case) -> tuple[Any, dict[str, Any], State]:
    """The model of a case as it is before training, its data, and its state."""
    keras.utils.set_random_seed(7)
    model = case.build()
    model.optimizer.build(model.trainable_variables)
    return model, case.data(np.random.default_rng(1)), State.of(model)


def run_plain(model: Any, data: dict[str, Any], case: Case) -> Outcome:
    """Train with plain Keras."""
    keras.utils.set_random_seed(11)
    history = model.fit(**data, **case.fit, verbose=0)
    return Outcome(history.history, State.of(model))


@pytest.mark.parametrize("name", CASES)
def test_fit_equals_plain(name: str) -> None:
    """Weights, optimizer slots, random seeds and History, relative 1e-10 in float64."""
    case = CASES[name]
    with float_type("float64"):
        model, data, start = prepare(case)
        expected = on_leader(lambda: run_plain(model, data, case))
        for partitions, replicas in grids(WORLD.size):
            for microbatches in MICROBATCHES:
                if case.largest_split and microbatches * replicas > case.largest_split:
                    continue
                for schedule in SCHEDULES:
                    start.restore(model)
                    keras.utils.set_random_seed(11)
                    history = hf.fit(
                        model,
                        **data,
                        **case.fit,
                        verbose=0,
                        strategy="hybrid",
                        num_partitions=partitions,
                        num_replicas=replicas,
                        num_microbatches=microbatches,
                        schedule=schedule,
                    )
                    actual = Outcome(history.history, State.of(model))
                    layout = f"{name}: P={partitions} R={replicas} M={microbatches} {schedule}"
                    require_none(actual.compare(expected), layout)
