"""A network that tells from measured and from named properties who made a wine.

A table with columns of several types, as dictionaries of features in a `tf.data.Dataset`: numbers
are normalized, names and whole numbers looked up. The table (178 wines of three makers) comes with
scikit-learn; it has numbers only, so two of its columns are turned into classes here.
"""

import argparse
import json
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.utils import FeatureSpace
from sklearn.datasets import load_wine

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch-size", type=int, default=32)
args = parser.parse_args()

NUMBERS = ["malic_acid", "ash", "magnesium", "flavanoids", "proline"]

keras.utils.set_random_seed(1)

wine = load_wine()
columns = dict(zip(wine.feature_names, wine.data.T, strict=True))
table = {name: columns[name].astype("float32") for name in NUMBERS}
table["percent"] = columns["alcohol"].round().astype("int64")
shades = np.array(["pale", "medium", "deep"])
table["colour"] = shades[np.digitize(columns["color_intensity"], [3.5, 6])]

order = np.random.default_rng(0).permutation(len(wine.target))
train_rows, test_rows = order[36:], order[:36]


def dataset(rows):
    """Some rows of the table, each as a dictionary and the number of the maker."""
    features = {name: column[rows] for name, column in table.items()}
    return tf.data.Dataset.from_tensor_slices((features, wine.target[rows]))


# How each column becomes numbers; the vocabularies and the means are those of the training rows.
features = {name: FeatureSpace.float_normalized() for name in NUMBERS}
features["percent"] = FeatureSpace.integer_categorical(output_mode="int", num_oov_indices=1)
features["colour"] = FeatureSpace.string_categorical(output_mode="one_hot", num_oov_indices=0)
space = FeatureSpace(features, output_mode="dict")
space.adapt(dataset(train_rows).map(lambda x, _: x).batch(args.batch_size))

train = dataset(train_rows).shuffle(len(train_rows), seed=1).batch(args.batch_size)
train = train.map(lambda x, y: (space(x), y)).prefetch(tf.data.AUTOTUNE)
test = dataset(test_rows).batch(args.batch_size).map(lambda x, y: (space(x), y))

inputs = {
    name: keras.Input(spec.shape[1:], dtype=spec.dtype.name, name=name)
    for name, spec in train.element_spec[0].items()
}
numbers = layers.Concatenate()([inputs[name] for name in NUMBERS])
percent = layers.Flatten()(layers.Embedding(8, 4)(inputs["percent"]))
both = layers.Concatenate()([numbers, percent, inputs["colour"]])
hidden = layers.Dense(32, activation="relu")(both)
hidden = layers.Dense(16, activation="relu")(hidden)
model = keras.Model(inputs, layers.Dense(3)(hidden))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.005), loss, metrics=["accuracy"])

options = {"validation_data": test, "epochs": args.epochs, "verbose": 2}
history = model.fit(train, **options)

scores = model.evaluate(test, verbose=0, return_dict=True)
print(json.dumps({"history": history.history, "test": scores}))
