"""Trains with checkpoints while faults come, and writes what came of it.

    survives.py PLAN FOLDER

PLAN is a file with a `Plan` of `restart_faults.py` as JSON. FOLDER gets "checkpoints"; "launched-N"
when attempt N begins, and "first-N" when it has done its first step; "fault-N" when fault N comes,
"over-N" when another one may come in the same attempt; and "end-R", what rank R has at the end.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import keras
import numpy as np
import psutil
from mpi4py import MPI

import hyparflow as hf

ROWS, FEATURES, CLASSES = 96, 8, 3
BATCH = 8
PLAN = json.loads(Path(sys.argv[1]).read_text())
FOLDER = Path(sys.argv[2])
ATTEMPT = os.environ.get("HYPARFLOW_PROGRESS", "alone-1").rpartition("-")[2]
PAUSE = 0.03  # seconds of each step, so that saves and faults meet several
PATIENCE = 5.0  # seconds for a cable to be cut


class Faults:
    """Brings the faults of the plan about, one after the other.

    The next one may come where the attempt began after the one before, or where that is over.
    """

    def __init__(self) -> None:
        self.rank = hf.rank()
        self.step = 0
        self._begun = len(list(FOLDER.glob("fault-*")))
        signal.signal(signal.SIGUSR2, lambda *_: self._strike_here(self._last()))
        note(f"process-{self.rank}", os.getpid())
        if self.rank == 0:
            # psutil counts from the machine's start, of which it knows whole seconds.
            start = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
            launched = launcher().create_time() - psutil.boot_time() + start
            note(f"launched-{ATTEMPT}", launched)
        MPI.COMM_WORLD.Barrier()  # no fault before all have counted

    def pending(self, moment: str, step: int) -> dict[str, Any] | None:
        """The fault that comes now, if one does."""
        number = self._begun
        while is_there("over", number):
            number += 1
        if number >= len(PLAN["faults"]) or is_there("fault", number):
            return None
        fault = dict(PLAN["faults"][number], number=number)
        return fault if fault["moment"] == moment and step >= fault["step"] else None

    def soon(self, moment: str) -> None:
        """Leader: a fault comes a moment later, wherever the ranks are then."""
        fault = self.pending(moment, self.step)
        if fault is None:
            return
        is_own_error = fault["kind"] == "raise" and fault["rank"] == self.rank
        after = 0.0 if is_own_error else fault["seconds"]
        note(f"fault-{fault['number']}", {"at": time.time() + after, "step": self.step})
        if is_own_error:
            self._strike_here(fault)
        thread = threading.Timer(after, self._strike, [fault])
        thread.daemon = True
        thread.start()

    def in_save(self, moment: str, step: int) -> None:
        """A fault comes now, and what saves waits for what comes of it."""
        fault = self.pending(moment, step)
        if fault is None or moment in ("share", "record") and fault["rank"] != self.rank:
            return
        note(f"fault-{fault['number']}", {"at": time.time(), "step": step})
        if fault["kind"] == "raise" and fault["rank"] == self.rank:
            note(f"over-{fault['number']}")  # training goes on without this save
        self._strike(fault)
        time.sleep(fault["seconds"])

    @staticmethod
    def _last() -> dict[str, Any]:
        number = len(list(FOLDER.glob("fault-*"))) - 1
        return dict(PLAN["faults"][number], number=number)

    def _strike(self, fault: dict[str, Any]) -> None:
        kind, number = fault["kind"], fault["number"]
        if kind == "mpirun":
            launcher().kill()
        elif kind == "cut":
            note(f"cut-{number}")
            end = time.monotonic() + PATIENCE
            while not is_there("is-cut", number) and time.monotonic() < end:
                time.sleep(0.005)
        elif fault["rank"] == self.rank:
            self._strike_here(fault)
        else:
            other = json.loads(FOLDER.joinpath(f"process-{fault['rank']}").read_text())
            signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
            os.kill(other, signals.get(kind, signal.SIGUSR2))

    def _strike_here(self, fault: dict[str, Any]) -> None:
        kind = fault["kind"]
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "disk":
            fill_disk(fault)
        elif kind == "raise":
            fail(fault)


class Steps(keras.callbacks.Callback):
    """Lets faults come before steps, and notes when an attempt has done its first step."""

    def __init__(self, faults: Faults) -> None:
        super().__init__()
        self._faults, self._is_noted = faults, False
        self._from = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._faults.step = int(self.model.optimizer.iterations)
        if not self._is_noted:
            self._from = self._faults.step
        self._faults.soon("step")
        time.sleep(PAUSE)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self._is_noted:
            self._is_noted = True
            note(f"first-{ATTEMPT}", {"at": time.time(), "from": self._from})


def note(name: str, value: Any = None) -> None:
    """Write a small file that is there as a whole or not at all."""
    part = FOLDER / f"part-of-{os.getpid()}-{threading.get_ident()}"
    part.write_text(json.dumps(value))
    part.rename(FOLDER / name)


def is_there(what: str, number: int) -> bool:
    return FOLDER.joinpath(f"{what}-{number}").exists()


@functools.cache
def launcher() -> psutil.Process:
    """mpirun, which on another host cannot be seen."""
    return next(p for p in psutil.Process().parents() if p.name() in ("mpirun", "prterun"))


def fill_disk(fault: dict[str, Any]) -> None:
    """No file may become longer than so many bytes, for a while or until the process ends.

    Python ignores the signal for it, SIGXFSZ.
    """
    without = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], without))
    if fault["lasts"]:
        make_room = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (without, without))
        threading.Timer(fault["lasts"], make_room).start()
    note(f"over-{fault['number']}")


def fail(fault: dict[str, Any]) -> NoReturn:
    # The same error twice at the same step would be a bug, so each has a word of its own.
    word = chr(ord("a") + fault["number"])
    error = OSError if fault["bytes"] % 2 else RuntimeError
    raise error(f"fault {word} comes")


def watch_saves(faults: Faults) -> None:
    """Let faults come in the middle of saves."""
    from hyparflow.checkpoint import keeper, share_files
    from hyparflow.formats.checkpoint import folder
    from hyparflow.formats.writing import replacing

    write_shards, write_text, encoded = (
        share_files.write_shards,
        share_files.write_text,
        folder.encoded,
    )
    note_saved, is_own_file = keeper.note_saved, folder.is_own_file

    def step_of(path: Path) -> int:
        return int(path.parent.name.removeprefix("step-"))

    def half_a_share(path: Path, *arguments: Any) -> Any:
        if faults.pending("share", step_of(path)) is not None:
            try:
                path.write_bytes(b"half of it")
                faults.in_save("share", step_of(path))
            finally:
                path.unlink(missing_ok=True)
        return write_shards(path, *arguments)

    def half_a_record(path: Path, text: str) -> None:
        if faults.pending("record", step_of(path)) is None:
            return write_text(path, text)
        with replacing(path) as temporary:
            temporary.write_text(text[: len(text) // 2])
            faults.in_save("record", step_of(path))
            temporary.write_text(text)
        return None

    def before_commit(index: Any) -> bytes:
        faults.in_save("commit", index.step)
        return encoded(index)

    def after_commit(step: int) -> None:
        faults.in_save("committed", step)
        note_saved(step)

    def amid_removal(name: str) -> bool:
        faults.in_save("removal", faults.step)
        return is_own_file(name)

    share_files.write_shards, share_files.write_text = half_a_share, half_a_record
    folder.encoded, keeper.note_saved, folder.is_own_file = (
        before_commit,
        after_commit,
        amid_removal,
    )


def build() -> keras.Model:
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input([FEATURES])
    for units in (16, 12):
        x = keras.layers.BatchNormalization()(keras.layers.Dense(units)(x))
        x = keras.layers.Dropout(0.2)(keras.layers.Activation("tanh")(x))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def digest(values: list[Any]) -> str:
    data = b"".join(np.asarray(value).tobytes() for value in values)
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    keras.config.set_floatx(PLAN["floatx"])
    faults = Faults()
    watch_saves(faults)
    model = build()
    random = np.random.default_rng(0)
    x, y = random.normal(size=(ROWS, FEATURES)), random.integers(0, CLASSES, ROWS)
    slower = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=0.01)
    if faults.rank == 0:
        faults.soon("start")
    settings = hf.Checkpoint(
        FOLDER / "checkpoints",
        every_steps=PLAN["every_steps"],
        every_minutes=PLAN["every_minutes"],
        keep=PLAN["keep"],
        asynchronous=PLAN["asynchronous"],
    )
    history = hf.fit(
        model,
        x,
        y,
        batch_size=BATCH,
        epochs=PLAN["epochs"],
        verbose=0,
        callbacks=[slower, Steps(faults)],
        checkpoint=settings,
        num_partitions=PLAN["partitions"],
        num_replicas=PLAN["replicas"],
        num_microbatches=1,
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    end = {
        "weights": digest(model.get_weights()),
        "optimizer": digest(model.optimizer.variables),
        "history": history.history,
        "epochs": history.epoch,
    }
    note(f"end-{faults.rank}", end)


main()
