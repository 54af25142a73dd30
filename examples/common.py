"""What the examples share: the command line, the images, the speed measured and the report."""

import argparse
import contextlib
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import hyparflow as hf

__all__ = [
    "Images",
    "Throughput",
    "add_parallel_arguments",
    "add_training_arguments",
    "building",
    "learning_rate",
    "load_images",
    "parallel_arguments",
    "report",
]

Images = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

PARALLEL = (
    "strategy",
    "num_partitions",
    "num_replicas",
    "num_microbatches",
    "schedule",
    "stages_per_partition",
    "lpp",
    "recompute",
)
SCHEDULES = ("auto", "gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v")


# argparse shows these two names when it refuses a value: "invalid int_list value: '12;20'".
def int_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def int_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def add_parallel_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `hf.fit` that say how to spread the model over the ranks."""
    group = parser.add_argument_group("parallel training")
    group.add_argument("--strategy", choices=("auto", "data", "model", "hybrid"))
    group.add_argument("--num-partitions", type=int, help="parts the model is cut into")
    group.add_argument("--num-replicas", type=int, help="copies of the whole model")
    group.add_argument("--num-microbatches", type=int_or_auto, help="a number, or auto")
    group.add_argument("--schedule", choices=SCHEDULES)
    group.add_argument("--stages-per-partition", type=int, help="of an interleaved schedule")
    group.add_argument("--lpp", type=int_list, help="layers per partition, such as 12,20")
    group.add_argument(
        "--recompute",
        choices=("block", "segments", "auto"),
        help="compute forwards again before backwards: less memory, more time",
    )


def parallel_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The parallel options that were given, as keyword arguments for `hf.fit`."""
    given = {name: getattr(args, name) for name in PARALLEL if getattr(args, name) is not None}
    return given | ({"gather": False} if getattr(args, "deferred", False) else {})


def building(args: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """The context to build a model in, as the options ask."""
    return hf.deferred() if args.deferred else contextlib.nullcontext()


def add_training_arguments(
    parser: argparse.ArgumentParser, *, epochs: int, batch_size: int, learning_rate: float
) -> None:
    """Give `parser` the options of the image examples, with these defaults."""
    parser.add_argument(
        "--data",
        default="synthetic",
        help="an .npz file (x_train, y_train, x_test, y_test; uint8 images), or keras (CIFAR-10; "
        "download it once, on one process, before a parallel run), or synthetic (the default)",
    )
    parser.add_argument(
        "--samples", type=int, help="train on so many images, validate on a fifth of that"
    )
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch-size", type=int, default=batch_size, help="over all ranks")
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument(
        "--cosine", action="store_true", help="let the learning rate fall to 0 along a cosine"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and shuffling")
    parser.add_argument(
        "--deferred",
        action="store_true",
        help="weights only where they are owned, while the model is built and after training",
    )
    parser.add_argument("--history", type=Path, help="write the metrics of each epoch here (JSON)")


def learning_rate(
    args: argparse.Namespace, images: int
) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """What the options ask for: a constant, or a cosine over all steps of the training."""
    if not args.cosine:
        return args.learning_rate
    steps = args.epochs * math.ceil(images / args.batch_size)
    return keras.optimizers.schedules.CosineDecay(args.learning_rate, steps)


def load_images(data: str, samples: int | None = None) -> Images:
    """Load training and test images with their labels; every rank calls this and gets the same."""
    if data == "synthetic":
        # A seed of its own: the data must not depend on what ran before, or ranks could differ.
        train, test = _synthetic(samples or 2048)
    elif data == "keras":
        train, test = keras.datasets.cifar10.load_data()
    else:
        with np.load(data) as file:
            train = file["x_train"], file["y_train"]
            test = file["x_test"], file["y_test"]
    if samples is not None:
        train = tuple(array[:samples] for array in train)
        test = tuple(array[: max(1, samples // 5)] for array in test)
    x_train, x_test = (images.astype("float32") / 255 for images in (train[0], test[0]))
    mean = x_train.mean(axis=0)
    return (x_train - mean, train[1].reshape(-1)), (x_test - mean, test[1].reshape(-1))


def _synthetic(samples: int) -> Images:
    """Random images with random labels: nothing to learn, but the work is that of CIFAR-10."""
    random = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = random.integers(0, 256, size=(count, 32, 32, 3), dtype=np.uint8)
        return images, random.integers(0, 10, size=count, dtype=np.uint8)

    return draw(samples), draw(max(1, samples // 5))


class Throughput(keras.callbacks.Callback):
    """Measures images per second of training; hyparflow runs callbacks on the leader only.

    Each epoch is timed from the end of its first batch to the end of its last, which leaves out
    validation and the set-up of the first batch. The first epoch traces graphs (the ragged last
    batch has one of its own), so it counts only when there is no other.
    """

    def __init__(self, images: int, batch_size: int) -> None:
        super().__init__()
        self.timed_images = images - batch_size
        self.rates: list[float] = []
        self._first = self._last = 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._last = time.perf_counter()
        if batch == 0:
            self._first = self._last

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self.timed_images > 0:  # with a single batch there is nothing to time
            self.rates.append(self.timed_images / (self._last - self._first))

    def images_per_second(self) -> float:
        """The median over epochs, without the first; nan when every epoch was one batch."""
        rates = self.rates[1:] or self.rates
        return statistics.median(rates) if rates else math.nan


def report(
    history: keras.callbacks.History, throughput: Throughput, path: Path | None = None
) -> None:
    """On the leader, print the model's size, the last metrics and the speed; write the History."""
    if not hf.is_leader():
        return
    model = history.model
    print(f"ranks {hf.size()}: {model.name}, {model.count_params():,} parameters")
    last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.history.items())
    print(f"ranks {hf.size()}: {last}")
    print(f"ranks {hf.size()}: {throughput.images_per_second():.1f} images/s")
    if path is not None:
        metrics = {name: [float(v) for v in values] for name, values in history.history.items()}
        speed = throughput.images_per_second()
        metrics["images_per_second"] = None if math.isnan(speed) else speed
        path.write_text(json.dumps(metrics, indent=1))
