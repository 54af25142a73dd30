"""The models of the benchmarks, compiled."""

import sys
from pathlib import Path

import keras
from keras import layers
from samples import LENGTH, SYMBOLS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import cifar10_resnet
import vgg16

MODELS = (
    *("resnet20", "resnet56", "resnet110", "resnet1001"),
    *("vgg16", "transformer", "transformer6", "densenet121", "mobilenetv2", "lstm"),
)


def build(name: str) -> keras.Model:
    """The compiled model called `name`."""
    if name.startswith("resnet"):
        depth = int(name.removeprefix("resnet"))
        model = cifar10_resnet.build(depth, version=2 if depth > 110 else 1)
    elif name == "vgg16":
        model = vgg16.build()
    elif name == "densenet121":
        model = keras.applications.DenseNet121(
            weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation="softmax"
        )
    elif name == "mobilenetv2":
        model = keras.applications.MobileNetV2(
            weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation="softmax"
        )
    elif name == "lstm":
        model = recurrent()
    else:
        model = transformer(blocks=int(name.removeprefix("transformer") or 4))
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    return model


def transformer(blocks: int = 4, width: int = 128, heads: int = 4) -> keras.Model:
    """Predicts the next character: pre-normalised blocks with causal attention."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(SYMBOLS, width)(inputs)
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=True)
        x = layers.Add()([x, y])
        y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    outputs = layers.Dense(SYMBOLS, activation="softmax")(layers.LayerNormalization()(x))
    return keras.Model(inputs, outputs, name="transformer")


def recurrent(width: int = 256) -> keras.Model:
    """Predicts the next character by two recurrent layers."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(SYMBOLS, width)(inputs)
    for _ in range(2):
        x = layers.LSTM(width, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(SYMBOLS, activation="softmax")(x), name="lstm")
