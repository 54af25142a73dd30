"""A job that takes turns: trains when it is told to, and says how fast.

    python job.py SPEC.json             (or by mpirun, for several ranks)

SPEC.json names the model, the batch, how to train and the folder of `turn_files.py`. A job of
hyparflow writes a trace, "trace.json", if it is to.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import keras
from models import build
from samples import check_size, rows_of_steps
from turn_files import Turns, number_of_steps, resident, write_end


class Callback(keras.callbacks.Callback):
    """Tells turns of steps, as long as Keras's loop or hyparflow's takes them."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._turns.begin_step(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._turns.end_step(batch)


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
            turns.begin_step(number)
        step(tf.constant(x[start : start + rows]), tf.constant(y[start : start + rows])).numpy()
        if leads:
            turns.end_step(number)
    return int(hvd.rank())


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder, batch, kind = Path(spec["folder"]), spec["batch"], spec["kind"]
    rank, apart = 0, None
    if kind == "apart":
        from mpi4py import MPI

        apart = MPI.COMM_WORLD
        rank, batch = apart.rank, batch // apart.size
    elif kind == "hyparflow":
        import hyparflow as hf

        rank = hf.rank()
    bare = resident()
    keras.config.set_dtype_policy(spec["policy"])
    model = build(spec["model"])
    sizes = (model.trainable_variables, model.non_trainable_variables)
    check_size(spec["model"], *(sum(math.prod(v.shape) for v in group) for group in sizes))
    x, y = rows_of_steps(spec["model"], batch, number_of_steps(spec["steps"], spec["turns"]))
    wait_for_all = None if apart is None else apart.Barrier
    turns = Turns(folder, spec["steps"], wait_for_all, speaks=rank == 0)
    callbacks = [Callback(turns)]
    arguments = {"batch_size": batch, "verbose": 0, "shuffle": False, "callbacks": callbacks}
    if kind == "hyparflow":
        trace = folder / "trace.json" if spec["is_traced"] else None
        hf.fit(model, x, y, **arguments, **spec["options"], trace=trace)
    elif kind == "horovod":
        rank = train_with_horovod(model, x, y, batch, turns)
    else:
        model.fit(x, y, **arguments)
    write_end(folder, rank, bare)


if __name__ == "__main__":
    main()
