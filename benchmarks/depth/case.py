"""One case of the benchmark: one rank that builds a ResNet, trains it a few steps, and ends.

    python case.py SPEC.json             (by mpirun, for one rank or several)

SPEC.json says what and how, and names a folder. Each rank writes "rank-N.json" there as it goes on,
so that what was measured before a rank is killed is not lost.
"""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import keras
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import cifar10_resnet
import common

import hyparflow as hf


class Measured(keras.callbacks.Callback):
    """What was measured on this rank; the times of steps come from the leader, which has callbacks.

    Args:
        path: the file that is written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._bare = psutil.Process().memory_info().rss
        self._found: dict[str, Any] = {}
        self._steps: list[float] = []
        self.start()

    def start(self) -> None:
        """From now on time is counted."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def note(self, **values: Any) -> None:
        """Write what is known by now, with the peak of memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._found |= values | {"peak": peak - self._bare}
        self._path.write_text(json.dumps(self._found))

    def passed(self) -> tuple[float, float]:
        """Seconds on the clock, and of the processor, since `start`."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch:
            self.start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self.note(first_step=self.passed(), loss=[float(logs["loss"])])
            return
        self._steps.append(self.passed()[0])
        self.note(steps=self._steps, loss=[*self._found["loss"], float(logs["loss"])])


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    measured = Measured(Path(spec["folder"]) / f"rank-{hf.rank()}.json")
    keras.utils.set_random_seed(0)
    rows = spec["batch"] * (spec["steps"] + 1)
    (x, y), _ = common.load_images(spec["data"], rows)
    measured.start()
    depth, version = cifar10_resnet.choose(spec["depth"], 2)
    # What is built so has weights where they are owned, and leaves them there.
    apart = spec["options"].get("gather") is False
    with hf.deferred() if apart else contextlib.nullcontext():
        model = cifar10_resnet.build(depth, version)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    size = {"depth": depth, "layers": len(model.layers), "parameters": model.count_params()}
    measured.note(build=measured.passed(), **size)
    measured.start()
    arguments = {"batch_size": spec["batch"], "verbose": 0, "callbacks": [measured]}
    if spec["is_plain"]:
        model.fit(x, y, **arguments)
    else:
        hf.fit(model, x, y, **arguments, **spec["options"])
    measured.note(ended=True)


if __name__ == "__main__":
    main()
