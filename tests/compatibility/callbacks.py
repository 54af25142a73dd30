"""Keras's callbacks: what they leave is what they leave in one process."""

from __future__ import annotations

import contextlib
import csv
import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import hyparflow as hf
from compatibility.rows import works
from compatibility.runs import Runs, arrays, classifier

CALLBACKS = "Callbacks"


def names() -> list[str]:
    """All that Keras has."""
    return [name for name in dir(keras.callbacks) if name[0].isupper()]


def optimizer() -> Any:
    """One with a state."""
    return keras.optimizers.SGD(0.1, momentum=0.9)


def fit(run: Any, callbacks: Any, model: Any = None, **arguments: Any) -> Any:
    """Train with callbacks, in three steps an epoch, and validate."""
    x, y = arrays()
    model = model or classifier(optimizer=optimizer())
    held = (x[:19] + 0.5, y[:19])
    given = {"batch_size": 20, "epochs": 4, "validation_data": held} | arguments
    run.fit(model, x, y, callbacks=callbacks, **given)
    return model


def comparing(make: Callable[[], Any], **arguments: Any) -> Callable[[Runs], None]:
    """A check that training with the callbacks of `make` leaves the same."""
    return lambda runs: runs.compare(lambda run: fit(run, make(), **arguments))


def states(folder: Path) -> dict[str, Any]:
    """The variables in each file of models or weights in `folder`."""
    from contract import State

    found = {}
    for path in sorted(folder.rglob("*.keras")):
        found[path.name] = State.of(keras.models.load_model(path)).values
    for path in sorted(folder.rglob("*.h5")):
        model = classifier(optimizer=optimizer())
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        found[path.name] = State.of(model).values
    return found


# --- what stops and steers ---

works(CALLBACKS, "EarlyStopping", note="restore_best_weights, too")(
    comparing(
        lambda: keras.callbacks.EarlyStopping(
            "val_loss", patience=2, min_delta=0.3, restore_best_weights=True
        ),
        epochs=9,
    )
)
works(CALLBACKS, "LearningRateScheduler")(
    comparing(lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / (1 + epoch)))
)
works(CALLBACKS, "ReduceLROnPlateau")(
    comparing(lambda: keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.2))
)


@works(CALLBACKS, "TerminateOnNaN")
def check_nan(runs: Runs) -> None:
    def train(run: Any) -> Any:
        x, y = arrays()
        x[30] = np.nan
        model, batches = classifier(), []
        counting = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: batches.append(batch)
        )
        callbacks = [keras.callbacks.TerminateOnNaN(), counting]
        run.fit(model, x, y, batch_size=10, epochs=3, shuffle=False, callbacks=callbacks)
        stopped = model.stop_training if hf.is_leader() else True
        return None, [stopped, batches if hf.is_leader() else [0, 1, 2, 3]]

    runs.compare(train)


@works(CALLBACKS, "SwapEMAWeights")
def check_swapped(runs: Runs) -> None:
    def train(run: Any) -> Any:
        optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        folder = run.folder()
        save = keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras")
        return fit(run, [swap, save], classifier(optimizer=optimizer)), states(folder)

    runs.compare(train)


# --- what is told ---


@works(CALLBACKS, "Callback", "LambdaCallback", "CallbackList", note="on rank 0, in Keras's order")
def check_events(runs: Runs) -> None:
    class All(keras.callbacks.Callback):
        """Notes each event with its logs."""

        def __init__(self) -> None:
            super().__init__()
            self.events: list[Any] = []

    def note(event: str) -> Callable[..., None]:
        def noted(self: All, *args: Any, logs: Any = None) -> None:
            if args and isinstance(args[-1], dict | type(None)):
                *args, logs = args  # type: ignore[assignment]
            values = {key: float(value) for key, value in (logs or {}).items()}
            self.events.append([event, [str(arg) for arg in args], values])

        return noted

    for phase in ("train", "test"):
        for event in ("begin", "end", "batch_begin", "batch_end"):
            setattr(All, f"on_{phase}_{event}", note(f"{phase} {event}"))
    All.on_epoch_begin, All.on_epoch_end = note("epoch begin"), note("epoch end")

    def train(run: Any, listed: bool) -> Any:
        callback, begun = All(), []
        callbacks = [
            callback,
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: begun.append(1)),
        ]
        model = classifier()
        if listed:
            callbacks = keras.callbacks.CallbackList(callbacks, add_history=True, model=model)
        fit(run, callbacks, model, epochs=2)
        events = callback.events if run.is_plain or hf.is_leader() else None
        assert events or not run.is_plain and callback.events == begun == []
        return model, from_leader(run, [events, len(begun)])

    for listed in (False, True):
        runs.compare(lambda run, listed=listed: train(run, listed))


def from_leader(run: Any, value: Any) -> Any:
    """The leader's `value`, on every rank."""
    from contract import WORLD

    return value if run.is_plain else WORLD.bcast(value)


@works(CALLBACKS, "History", note="the same on every rank; also as an argument")
def check_history(runs: Runs) -> None:
    def train(run: Any) -> Any:
        given = keras.callbacks.History()
        model = fit(run, [given])
        return model, [model.history.epoch, from_leader(run, given.history)]

    runs.compare(train)


@works(CALLBACKS, "ProgbarLogger", note="shown once")
def check_progress(runs: Runs) -> None:
    def train(run: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as written:
            model = fit(run, keras.callbacks.ProgbarLogger(), verbose=2, epochs=2)
        said = [line for line in written.getvalue().splitlines() if line.startswith("Epoch")]
        assert run.is_plain or hf.is_leader() or not written.getvalue()
        return model, from_leader(run, said)

    runs.compare(train)


@works(CALLBACKS, "CSVLogger")
def check_csv(runs: Runs) -> None:
    def train(run: Any) -> Any:
        path = run.folder() / "log.csv"
        for append in (False, True):
            model = fit(run, [keras.callbacks.CSVLogger(path, append=append)], epochs=2)
        with path.open() as file:
            rows = list(csv.DictReader(file))
        return model, [{key: float(value) for key, value in row.items()} for row in rows]

    runs.compare(train)


@works(CALLBACKS, "TensorBoard", note="event files once")
def check_tensorboard(runs: Runs) -> None:
    pytest.importorskip("tensorboard")
    import tensorflow as tf

    def train(run: Any) -> Any:
        folder = run.folder()
        board = keras.callbacks.TensorBoard(folder, histogram_freq=1, update_freq=2)
        model = fit(run, [board], epochs=2)
        files = sorted(folder.rglob("events*"))
        told = []
        for path in files:
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars" or "loss" in value.tag:
                        told.append([value.tag, event.step, float(tf.make_ndarray(value.tensor))])
        assert any(tag.endswith("loss") for tag, _, _ in told)
        # hyparflow adds the throughput of the ranks.
        paces = ("per_second", "idle_share", "communication_share")
        numbers = [[tag, *rest] for tag, *rest in told if not tag.endswith(paces)]
        return model, [[path.parent.name for path in files], sorted(numbers)]

    runs.compare(train, tolerance=1e-6)  # the files hold float32


@contextlib.contextmanager
def receiver() -> Iterator[tuple[str, list[Any]]]:
    """A server on this machine that keeps what is posted to it."""
    received: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            length = int(self.headers["Content-Length"])
            received.append(json.loads(self.rfile.read(length)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@works(CALLBACKS, "RemoteMonitor", note="told once")
def check_remote(runs: Runs) -> None:
    pytest.importorskip("requests")

    def train(run: Any) -> Any:
        with receiver() as (address, received):
            monitor = keras.callbacks.RemoteMonitor(root=address, path="/", send_as_json=True)
            model = fit(run, [monitor])
            assert run.is_plain or hf.is_leader() or not received
        return model, from_leader(run, received)

    runs.compare(train)


# --- what is saved ---


@works(
    CALLBACKS,
    "ModelCheckpoint",
    note="per epoch, every so many batches, best only, weights only; written once",
)
def check_checkpoints(runs: Runs) -> None:
    kinds: list[dict[str, Any]] = [
        {"filepath": "{epoch}-{val_loss:.6f}.keras"},
        {"filepath": "{epoch}-{batch}.keras", "save_freq": 4},
        {"filepath": "best.keras", "save_best_only": True, "monitor": "val_loss"},
        {"filepath": "{epoch}.weights.h5", "save_weights_only": True},
    ]

    def train(run: Any, kind: dict[str, Any]) -> Any:
        folder = run.folder()
        path = folder / kind["filepath"]
        model = fit(run, [keras.callbacks.ModelCheckpoint(**(kind | {"filepath": path}))])
        found = states(folder)
        assert found
        return model, found

    for kind in kinds:
        runs.compare(lambda run, kind=kind: train(run, kind))


class Stop(keras.callbacks.Callback):
    """Breaks the training off in the middle of an epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations == 5:
            raise InterruptedError("the job has come to its time limit")


@works(
    CALLBACKS,
    "BackupAndRestore",
    note="after an end of the job, a new one goes on and ends with the same weights",
)
def check_backup(runs: Runs) -> None:
    def train(run: Any, interrupted: bool) -> Any:
        folder = run.folder()

        def backup() -> Any:
            return keras.callbacks.BackupAndRestore(folder / "backup")

        if interrupted:
            with pytest.raises(InterruptedError):
                fit(run, [backup(), Stop()], shuffle=False)
        keras.utils.set_random_seed(7)
        model = fit(run, [backup()], shuffle=False)
        assert not list(folder.rglob("*.h5"))
        return model, [model.history.epoch, model.get_weights()]

    runs.compare(lambda run: train(run, interrupted=True))
    runs.compare(lambda run: (None, train(run, interrupted=not run.is_plain)[1][1]))


@works(CALLBACKS, "OrbaxCheckpoint", note="written once")
def check_orbax(runs: Runs) -> None:
    pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")

    def train(run: Any) -> Any:
        folder = run.folder()
        model = fit(run, [keras.callbacks.OrbaxCheckpoint(folder, save_freq="epoch")])
        saved = classifier(optimizer=optimizer())
        saved.optimizer.build(saved.trainable_variables)
        saved.load_weights(folder)
        return model, saved.get_weights()

    runs.compare(train)
