"""Handwritten digits on several ranks, then the same training by plain Keras, and a comparison.

The digits are real (1797 images of 8x8 pixels) and come with scikit-learn: nothing to download.

    python examples/digits.py                             one process: what plain Keras does
    mpirun -n 2 python examples/digits.py                 the model cut in two, a part per rank
    mpirun -n 2 python examples/digits.py --strategy data
    mpirun -n 4 python examples/digits.py --num-partitions 2 --num-replicas 2
"""

import argparse

import keras
import numpy as np
from common import add_parallel_arguments, parallel_arguments
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hyparflow as hf


def build() -> keras.Model:
    """A small convolutional network; every call gives the same weights and the same shuffling."""
    # Smooth (tanh, average pooling): the kinks of ReLU and max pooling would magnify the rounding
    # that differs between any two orders of adding up, and hide how close two trainings are.
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = skip = layers.Conv2D(16, 3, padding="same", activation="tanh")(inputs)
    x = layers.Conv2D(16, 3, padding="same", activation="tanh")(x)
    x = layers.Conv2D(16, 3, padding="same", activation="tanh")(x)
    x = layers.AveragePooling2D(2)(layers.Add()([x, skip]))
    x = layers.Conv2D(32, 3, padding="same", activation="tanh")(x)
    x = layers.Dense(64, activation="tanh")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    sgd = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(sgd, "sparse_categorical_crossentropy", metrics=["accuracy"])
    keras.utils.set_random_seed(0)  # building drew from it; shuffling starts anew
    return model


def print_epoch(epoch: int, logs: dict[str, float]) -> None:
    """One line per epoch; as part of a callback it runs on the leader only."""
    shown = ("accuracy", "loss", "val_accuracy", "val_loss")
    print(f"epoch {epoch + 1}: " + ", ".join(f"{k} {logs[k]:.4f}" for k in shown), flush=True)


def final(history: keras.callbacks.History) -> str:
    val_accuracy, val_loss = (history.history[k][-1] for k in ("val_accuracy", "val_loss"))
    return f"accuracy {val_accuracy:.4f}, loss {val_loss:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_parallel_arguments(parser)
    parallel = parallel_arguments(parser.parse_args())
    if hf.size() > 1 and not {"strategy", "num_partitions", "num_replicas"} & parallel.keys():
        parallel.update(strategy="model", num_partitions=hf.size())

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    x, x_test, y, y_test = train_test_split(x, y, test_size=360, random_state=0)
    settings = {"batch_size": 64, "epochs": 8, "verbose": 0, "validation_data": (x_test, y_test)}

    model = build()
    printer = keras.callbacks.LambdaCallback(on_epoch_end=print_epoch)
    ours = hf.fit(model, x, y, **settings, callbacks=[printer], **parallel)
    if hf.is_leader():  # from here on, plain Keras in one process
        plain_model = build()
        plain = plain_model.fit(x, y, **settings)
        pairs = zip(model.get_weights(), plain_model.get_weights(), strict=True)
        difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        ranks = "1 rank" if hf.size() == 1 else f"{hf.size()} ranks"
        line = f"hyparflow on {ranks}: {final(ours)} | plain Keras: {final(plain)}"
        print(f"{line} | largest difference in a weight {difference:.1e}")


if __name__ == "__main__":
    main()
