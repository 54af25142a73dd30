"""Same numbers as plain Keras, for every layout, number of micro-batches and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import borders
import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, float_type, grids, on_leader, require_none
from references import plain_outcome, prepare
from zoo import CASES

import hyparflow as hf
from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.layers import opened_graph
from hyparflow.pipeline.schedules import SCHEDULES, placement_of

# Partitions, micro-batches and schedule, on so many ranks. For the time, a case has the first and
# one of the others, in turn; --everything has all numbers and schedules.
CHOSEN = {
    1: [(1, 1, "1f1b"), (1, 2, "1f1b")],
    2: [
        *((1, 2, "1f1b"), (2, 2, "interleaved"), (2, 3, "zero-bubble"), (2, 4, "gpipe")),
        *((2, 3, "zero-bubble-v"), (2, 1, "1f1b")),
    ],
    4: [
        *((2, 2, "interleaved"), (4, 2, "zero-bubble"), (4, 4, "1f1b"), (4, 1, "1f1b")),
        *((4, 4, "zero-bubble-v"), (2, 2, "zero-bubble-v")),
    ],
}
# Those that take longest are only cut on 2 ranks; 4 ranks try replicas of them, here or, of
# attention, in test_together.py.
ONCE = ("residual", "sequences", "attention", "siamese")
Layout = tuple[int, int, str]
# The same for the road that uses TensorFlow's public API alone, which is tried with so many cases;
# with masks in test_compiled.py.
PLAIN: dict[str, Layout] = {
    "residual": (2, 3, "zero-bubble"),
    "tied": (2, 4, "gpipe"),
    "siamese": (2, 2, "interleaved"),
}


def every_layout() -> list[Layout]:
    """All that could be; one partition has no pipeline."""
    return [
        (partitions, microbatches, schedule)
        for partitions, _ in grids(WORLD.size)
        for microbatches in (1, 2, 3, 4)
        for schedule in (SCHEDULES if partitions > 1 else ("1f1b",))
    ]


def layouts(name: str, operations: int, everything: bool) -> list[Layout]:
    """Those that a case of so many operations is tested with."""
    largest = CASES[name].largest_split or WORLD.size * 4

    def possible(layout: Layout) -> bool:
        partitions, microbatches, schedule = layout
        split = microbatches * WORLD.size // partitions
        return split <= largest and placement_of(schedule, partitions).num_stages <= operations

    if everything:
        return list(filter(possible, every_layout()))
    first, *others = filter(possible, CHOSEN.get(WORLD.size, CHOSEN[4]))
    other = others[list(CASES).index(name) % max(1, len(others)) :][:1]
    return other if name in ONCE and WORLD.size <= 2 else [first, *other]


def require_equal(name: str, chosen: Sequence[Layout] | None, everything: bool) -> None:
    """Train a case with plain Keras and with hyparflow, and compare all that training changes.

    Args:
        name: of the case.
        chosen: the layouts to try; None for those of `layouts`.
        everything: whether all are wanted.
    """
    case = CASES[name]
    with float_type("float64"):
        model, data, start = prepare(case)
        expected = plain_outcome(case)
        graph = opened_graph(model)
        operations = 0 if graph is None else len(FlatGraph(model, graph).calls)
        if chosen is None:
            chosen = layouts(name, operations, everything)
        for partitions, microbatches, schedule in chosen:
            start.restore(model)
            keras.utils.set_random_seed(11)
            history = hf.fit(
                model,
                **data,
                **case.fit,
                verbose=0,
                strategy="hybrid",
                num_partitions=partitions,
                num_microbatches=microbatches,
                schedule=schedule,
            )
            actual = Outcome(history.history, State.of(model))
            layout = f"{name}: P={partitions} M={microbatches} {schedule}"
            require_none(actual.compare(expected), layout)


@pytest.mark.parametrize("name", CASES)
def test_fit_equals_plain(name: str, request: pytest.FixtureRequest) -> None:
    """Weights, optimizer slots, random seeds and History, relative 1e-10 in float64."""
    require_equal(name, None, request.config.getoption("--everything"))


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("name", CASES)
def test_public_api_alone_equals_plain(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on the road without surgery, all ways to which are closed."""
    everything = request.config.getoption("--everything")
    if not everything and name not in PLAIN:
        pytest.skip("for its time only with --everything")
    borders.choose_anew(monkeypatch)
    monkeypatch.setenv("HYPARFLOW_COMPILED", "plain")
    borders.refuse_surgery(monkeypatch)
    require_equal(name, None if everything else [PLAIN[name]], everything)


def test_digits() -> None:
    """Real data in sizes that divide by nothing: 1797 rows, batches of 100, 3 micro-batches."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    partitions, replicas = (WORLD.size // 2, 2) if WORLD.size > 1 else (1, 1)
    with float_type("float64"):

        def train(fit: Any, **layout: Any) -> Outcome:
            keras.utils.set_random_seed(7)
            x = inputs = keras.Input((8, 8, 1))
            for filters in (4, 6):
                x = keras.layers.Conv2D(filters, 3, activation="tanh", kernel_regularizer="l2")(x)
            outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(x))
            model = keras.Model(inputs, outputs)
            optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3)
            model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
            data = (images.reshape(-1, 8, 8, 1) / 16.0, labels)
            weights = np.linspace(0.5, 1.5, len(labels))
            history = fit(model, *data, 100, epochs=2, sample_weight=weights, verbose=0, **layout)
            return Outcome(history.history, State.of(model))

        expected = on_leader(lambda: train(keras.Model.fit))
        actual = train(
            hf.fit,
            strategy="hybrid",
            num_partitions=partitions,
            num_replicas=replicas,
            num_microbatches=3,
        )
    require_none(actual.compare(expected), f"digits: P={partitions} R={replicas}")
