"""A job that takes turns: trains when it is told to, and says how fast.

    python job.py SPEC.json             (or by mpirun, for several ranks)

SPEC.json names the model, the batch, how to train and a folder. The job trains a few steps, then a
turn of several whenever a file "go-N" appears there, and writes "done-N" after it. At its end each
rank writes "end-RANK": its peak memory above that of a bare import, and how long it waited for
others in the steps of all turns.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import keras
import psutil
from models import build, data

_WARM = 2  # steps before the first turn


class Turns(keras.callbacks.Callback):
    """Waits for each turn, and notes what it took."""

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__()
        self._folder, self._steps = folder, steps
        self._turn = -1
        self.start = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch < _WARM or (batch - _WARM) % self._steps:
            return
        if self._turn >= 0:
            seconds = time.perf_counter() - self._started
            self._say(f"done-{self._turn}", {"seconds": seconds / self._steps})
        self._turn += 1
        if self._turn == 0:
            self._say("warm", {})
        go = self._folder / f"go-{self._turn}"
        while not go.exists():
            time.sleep(0.005)
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self._say("ready", {"first_step": time.perf_counter() - self.start})

    def _say(self, name: str, content: Any) -> None:
        path = self._folder / f"{name}.part"
        path.write_text(json.dumps(content))
        path.rename(self._folder / name)


class Waits:
    """How long a rank of hyparflow waits for others within the steps of the turns."""

    def __init__(self, steps: int) -> None:
        from hyparflow.comm import Communicator
        from hyparflow.worker import Worker

        self.seconds = 0.0
        self._count, self._last = 0, _WARM + steps
        self._in_step = False
        poll, train = Communicator.poll, Worker.train

        def timed_poll(comm: Any, done: Any, what: str) -> None:
            start = time.perf_counter()
            poll(comm, done, what)
            if self._in_step:
                self.seconds += time.perf_counter() - start

        def counted_train(worker: Any, command: Any) -> Any:
            self._in_step = _WARM <= self._count < self._last
            self._count += 1
            try:
                return train(worker, command)
            finally:
                self._in_step = False

        Communicator.poll = timed_poll  # type: ignore[method-assign]
        Worker.train = counted_train  # type: ignore[method-assign]


def train_with_horovod(model: keras.Model, x: Any, y: Any, batch: int, turns: Turns) -> int:
    """A step written by hand, as Horovod needs it with Keras 3; returns the rank."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    rows = batch // hvd.size()
    optimizer, loss = model.optimizer, keras.losses.SparseCategoricalCrossentropy()
    weights = model.trainable_variables
    hvd.broadcast_variables([variable.value for variable in model.variables], root_rank=0)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, [variable.value for variable in weights])
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        optimizer.apply(hvd.grouped_allreduce(gradients, op=hvd.Average), weights)
        return value

    leads = hvd.rank() == 0
    for number in range(len(x) // batch):
        start = number * batch + hvd.rank() * rows
        if leads:
            turns.on_train_batch_begin(number)
        step(tf.constant(x[start : start + rows]), tf.constant(y[start : start + rows])).numpy()
        if leads:
            turns.on_train_batch_end(number)
    return int(hvd.rank())


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder, batch, kind = Path(spec["folder"]), spec["batch"], spec["kind"]
    steps = spec["steps"] * spec["turns"]
    rank, waits = 0, None
    if kind == "hyparflow":
        import hyparflow as hf

        rank, waits = hf.rank(), Waits(steps)
    bare = psutil.Process().memory_info().rss
    model = build(spec["model"])
    x, y = data(spec["model"], batch * 4)
    rows = batch * (_WARM + steps + 1)
    repeats = -(-rows // len(x))
    x, y = (array.repeat(repeats, 0)[:rows] for array in (x, y))
    turns = Turns(folder, spec["steps"])
    arguments = {"batch_size": batch, "verbose": 0, "shuffle": False, "callbacks": [turns]}
    if kind == "hyparflow":
        hf.fit(model, x, y, **arguments, **spec["options"])
    elif kind == "horovod":
        rank = train_with_horovod(model, x, y, batch, turns)
    else:
        model.fit(x, y, **arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    end = {"peak": peak - bare, "waited": None if waits is None else waits.seconds}
    (folder / f"end-{rank}").write_text(json.dumps(end))


if __name__ == "__main__":
    main()
