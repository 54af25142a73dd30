"""A process that computes until it is told to stop, as another rank of a node does.

    python contention_process.py FOLDER

FOLDER holds what `saved_graph.py` wrote. Each line of standard input is a number of rows to run
with, over and over; 0 is a pause. The end of the input ends the process. It answers each line by
the same line, once it runs so. Imports nothing of hyparflow, so that it does not join the job.
"""

import json
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
        self._rows: int | None = 0

    def _listen(self) -> None:
        for line in sys.stdin:
            self._rows = int(line)
        self._rows = None

    def run(self) -> None:
        """Compute until the input ends."""
        threading.Thread(target=self._listen, daemon=True).start()
        answered = 0
        while (rows := self._rows) is not None:
            if rows:
                given = {name: np.ones([rows, *of], kind) for name, kind, of in self._inputs}
                self._session.run(self._all, given)
            else:
                time.sleep(1e-3)
            if rows != answered:  # the first run of a size, which is slow, is over now
                print(rows, flush=True)
                answered = rows


def _variable(kind: str, shape: list[int]) -> Any:
    value = tf.cast(tf.fill(shape, 0.01), kind)
    return tf.compat.v1.Variable(value, use_resource=True)


if __name__ == "__main__":
    Companion(Path(sys.argv[1])).run()
