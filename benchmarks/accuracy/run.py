"""Does the parallelism change what is learned? ResNet-20 by one process, by 2 partitions, by 2
replicas: validation accuracy per epoch, over several seeds.

    python benchmarks/accuracy/run.py cifar10.npz

Each training is `examples/cifar10_resnet.py` in a job of its own. The results go to results.json
and accuracy.png beside this file, or to the folder given as --output.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent.parent / "examples" / "cifar10_resnet.py"

Curves = dict[str, list[list[float]]]  # name of a setup -> per seed, validation accuracy per epoch


class Setup(NamedTuple):
    """One way to run the example."""

    name: str
    ranks: int
    options: tuple[str, ...] = ()


MODEL = ("--strategy", "model", "--num-partitions", "2")

# Twice two partitions, to tell what the cut changes from what small micro-batches change:
# "auto" makes 8 of 16 rows; with 2, BatchNormalization sees as many rows as with 2 replicas.
SETUPS = (
    Setup("1 process", 1),
    Setup("2 partitions", 2, MODEL),
    Setup("2 partitions, M=2", 2, (*MODEL, "--num-microbatches", "2")),
    Setup("2 replicas", 2, ("--strategy", "data", "--num-replicas", "2")),
)


def main() -> None:
    args = parse()
    args.output.mkdir(parents=True, exist_ok=True)
    histories: dict[str, list[dict[str, Any]]] = {setup.name: [] for setup in SETUPS}
    if args.only:
        known = json.loads((args.output / "results.json").read_text())["histories"]
        histories |= {name: runs for name, runs in known.items() if name != args.only}
    for seed in range(args.seeds):
        for setup in SETUPS:
            if args.only not in (None, setup.name):
                continue
            start = time.perf_counter()
            histories[setup.name].append(train(setup, seed, args))
            print(f"{setup.name}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    curves = {name: [h["val_accuracy"] for h in runs] for name, runs in histories.items()}
    print("\n" + table(curves) + "\n\n" + verdict(curves))
    settings = {
        key: value for key, value in vars(args).items() if key not in ("data", "output", "only")
    }
    results = {
        "settings": {"data": args.data.name, **settings},
        "environment": environment(),
        "verdict": verdict(curves),
        "histories": histories,
    }
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(curves, args.output / "accuracy.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy of parallel and of plain training.")
    parser.add_argument("data", type=Path, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each setup")
    parser.add_argument("--samples", type=int, help="train on so many images, not on all")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument(
        "--only",
        choices=[setup.name for setup in SETUPS],
        help="train this setup and take the others from results.json, made with the same settings",
    )
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument(
        "--mpirun",
        default=f"{os.environ.get('MPIRUN', 'mpirun')} {os.environ.get('MPIRUN_FLAGS', '')}",
        help="mpirun with its flags; the default is $MPIRUN $MPIRUN_FLAGS",
    )
    return parser.parse_args()


def train(setup: Setup, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run the example once and return its History."""
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "history.json"
        command = [sys.executable, str(EXAMPLE), *setup.options]
        if setup.ranks > 1:
            command = [*shlex.split(args.mpirun), "-n", str(setup.ranks), *command]
        for option in ("data", "depth", "epochs", "batch_size", "samples"):
            if (value := getattr(args, option)) is not None:
                command += [f"--{option.replace('_', '-')}", str(value)]
        command += ["--cosine", "--seed", str(seed), "--history", str(history)]
        job = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if job.returncode or not history.exists():
            raise SystemExit(f"{job.stdout}\nFailed ({job.returncode}): {shlex.join(command)}")
        return json.loads(history.read_text())


def table(curves: Curves) -> str:
    """Accuracy per epoch, a column per setup: the mean, and how far the seeds lie apart."""
    lines = ["epoch" + "".join(f"{name:>22}" for name in curves)]
    for epoch in range(len(next(iter(curves.values()))[0])):
        cells = []
        for runs in curves.values():
            values = [run[epoch] for run in runs]
            half = (max(values) - min(values)) / 2
            cells.append(f"{statistics.mean(values):.4f} +- {half:.4f}")
        lines.append(f"{epoch + 1:5}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def verdict(curves: Curves) -> str:
    """Compare what the setup changes with what the seed changes, after the last epoch."""
    finals = {name: [run[-1] for run in runs] for name, runs in curves.items()}
    means = [statistics.mean(values) for values in finals.values()]
    spread = max(max(values) - min(values) for values in finals.values())
    text = f"Last epoch: the setups' means lie within {max(means) - min(means):.4f}"
    seeds = len(next(iter(finals.values())))
    return f"{text}; the seeds of one setup within {spread:.4f}" if seeds > 1 else text


def plot(curves: Curves, path: Path) -> None:
    """A line per setup (the mean) with a band over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for (name, runs), dashes in zip(curves.items(), ("-", "--", "-.", ":"), strict=True):
        per_epoch = list(zip(*runs, strict=True))
        epochs = range(1, len(per_epoch) + 1)
        axes.plot(epochs, [statistics.mean(v) for v in per_epoch], dashes, marker="o", label=name)
        axes.fill_between(epochs, list(map(min, per_epoch)), list(map(max, per_epoch)), alpha=0.15)
    axes.set(xlabel="epoch", ylabel="validation accuracy", xticks=list(epochs))
    axes.set_title("ResNet on CIFAR-10: mean and range over seeds")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def environment() -> dict[str, str]:
    """What the numbers depend on; nothing that names a machine or a user."""
    packages = ("keras", "tensorflow", "tensorflow-cpu", "mpi4py", "numpy")
    found = {d.metadata["Name"].lower().replace("_", "-"): d for d in metadata.distributions()}
    versions = {name: found[name].version for name in packages if name in found}
    return {
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        **versions,
    }


if __name__ == "__main__":
    main()
