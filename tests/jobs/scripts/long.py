"""A training that can be interrupted: python long.py FOLDER.

Leaves a file "epoch-N" there when epoch N begins; waits in epoch 2 of its first run.
"""

from __future__ import annotations

import pathlib
import sys
import time
from typing import Any

import keras
import numpy as np

import hyparflow as hf

EPOCHS = 6


class Mark(keras.callbacks.Callback):
    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__()
        self._folder = folder
        self._is_first = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._is_first:
            print(f"begins with epoch {epoch}", flush=True)
        self._is_first = False
        file = self._folder / f"epoch-{epoch}"
        if epoch == 2 and not file.exists():
            file.touch()
            time.sleep(120)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4) for _ in range(4))])
    model.compile("adam", "mse")
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    x = np.ones((32, 4))
    history = hf.fit(
        model, x, x, epochs=EPOCHS, verbose=0, callbacks=[backup, Mark(folder)], num_partitions=2
    )
    if hf.is_leader():
        print(f"ends after epoch {history.epoch[-1]}", flush=True)


if __name__ == "__main__":
    main()
