"""A process that computes until it is told to stop, as another rank of a node does.

    python contention_process.py FOLDER

FOLDER holds a SavedModel whose function `run` takes a number of rows. Each line of standard input
is a number of rows to run with, over and over; 0 is a pause. The end of the input ends the process.
It answers each line by the same line, once it runs so. Imports nothing of hyparflow, so that it
does not join the job.
"""

import sys
import threading
import time

import tensorflow as tf

__all__ = ["Companion"]


class Companion:
    """Runs the function of a SavedModel over and over.

    Args:
        folder: of the SavedModel.
    """

    def __init__(self, folder: str) -> None:
        self._module = tf.saved_model.load(folder)
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
                self._module.run(tf.constant(rows))
            else:
                time.sleep(1e-3)
            if rows != answered:  # the first run of a size, which is slow, is over now
                print(rows, flush=True)
                answered = rows


if __name__ == "__main__":
    Companion(sys.argv[1]).run()
