"""A rank that comes to harm: python any_fault.py KIND PLACE RANK LAYOUT FILE [RANKS].

FILE gets the time of the fault. With RANKS this process starts so many by hf.launch. What happens
before the training and after it needs no TensorFlow, so that many such jobs cost little.
"""

import atexit
import ctypes
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

TRAINING = ("data", "callback", "step", "save", "evaluate", "between")
# Sent from outside while the rank is in MPI's start, where it does nothing itself.
SIGNALS = {"kill": 9, "stop": 19, "segv": 11, "term": 15, "quit": 3}
_NUMBERS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


class Unpicklable(Exception):
    """An error that cannot be sent to other ranks."""

    def __init__(self) -> None:
        super().__init__("boom")
        self.lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle this")


def raises(error: BaseException) -> NoReturn:
    raise error


def loop() -> None:
    while True:
        pass


def block() -> None:
    """In a C call that never ends, and during which no other thread of this process runs."""
    while True:
        ctypes.PyDLL(None).usleep(10**9)


def read() -> None:
    """In a C call that never ends, and during which others run."""
    os.read(os.pipe()[0], 1)


def in_thread() -> None:
    thread = threading.Thread(target=raises, args=(ZeroDivisionError("boom"),))
    thread.start()
    thread.join()


def full_disk() -> None:
    """What is written from now on finds no room."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    print("lost")


KINDS = {
    "exit 0": lambda: sys.exit(0),
    "exit 3": lambda: sys.exit(3),
    "_exit 0": lambda: os._exit(0),
    "_exit 3": lambda: os._exit(3),
    "raise": lambda: raises(ZeroDivisionError("boom")),
    "unpicklable": lambda: raises(Unpicklable()),
    "memory": lambda: raises(MemoryError("boom")),
    "interrupt": lambda: raises(KeyboardInterrupt()),
    "sleep": lambda: time.sleep(10_000),
    "loop": loop,
    "block": block,
    "read": read,
    "thread": in_thread,
    "close stdout": lambda: sys.stdout.close(),
    "close 1 and 2": lambda: os.closerange(1, 3),
    "full": full_disk,
    **{name: lambda n=number: os.kill(os.getpid(), n) for name, number in SIGNALS.items()},
}


class Fault:
    """The fault of this job."""

    def __init__(self, kind: str, place: str, rank: str, layout: str, file: str) -> None:
        self.kind, self.place, self.layout = kind, place, layout
        self.file = pathlib.Path(file)
        mine = next((os.environ[name] for name in _NUMBERS if name in os.environ), "0")
        self.is_here = mine == rank

    def announce(self) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(str(time.time()))
        part.rename(self.file)

    def at(self, place: str) -> None:
        """The fault happens, if this is the place, and has not happened."""
        if self.is_here and place == self.place and not self.file.exists():
            self.announce()
            KINDS[self.kind]()


def begin(fault: Fault) -> Any:
    """What a script does before it trains: hyparflow, with MPI."""
    fault.at("import")
    import hyparflow as hf

    if fault.place == "mpi":
        fault.at("mpi")
        from mpi4py import MPI  # noqa: F401

    atexit.register(fault.at, "before the end")  # runs when all ranks have come to their end
    fault.at("first")
    if fault.is_here and fault.place == "init":
        fault.announce()
        words = f"sleep 0.{os.getpid() % 4}; kill -{SIGNALS[fault.kind]} {os.getpid()}"
        subprocess.Popen(["sh", "-c", words])
    hf.size()
    atexit.register(fault.at, "exit")
    return hf


def train(fault: Fault, hf: Any) -> None:
    """Train, evaluate and save a small model."""
    import keras
    import numpy as np
    import tensorflow as tf

    phase = "step"
    count = dict.fromkeys(TRAINING, 0)

    def visit(value: Any) -> Any:
        count[phase] += 1
        if count[phase] > 2:
            fault.at(phase)
        return value

    class Faulty(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            y = tf.numpy_function(visit, [x], x.dtype)
            y.set_shape(x.shape)
            return x + tf.stop_gradient(y - x)

        def save_own_variables(self, store: Any) -> None:
            fault.at("save")

    class Data(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            if index == 2:
                fault.at("data")
            return np.ones((8, 4), "float32"), np.ones((8, 1), "float32")

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                fault.at("callback")

    inputs = x = keras.Input((4,))
    for _ in range(4):
        x = Faulty()(keras.layers.Dense(4)(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    size = hf.size()
    partitions = {"data": 1, "model": size, "hybrid": 2}[fault.layout]
    grid = {"num_partitions": partitions, "num_replicas": size // partitions}
    hf.fit(model, Data(), **grid, epochs=2, verbose=0, callbacks=[Callback()])
    fault.at("between")
    phase = "evaluate"
    hf.evaluate(model, np.ones((32, 4)), np.ones((32, 1)), batch_size=8, verbose=0)
    model.save_weights(f"{fault.file}.{hf.rank()}.weights.h5")
    hf.fit(model, Data(), epochs=1, verbose=0)


def main(*words: str) -> None:
    fault = Fault(*words)
    hf = begin(fault)
    if fault.place in TRAINING:
        train(fault, hf)
    fault.at("last")
    print("came to its end", flush=True)


if __name__ == "__main__":
    words, ranks = sys.argv[1:6], sys.argv[6:]
    if ranks:
        import hyparflow

        hyparflow.launch(main, words, num_ranks=int(ranks[0]), oversubscribe=True, output="all")
    else:
        main(*words)
