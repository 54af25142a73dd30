"""A job that takes turns: trains when it is told to, and says how fast.

    python job.py SPEC.json             (or by mpirun, for several ranks)

SPEC.json names the model, the batch, how to train and a folder. The job trains a few steps, then a
turn of several whenever a file "go-N" appears there, and writes "done-N" after it.
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


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder, batch = Path(spec["folder"]), spec["batch"]
    kind, options = spec["kind"], spec["options"]
    if kind == "hyparflow":
        import hyparflow as hf

        rank = hf.rank()
    else:
        rank = 0
    bare = psutil.Process().memory_info().rss
    model = build(spec["model"])
    x, y = data(spec["model"], batch * 4)
    rows = batch * (_WARM + spec["steps"] * spec["turns"] + 1)
    repeats = -(-rows // len(x))
    x, y = (array.repeat(repeats, 0)[:rows] for array in (x, y))
    turns = Turns(folder, spec["steps"])
    arguments = {"batch_size": batch, "verbose": 0, "shuffle": False, "callbacks": [turns]}
    if kind == "hyparflow":
        hf.fit(model, x, y, **arguments, **options)
    else:
        model.fit(x, y, **arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (folder / f"peak-{rank}").write_text(json.dumps(peak - bare))


if __name__ == "__main__":
    main()
