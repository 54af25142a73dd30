"""Does a very deep network learn the same in partitions? ResNet-1001, one epoch, loss of each step.

    python benchmarks/accuracy/deep.py cifar10.npz --how plain
    mpirun -n 2 python benchmarks/accuracy/deep.py cifar10.npz --how partitions --seed 1
    python benchmarks/accuracy/deep.py --report

"plain" is Keras's own fit; "one process" and "partitions" are hyparflow's. The images of training
and test are all trained on, in one order for each seed. Every 50 steps the losses are written to
deep/HOW-SEED.json, and the model, with the state of its optimizer, beside them: the same command
goes on where it was stopped. --report compares all that are there: deep.png, and a table.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import cifar10_resnet
import common

import hyparflow as hf

HERE = Path(__file__).resolve().parent

OPTIONS: dict[str, dict[str, Any]] = {
    "one process": {},
    "partitions": {"strategy": "model", "batchnorm": "deferred"},
}
HOWS = ("plain", *OPTIONS)
_EVERY = 50  # steps after which all is written
_SMOOTH = 20  # steps of the mean that is drawn


class Losses(keras.callbacks.Callback):
    """The loss of each step of one call of fit."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.losses: list[float] = []
        self._sum = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Keras reports the mean since the call began; all batches have as many rows.
        total = float(logs["loss"]) * (batch + 1)
        self.losses.append(total - self._sum)
        self._sum = total


def train(args: argparse.Namespace) -> None:
    """The rest of one epoch, as the arguments say."""
    keras.utils.set_random_seed(args.seed)
    train, test = common.load_images(args.data)
    x, y = (np.concatenate(pair)[: args.samples] for pair in zip(train, test, strict=True))
    steps = len(x) // args.batch_size
    order = np.random.default_rng(args.seed).permutation(len(x))
    name = f"{args.how.replace(' ', '-')}-{args.seed}"
    path, state = args.output / f"{name}.json", args.output / f"{name}.keras"
    run: dict[str, Any] = {"how": args.how, "seed": args.seed, "depth": args.depth}
    run |= {"batch": args.batch_size, "seconds": 0.0, "losses": []}
    if state.exists():
        run, model = json.loads(path.read_text()), keras.models.load_model(state)
    else:
        model = cifar10_resnet.build(*cifar10_resnet.choose(args.depth, 2))
        optimizer = keras.optimizers.Adam(args.learning_rate)
        model.compile(optimizer, "sparse_categorical_crossentropy")
    for first in range(len(run["losses"]), steps, _EVERY):
        last = min(first + _EVERY, steps)
        rows = order[first * args.batch_size : last * args.batch_size]
        start, losses = time.perf_counter(), Losses()
        further(model, x[rows], y[rows], losses, args)
        if hf.is_leader():
            run["losses"] += losses.losses
            run["seconds"] += time.perf_counter() - start
            write(model, run, path, state)


def further(
    model: Any, x: np.ndarray, y: np.ndarray, losses: Losses, args: argparse.Namespace
) -> None:
    """Train on some more batches, in their order."""
    arguments = {"batch_size": args.batch_size, "shuffle": False, "verbose": 0}
    if args.how == "plain":
        model.fit(x, y, callbacks=[losses], **arguments)
    else:
        hf.fit(model, x, y, callbacks=[losses], **arguments, **OPTIONS[args.how])


def write(model: Any, run: dict[str, Any], path: Path, state: Path) -> None:
    """Write the model, and what is known of it: each takes the place of the one before at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new_state, new_path = state.with_name(f"new-{state.name}"), path.with_suffix(".new")
    model.save(new_state)
    new_path.write_text(json.dumps(run) + "\n")
    new_state.replace(state)
    new_path.replace(path)


def report(folder: Path, picture: Path) -> None:
    """Draw all curves, and compare what the layout changes with what the seed changes."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for run in runs:
        print(f"{run['how']:12} seed {run['seed']}: {summary(run['losses'])}")
    for one, other in ((a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]):
        print(
            f"{one['how']} {one['seed']}, {other['how']} {other['seed']}: "
            f"smoothed curves lie {apart(one['losses'], other['losses']):.3f} apart in the mean"
        )
    draw(runs, picture)


def summary(losses: list[float]) -> str:
    """First loss, and means of the first and the last steps."""
    first, last = statistics.mean(losses[:_SMOOTH]), statistics.mean(losses[-_SMOOTH:])
    return (
        f"{len(losses)} steps, first loss {losses[0]:.5f}, mean of the first {_SMOOTH} "
        f"{first:.3f}, of the last {_SMOOTH} {last:.3f}"
    )


def smooth(losses: list[float]) -> np.ndarray:
    """Means over the steps before each step."""
    window = min(_SMOOTH, len(losses))
    return np.convolve(losses, np.ones(window) / window, mode="valid")


def apart(one: list[float], other: list[float]) -> float:
    """The mean distance of two smoothed curves, as far as both go."""
    length = min(len(one), len(other))
    return float(np.abs(smooth(one[:length]) - smooth(other[:length])).mean())


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """A smoothed line for each training; seeds of one layout share a colour."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    for run in runs:
        curve = smooth(run["losses"])
        axis.plot(
            np.arange(len(curve)) + len(run["losses"]) - len(curve) + 1,
            curve,
            color=f"C{HOWS.index(run['how'])}",
            linestyle="-" if run["seed"] == 0 else "--",
            label=f"{run['how']}, seed {run['seed']}",
        )
    axis.set(xlabel="step", ylabel=f"loss, mean of {_SMOOTH} steps")
    axis.set_title(f"ResNet-{runs[0]['depth']} on CIFAR-10, one epoch", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default="synthetic", help="an .npz file, or synthetic")
    parser.add_argument("--how", choices=HOWS, default="plain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, default=1001)
    parser.add_argument("--samples", type=int, help="train on so many images, not on all")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, default=HERE / "deep")
    parser.add_argument("--report", action="store_true", help="only draw what is there")
    args = parser.parse_args()
    if args.report:
        report(args.output, args.output.with_name("deep.png"))
    else:
        train(args)


if __name__ == "__main__":
    main()
