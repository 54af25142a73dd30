"""VGG16 for 32x32 images, straight from keras.applications: no layer is written for hyparflow.

    python examples/vgg16.py --samples 512
    mpirun -n 2 python examples/vgg16.py --samples 512 --strategy data
    mpirun -n 2 python examples/vgg16.py --samples 512 --strategy model --num-microbatches 4
    mpirun -n 2 python examples/vgg16.py --data cifar10.npz --strategy model --epochs 10

Without --data the images are random, which is enough to measure speed. Most of the 33.6 million
weights sit in the last layers and most of the work in the first, so a model cut in two sends far
less than two replicas that exchange all gradients.
"""

import argparse

import common
import keras

import hyparflow as hf


def build(classes: int = 10) -> keras.Model:
    """VGG16 with new weights, ready to compile."""
    return keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_training_arguments(parser, epochs=2, batch_size=64, learning_rate=1e-4)
    common.add_parallel_arguments(parser)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    (x, y), validation = common.load_images(args.data, args.samples)
    with common.building(args):
        model = build()
    model.compile(
        optimizer=keras.optimizers.Adam(common.learning_rate(args, len(x))),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    throughput = common.Throughput(len(x), args.batch_size)
    history = hf.fit(
        model,
        x,
        y,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=validation,
        callbacks=[throughput],
        verbose=2,
        **common.parallel_arguments(args),
    )
    common.report(history, throughput, args.history)


if __name__ == "__main__":
    main()
