"""The contract's models with compiled units, deferred weights, recomputation and sharded state."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, float_type, grids, on_leader, require_none
from zoo import CASES, Case

import hyparflow as hf
from hyparflow.model.unit_layout import UNITS


@dataclass(frozen=True)
class Features:
    """Which of the four are on."""

    units: bool
    deferred: bool
    recompute: str | None
    sharded: bool


@dataclass(frozen=True)
class Layout:
    """Where parts of the model and of batches are."""

    partitions: int
    replicas: int
    microbatches: int
    schedule: str = "1f1b"


EVERY = [
    Features(*on)
    for on in itertools.product(
        (True, False), (True, False), ("block", "segments", None), (True, False)
    )
]


def layouts(case: Case) -> list[Layout]:
    """Each grid with micro-batches; those that a case with random layers has the numbers in."""
    schedules = ("zero-bubble", "1f1b", "interleaved")
    found = [
        Layout(p, r, m, schedules[p % 3] if p > 1 else "1f1b")
        for p, r in grids(WORLD.size)
        for m in ((2,) if case.largest_split is None else (1,))
    ]
    return [one for one in found if one.replicas * one.microbatches <= (case.largest_split or 99)]


def differs(layout: Layout, features: Features) -> bool:
    """Without partitions there is nothing to defer, without replicas nothing to shard."""
    deferred = layout.partitions > 1 or not features.deferred
    return deferred and (layout.replicas > 1 or not features.sharded)


def chosen(name: str, everything: bool) -> list[tuple[Layout, Features]]:
    """What a case is trained with: with all four at once, or with every choice of them."""
    number, possible = list(CASES).index(name), layouts(CASES[name])
    together = Features(True, True, ("block", "segments")[number // 2 % 2], True)
    if everything:
        return [both for both in itertools.product(possible, EVERY) if differs(*both)] + [
            (layout, together) for layout in possible
        ]
    # Both kinds of recomputation and all grids have their turns among the cases; on 4 ranks the
    # one grid in which all four do something.
    both = [one for one in possible if differs(one, together)] or possible
    return [(both[number % len(both)], together)]


def twice(fit: Any, case: Case, deferred: bool, first: dict[str, Any]) -> Outcome:
    """Train twice, so that the second call begins where the first has left weights and slots."""
    keras.utils.clear_session(free_memory=False)  # names of metrics count those made before
    keras.utils.set_random_seed(7)
    with hf.deferred() if deferred else contextlib.nullcontext():
        model = case.build()
    data = case.data(np.random.default_rng(1))
    history: dict[str, list[float]] = {}
    for more in (first, {}):
        keras.utils.set_random_seed(11)
        seen = fit(model, **data, **case.fit, verbose=0, **more).history
        history = {key: history.get(key, []) + values for key, values in seen.items()}
    return Outcome(history, State.of(model))


@pytest.mark.parametrize("name", CASES)
def test_together(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, slots, seeds and History of plain Keras, relative 1e-10 in float64."""
    case, faults = CASES[name], []
    with float_type("float64"):
        expected = on_leader(lambda: twice(keras.Model.fit, case, False, {}))
        for layout, features in chosen(name, request.config.getoption("--everything")):
            monkeypatch.setenv(UNITS, "all" if features.units else "0")

            def fit(
                *args: Any, layout: Layout = layout, on: Features = features, **kwargs: Any
            ) -> Any:
                return hf.fit(
                    *args,
                    **kwargs,
                    num_partitions=layout.partitions,
                    num_replicas=layout.replicas,
                    num_microbatches=layout.microbatches,
                    schedule=layout.schedule,
                    recompute=on.recompute,
                    shard_optimizer=on.sharded,
                )

            left = {"gather": False} if features.deferred else {}
            found = twice(fit, case, features.deferred, left)
            faults += [f"{layout}, {features}: {text}" for text in found.compare(expected)]
    require_none(faults, name)
