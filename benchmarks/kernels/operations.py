"""Where a step spends its time, by kinds of operations, from TensorFlow's own profiler.

    python benchmarks/kernels/operations.py resnet56 --batch 64 --how hyparflow

One thread; TF_ENABLE_ONEDNN_OPTS says whether TensorFlow takes oneDNN. An operation's time is its
own, without that of operations inside it.
"""

import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tensorflow as tf
from models import MODELS, build
from samples import data

import hyparflow as hf

_NO_WORK = ("Run", "TFE_DeleteTensorHandle", "Process")  # what waits for other lines of the profile


def step(model: Any, x: Any, y: Any, how: str) -> float:
    """CPU seconds of one step."""
    start = time.process_time()
    arguments = {"batch_size": len(x), "verbose": 0}
    if how == "keras":
        model.fit(x, y, **arguments)
    else:
        hf.fit(model, x, y, **arguments)
    return time.process_time() - start


def profiled(run: Any) -> collections.Counter[str]:
    """Seconds by kinds of operations."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
        tf.profiler.experimental.start(folder, options=options)
        run()
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    seconds = collections.Counter[str]()
    for plane in space.planes:
        if "CPU" in plane.name:
            for line in plane.lines:
                names = {n: found.name for n, found in plane.event_metadata.items()}
                _add(
                    seconds,
                    [(e.offset_ps, e.duration_ps, names[e.metadata_id]) for e in line.events],
                )
    return seconds


def _add(seconds: collections.Counter[str], events: list[tuple[int, int, str]]) -> None:
    """Add each event's own time, without that of the events inside it."""
    around: list[tuple[int, str]] = []  # ends and kinds
    for start, length, name in sorted(events, key=lambda event: (event[0], -event[1])):
        kind = name.rpartition(":")[2]
        while around and around[-1][0] <= start:
            around.pop()
        seconds[kind] += length / 1e12
        if around:
            seconds[around[-1][1]] -= length / 1e12
        around.append((start + length, kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--how", choices=["keras", "hyparflow"], default="hyparflow")
    parser.add_argument("--lines", type=int, default=14)
    args = parser.parse_args()
    model = build(args.model)
    x, y = data(args.model, args.batch)
    for _ in range(2):
        step(model, x, y, args.how)
    whole = step(model, x, y, args.how)
    seconds = profiled(lambda: step(model, x, y, args.how))
    print(f"{args.model}, batch {args.batch}, {args.how}: {whole:.3f} CPU s a step")
    worked = {kind: spent for kind, spent in seconds.most_common() if kind not in _NO_WORK}
    for kind, spent in list(worked.items())[: args.lines]:
        print(f"  {kind[:44]:44} {spent:7.3f} s {spent / whole:6.1%}")


if __name__ == "__main__":
    main()
