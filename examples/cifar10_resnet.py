"""ResNet on CIFAR-10, in both of its versions, from depth 20 to five thousand layers.

    python examples/cifar10_resnet.py --depth 20 --data cifar10.npz
    mpirun -n 2 python examples/cifar10_resnet.py --depth 110 --strategy data
    mpirun -n 2 python examples/cifar10_resnet.py --depth 110 --strategy model
    mpirun -n 4 python examples/cifar10_resnet.py --depth 56 --num-partitions 2 --num-replicas 2
    mpirun -n 2 python examples/cifar10_resnet.py --depth 1001 --strategy model \
        --batch-size 16 --samples 160 --epochs 1
    mpirun -n 2 python examples/cifar10_resnet.py --depth 5000 --strategy model --deferred \
        --recompute block --schedule interleaved --stages-per-partition 4 --batch-size 4 \
        --samples 100 --data cifar10.npz

Version 1 is He et al., "Deep Residual Learning for Image Recognition": basic blocks, depth 6n+2.
Version 2 is their "Identity Mappings in Deep Residual Networks": pre-activated bottleneck blocks,
depth 9n+2: it is taken from a depth of 1000 on, unless --version says otherwise. --depth 5000
stands for the largest depth up to there, 4997. Without --data the images are random, which is
enough to measure speed.
"""

import argparse
import sys

import common
import keras
from keras import KerasTensor, layers

import hyparflow as hf

PER_BLOCK = {1: 6, 2: 9}  # layers with weights in the three blocks that come together
DEEP = 1000  # from this depth on, version 2 is usual


def choose(depth: int, version: int | None = None) -> tuple[int, int]:
    """The depth and version that are built: the largest depth up to the one that was asked for."""
    if version is None:
        version = 2 if depth >= DEEP else 1
    return depth - (depth - 2) % PER_BLOCK[version], version


def build(
    depth: int = 110,
    version: int = 1,
    input_shape: tuple[int, ...] = (32, 32, 3),
    classes: int = 10,
) -> keras.Model:
    """The ResNet of this depth and version, ready to compile."""
    blocks, rest = divmod(depth - 2, PER_BLOCK.get(version, 9))
    if version not in (1, 2) or blocks < 1 or rest:
        raise ValueError(
            "The depth must be 6n+2 in version 1 and 9n+2 in version 2. "
            f"Received: depth={depth}, version={version}. Try 20 or 110 in either version."
        )
    # keras.Model goes back through the shortcuts by recursion, by a call or two for each block.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 2 * depth))
    inputs = keras.Input(input_shape)
    x = activate(conv(inputs, 16, 3))
    for group in range(3):
        for index in range(blocks):
            strides = 2 if group > 0 and index == 0 else 1
            if version == 1:
                x = basic_block(x, 16 * 2**group, strides)
            else:
                x = bottleneck_block(x, group, strides, first=index == 0)
    if version == 2:
        x = activate(x)
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    outputs = layers.Dense(classes, activation="softmax", kernel_initializer="he_normal")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}_v{version}")


def conv(x: KerasTensor, filters: int, size: int, strides: int = 1) -> KerasTensor:
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(1e-4),
    )(x)


def activate(x: KerasTensor) -> KerasTensor:
    return layers.ReLU()(layers.BatchNormalization()(x))


def basic_block(x: KerasTensor, filters: int, strides: int) -> KerasTensor:
    """Two 3x3 convolutions beside a shortcut, which is a convolution where the shape changes."""
    y = activate(conv(x, filters, 3, strides))
    y = layers.BatchNormalization()(conv(y, filters, 3))
    shortcut = x if strides == 1 else conv(x, filters, 1, strides)
    return layers.ReLU()(layers.Add()([shortcut, y]))


def bottleneck_block(x: KerasTensor, group: int, strides: int, first: bool) -> KerasTensor:
    """1x1, 3x3 and 1x1 convolutions, normalised and activated before each, beside a shortcut."""
    inner = (16, 64, 128)[group]
    outer = (64, 128, 256)[group]
    y = x if first and group == 0 else activate(x)  # the network's first layers activated x
    y = conv(y, inner, 1, strides)
    y = conv(activate(y), inner, 3)
    y = conv(activate(y), outer, 1)
    return layers.Add()([conv(x, outer, 1, strides) if first else x, y])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20, help="of layers with weights, about")
    parser.add_argument(
        "--version", type=int, choices=(1, 2), help="by default 2 from a depth of 1000 on, else 1"
    )
    common.add_training_arguments(parser, epochs=3, batch_size=128, learning_rate=1e-3)
    common.add_parallel_arguments(parser)
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    (x, y), validation = common.load_images(args.data, args.samples)
    with common.building(args):
        model = build(*choose(args.depth, args.version))
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
