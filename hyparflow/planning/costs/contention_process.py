"""A process that computes until it is told to stop, as another rank of a node does.

    python contention_process.py FOLDER [CORES]

FOLDER holds what `saved_graph.py` wrote. CORES are those to compute on, for example 0,1; TensorFlow
is imported on those that the process starts with. A line of standard input is one of these:

ROWS
    Run with so many rows, over and over; 0 is a pause. Answered by the same number, once it runs.
ROWS SECONDS
    Run with so many rows for so long, then pause. Answered by the seconds of the fastest run.

The end of the input ends the process. Imports nothing of hyparflow, so that it does not join the
job.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["Companion"]


class Companion:
    """Runs a function that another process traced, over and over.

    Args:
        folder: where it was written.
    """

    def __init__(self, folder: Path) -> None:
        definition = tf.compat.v1.GraphDef.FromString((folder / "graph.pb").read_bytes())
        known = json.loads((folder / "graph.json").read_text())
        constants = np.load(folder / "graph.npz")
        with tf.Graph().as_default() as graph:  # which brings the functions that it calls
            feeds = {name: _variable(*of).handle for name, of in known["variables"].items()}
            feeds |= {name: tf.constant(constants[name]) for name in constants.files}
            made = tf.graph_util.import_graph_def(definition, feeds, known["outputs"], name="")
            self._all = tf.group(*made)
            start = tf.compat.v1.global_variables_initializer()
        self._session = tf.compat.v1.Session(graph=graph)
        self._session.run(start)
        self._inputs = known["inputs"]
        self._asked: list[str] | None = ["0"]

    def _listen(self) -> None:
        for line in sys.stdin:
            self._asked = line.split()
        self._asked = None

    def run(self) -> None:
        """Compute until the input ends."""
        threading.Thread(target=self._listen, daemon=True).start()
        answered = ["0"]
        while (asked := self._asked) is not None:
            rows = int(asked[0])
            if rows and (len(asked) == 1 or asked != answered):
                self._run(rows)
            else:
                time.sleep(1e-3)
            if asked != answered:  # the first run of a size, which is slow, is over now
                print(self._fastest(rows, float(asked[1])) if asked[1:] else rows, flush=True)
                answered = asked

    def _run(self, rows: int) -> None:
        given = {name: np.ones([rows, *of], kind) for name, kind, of in self._inputs}
        self._session.run(self._all, given)

    def _fastest(self, rows: int, budget: float) -> float:
        """Seconds of the fastest of the runs of about `budget` seconds."""
        found: list[float] = []
        end = time.perf_counter() + budget
        while not found or time.perf_counter() < end:
            start = time.perf_counter()
            self._run(rows)
            found.append(time.perf_counter() - start)
        return min(found)


def _variable(kind: str, shape: list[int]) -> Any:
    value = tf.cast(tf.fill(shape, 0.01), kind)
    return tf.compat.v1.Variable(value, use_resource=True)


if __name__ == "__main__":
    if sys.argv[2:]:  # before the threads that compute are started
        os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
    Companion(Path(sys.argv[1])).run()
