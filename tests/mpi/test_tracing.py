"""`fit(trace=...)`: what it writes is what was done, and it changes no number."""

from __future__ import annotations

import functools
import os
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import WORLD, Outcome, State, on_leader, require_none
from keras import layers

import hyparflow as hf
from hyparflow.comm.recorder import Event, EventKind
from hyparflow.pipeline.actions import Kind
from hyparflow.tracing.clocks import clock_offset
from hyparflow.tracing.summary import shares
from hyparflow.tracing.trace import Trace

pytestmark = [
    pytest.mark.usefixtures("in_float64"),
    pytest.mark.skipif(WORLD.size == 1, reason="one rank is plain Keras: no ranks to trace"),
]
STEPS, MICROBATCHES = 3, 2
DAMAGE = 5e-3  # seconds by which clocks of two ranks on one node may seem to differ


@pytest.fixture
def folder() -> Any:
    """A folder that all ranks know."""
    with tempfile.TemporaryDirectory() as own:
        yield Path(WORLD.bcast(own))
        WORLD.Barrier()


def train(**arguments: Any) -> Outcome:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), *(layers.Dense(8) for _ in range(4))])
    model.compile("adam", "mse")
    random = np.random.default_rng(0)
    rows = 8 * MICROBATCHES * STEPS
    x, y = random.normal(size=(rows, 6)), random.normal(size=(rows, 8))
    layout = {"num_partitions": 2, "num_replicas": WORLD.size // 2}
    history = hf.fit(
        model, x, y, batch_size=8 * MICROBATCHES, verbose=0, shuffle=False,
        num_microbatches=MICROBATCHES, **layout, **arguments,
    )  # fmt: skip
    return Outcome(dict(history.history), State.of(model))


@functools.cache
def untraced() -> Outcome:
    """What is trained without a trace."""
    return train()


def load(path: Path) -> Trace:
    """The trace, on all ranks."""
    return WORLD.bcast(on_leader(lambda: Trace.load(path)))


def test_a_trace_has_what_was_done(folder: Path) -> None:
    expected = untraced()
    actual = train(trace=folder / "new" / "trace.json", schedule="gpipe")
    require_none(actual.compare(expected, 1e-12), "with a trace")
    trace = load(folder / "new" / "trace.json")
    assert [rank.partition for rank in trace.ranks] == [0, 1] * (WORLD.size // 2)
    assert trace.arguments["schedule"] == "gpipe"
    assert trace.arguments["batch_size"] == 8 * MICROBATCHES
    for rank in trace.ranks:
        assert len(rank.steps) == STEPS
        for step in rank.steps:
            counts = Counter(event.kind for event in step)
            assert counts[EventKind.TRAINING_STEP] == counts[EventKind.DATA] == 1
            assert counts[Kind.APPLY] == counts[Kind.REDUCE] == 1
            computations = sum(counts[kind] for kind in (Kind.FORWARD, Kind.BACKWARD))
            assert computations + 2 * counts[Kind.FUSED] == 2 * MICROBATCHES
            assert (counts[EventKind.SUM] > 0) == (WORLD.size > 2)
        assert shares(rank).moved > 0


def test_a_message_is_sent_before_it_is_there(folder: Path) -> None:
    train(trace=folder / "trace.json")
    trace = load(folder / "trace.json")
    rows = 8 // trace.arguments["num_replicas"]
    pairs = [
        (0, Kind.SEND_ACTIVATION, 1, Kind.RECEIVE_ACTIVATION),
        (1, Kind.SEND_GRADIENT, 0, Kind.RECEIVE_GRADIENT),
    ]
    for sender, sends, receiver, receives in pairs:
        for there, here in zip(trace.ranks[sender].steps, trace.ranks[receiver].steps, strict=True):
            sent, received = of(there, sends), of(here, receives)
            assert len(sent) == len(received) == MICROBATCHES
            for a, b in zip(sent, received, strict=True):
                assert (a.microbatch, a.peer, b.peer) == (b.microbatch, receiver, sender)
                assert a.start < b.end + DAMAGE
                assert a.moved == b.moved == rows * 8 * 8  # of 8 features, 8 bytes each


def of(step: list[Event], kind: str) -> list[Event]:
    return sorted((event for event in step if event.kind == kind), key=lambda e: e.microbatch)


def test_a_folder_gets_a_file_for_each_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPARFLOW_TRACE", str(folder / "traces"))
    train()
    train()
    names = on_leader(lambda: sorted(path.name for path in (folder / "traces").iterdir()))
    assert WORLD.bcast(names) == ["fit-0.json", "fit-1.json"]


@pytest.mark.parametrize("trace", [3, True, "folder", "pipe", "/dev/null", "file/below"])
def test_what_is_no_file(folder: Path, trace: Any) -> None:
    """Refused on all ranks, before training."""

    def prepare() -> None:
        os.mkfifo(folder / "pipe")
        (folder / "file").touch()

    on_leader(prepare)
    if isinstance(trace, str):
        trace = folder if trace == "folder" else folder / trace
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    before = model.get_weights()
    with pytest.raises(ValueError, match="`trace` must be"):
        hf.fit(model, np.ones((8, 2)), np.ones((8, 1)), verbose=0, trace=trace)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    names = on_leader(lambda: sorted(path.name for path in folder.iterdir()))
    assert WORLD.bcast(names) == ["file", "pipe"]


def test_a_folder_that_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_leader((folder / "file").touch)
    monkeypatch.setenv("HYPARFLOW_TRACE", str(folder / "file"))
    with pytest.raises(ValueError, match="HYPARFLOW_TRACE must be a folder"):
        train()


def test_what_was_learnt_outlives_the_trace(folder: Path) -> None:
    """The place is lost while it trains."""
    path = folder / "new" / "trace.json"

    def lose(epoch: int, logs: Any) -> None:
        path.parent.rmdir()

    callback = keras.callbacks.LambdaCallback(on_epoch_end=lose)
    expected = untraced()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        require_none(train(trace=path, callbacks=[callback]).compare(expected, 1e-12), "trained")
    said = [str(warning.message) for warning in caught]
    assert any("The trace was not written" in text for text in said) == (WORLD.rank == 0)


def test_a_trace_on_some_ranks_only(folder: Path) -> None:
    with pytest.raises(ValueError, match="same argument `trace`"):
        train(trace=folder / "trace.json" if WORLD.rank else None)


def test_clocks_of_one_node() -> None:
    from hyparflow.comm.ranks import world as all_ranks

    world = all_ranks()
    assert world is not None
    assert abs(clock_offset(world)) < DAMAGE


def test_tensorboard_gets_the_pace(folder: Path) -> None:
    board = keras.callbacks.TensorBoard(folder, write_graph=False)
    begun = time.monotonic()
    outcome = train(callbacks=[board], epochs=2)
    seconds = time.monotonic() - begun
    require_none(outcome.compare(train(epochs=2), 1e-12), "with TensorBoard")

    def read() -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for path in sorted((folder / "train").glob("events*")):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    if value.tag.startswith("epoch_"):
                        entry = (event.step, float(tf.make_ndarray(value.tensor)))
                        found.setdefault(value.tag, []).append(entry)
        return found

    found = WORLD.bcast(on_leader(read))
    assert [step for step, _ in found["epoch_loss"]] == [0, 1]
    for name in ("idle_share", "communication_share", "samples_per_second"):
        assert [step for step, _ in found[f"epoch_{name}"]] == [0, 1]
    rows = 8 * MICROBATCHES * STEPS
    for epoch in (0, 1):
        idle, communication = (
            found[f"epoch_{n}_share"][epoch][1] for n in ("idle", "communication")
        )
        assert 0 < idle <= communication < 1
        assert found["epoch_samples_per_second"][epoch][1] > rows / seconds
