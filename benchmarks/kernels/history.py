"""Do faster kernels change what is learnt? ResNet-20, 50 steps, against another order of sums.

    python benchmarks/kernels/history.py cifar10.npz

Three trainings of the same model with the same batches: with Keras's operations; with Keras's
operations and the rows of each batch in another order, so that sums over rows are made in another
order; and with faster kernels. Rounding grows with each step, whatever it comes from. Prints by how
much the loss differs from the first training, step by step.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import cifar10_resnet
import common

import hyparflow as hf

_SHOWN = (1, 2, 5, 10, 20, 30, 40, 50)


class Losses(keras.callbacks.Callback):
    """The loss of each step; Keras reports the mean of the steps until then."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"] * (batch + 1) - sum(self.losses))


def losses(x: np.ndarray, y: np.ndarray, kernels: str, args: argparse.Namespace) -> np.ndarray:
    """The loss of each step of one training."""
    keras.utils.set_random_seed(0)
    model = cifar10_resnet.build(20, version=args.version)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
    seen = Losses()
    given = {"batch_size": args.batch_size, "shuffle": False, "verbose": 0, "callbacks": [seen]}
    hf.fit(model, x, y, kernels=kernels, num_microbatches=1, **given)
    return np.array(seen.losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", default="synthetic", help="an .npz file, or synthetic")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--version", type=int, default=1, choices=(1, 2))
    args = parser.parse_args()
    rows = args.steps * args.batch_size
    (x, y), _ = common.load_images(args.data, rows)
    inside = np.random.default_rng(0).permutation(args.batch_size)
    other = (np.arange(rows).reshape(args.steps, -1)[:, inside]).ravel()
    first = losses(x, y, "keras", args)
    order = np.abs(losses(x[other], y[other], "keras", args) - first)
    faster = np.abs(losses(x, y, "auto", args) - first)
    print("step     loss   another order   faster kernels")
    for step in (n for n in _SHOWN if n <= args.steps):
        found = first[step - 1], order[:step].max(), faster[:step].max()
        print(f"{step:4} {found[0]:8.4f} {found[1]:15.1e} {found[2]:16.1e}")


if __name__ == "__main__":
    main()
