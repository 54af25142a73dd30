"""What plain Keras leaves of the zoo's cases, which it trains once for all tests of a job."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
from contract import Outcome, State, float_type, on_leader
from zoo import Case


def prepare(case: Case) -> tuple[Any, dict[str, Any], State]:
    """The model of a case as it is before training, its data, and its state."""
    keras.utils.clear_session(free_memory=False)  # names of metrics count what was made before
    keras.utils.set_random_seed(7)
    model = case.build()
    model.optimizer.build(model.trainable_variables)
    return model, case.data(np.random.default_rng(1)), State.of(model)


@functools.cache
def plain_outcome(case: Case, dtype: str = "float64") -> Outcome:
    """Train a case with plain Keras on the leader. All ranks must ask alike."""

    def train() -> Outcome:
        model, data, _ = prepare(case)
        keras.utils.set_random_seed(11)
        history = model.fit(**data, **case.fit, verbose=0)
        return Outcome(history.history, State.of(model))

    with float_type(dtype):
        return on_leader(train)
