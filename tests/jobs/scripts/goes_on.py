"""Trains with checkpoints, and prints what came of it; a fault is told by words.

    goes_on.py FOLDER [kill STEP | kill-other STEP | usr1 STEP | raise STEP | disk STEP | stay STEP]

The fault comes in the first attempt only.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import hyparflow as hf

FOLDER, WORDS = Path(sys.argv[1]), sys.argv[2:]
MARK = FOLDER.with_name("had-a-fault")


def has_fault() -> bool:
    """Whether this attempt is the one with the fault."""
    return bool(WORDS) and not MARK.exists()


class Fault(keras.callbacks.Callback):
    """Brings the fault about, on rank 0."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        step = int(self.model.optimizer.iterations)
        if not has_fault() or step != int(WORDS[-1]) or WORDS[0] == "kill-other":
            return
        MARK.touch()
        if WORDS[0] == "usr1":
            os.kill(os.getpid(), signal.SIGUSR1)
        elif WORDS[0] == "stay":
            time.sleep(100)
        elif WORDS[0] == "raise":
            raise OSError("the file system is gone for a moment")
        elif WORDS[0] == "disk":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        elif WORDS[0] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing() -> None:
    """Let the last rank die in the middle of the write of its share of a step."""
    from hyparflow.checkpoint import share_files

    write = share_files.write_shards

    def dies(path: Any, *arguments: Any) -> Any:
        step = int(path.parent.name.removeprefix("step-"))
        if has_fault() and step >= int(WORDS[-1]):
            MARK.touch()
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, *arguments)

    share_files.write_shards = dies


keras.utils.set_random_seed(3)
inputs = keras.Input([8])
hidden = keras.layers.Dense(16, activation="tanh")(keras.layers.Dense(16)(inputs))
model = keras.Model(inputs, keras.layers.Dense(3)(hidden))
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
random = np.random.default_rng(0)
if WORDS[:1] == ["kill-other"] and hf.rank() == hf.size() - 1:
    die_while_writing()
history = hf.fit(
    model,
    random.normal(size=(64, 8)),
    random.integers(0, 3, 64),
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[Fault()],
    checkpoint=hf.Checkpoint(FOLDER, every_steps=3),
    num_partitions=hf.size(),
    num_microbatches=1,
)
if hf.rank() == 0:
    bits = hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest()
    print("ends with", bits[:16], len(history.history["loss"]), repr(history.history["loss"][-1]))
