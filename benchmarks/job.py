"""A job that takes turns: trains when it is told to, and says how fast.

    python job.py SPEC.json             (or by mpirun, for several ranks)

SPEC.json names the model, the batch, how to train and a folder. The job trains a few steps, then a
turn of several whenever a file "go-N" appears there, and writes "done-N" after it; the first step
of a turn is not counted. At its end each rank writes "end-RANK": its peak memory above that of a
bare import. A job of hyparflow writes a trace, "trace.json", if it is to.
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
# Steps of each turn that are not counted: what ran before has left caches full of its own.
_COLD = 1


class Turns(keras.callbacks.Callback):
    """Waits for each turn, and notes what it took.

    Args:
        folder: where turns are announced.
        steps: of a turn.
        apart: all processes (mpi4py's), if each trains alone; the first speaks for them.
    """

    def __init__(self, folder: Path, steps: int, apart: Any = None) -> None:
        super().__init__()
        self._folder, self._steps, self._apart = folder, steps, apart
        self._turn = -1
        self.start = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        step = (batch - _WARM) % (_COLD + self._steps)
        if batch >= _WARM and step == 0:
            self._change_turns()
        if batch >= _WARM and step == _COLD:
            self._wait_for_all()
            self._started = time.perf_counter(), time.process_time()

    def _change_turns(self) -> None:
        """End a turn, and wait for the next."""
        self._wait_for_all()
        if self._turn >= 0:
            ended = time.perf_counter(), time.process_time()
            wall, cpu = ((b - a) / self._steps for a, b in zip(self._started, ended, strict=True))
            self._say(f"done-{self._turn}", {"seconds": wall, "cpu_seconds": cpu})
        self._turn += 1
        if self._turn == 0:
            self._say("warm", {})
        go = self._folder / f"go-{self._turn}"
        while not go.exists():
            time.sleep(0.005)
        self._wait_for_all()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self._say("ready", {"first_step": time.perf_counter() - self.start})

    def _wait_for_all(self) -> None:
        if self._apart is not None:
            self._apart.Barrier()

    def _say(self, name: str, content: Any) -> None:
        if self._apart is not None and self._apart.rank:
            return
        path = self._folder / f"{name}.part"
        path.write_text(json.dumps(content))
        path.rename(self._folder / name)


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
    steps = (_COLD + spec["steps"]) * spec["turns"]
    rank, apart = 0, None
    if kind == "apart":
        from mpi4py import MPI

        apart = MPI.COMM_WORLD
        rank, batch = apart.rank, batch // apart.size
    elif kind == "hyparflow":
        import hyparflow as hf

        rank = hf.rank()
    bare = psutil.Process().memory_info().rss
    model = build(spec["model"])
    x, y = data(spec["model"], batch * 4)
    rows = batch * (_WARM + steps + 1)
    repeats = -(-rows // len(x))
    x, y = (array.repeat(repeats, 0)[:rows] for array in (x, y))
    turns = Turns(folder, spec["steps"], apart)
    arguments = {"batch_size": batch, "verbose": 0, "shuffle": False, "callbacks": [turns]}
    if kind == "hyparflow":
        trace = folder / "trace.json" if spec["is_traced"] else None
        hf.fit(model, x, y, **arguments, **spec["options"], trace=trace)
    elif kind == "horovod":
        rank = train_with_horovod(model, x, y, batch, turns)
    else:
        model.fit(x, y, **arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / f"end-{rank}").write_text(json.dumps({"peak": peak - bare}))


if __name__ == "__main__":
    main()
