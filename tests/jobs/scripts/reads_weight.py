"""Trains a model whose last partition reads a weight that the first partition trains."""

import keras
import numpy as np

import hyparflow as hf

first = keras.layers.Dense(6)
x = inputs = keras.Input([6])
x = keras.layers.Dense(6)(first(x))
outputs = keras.layers.Lambda(lambda x: x @ keras.ops.transpose(first.kernel))(x)
model = keras.Model(inputs, outputs)
model.compile("sgd", "mse")
rows = np.ones([8, 6], "float32")
hf.fit(model, rows, rows, num_partitions=2, lpp=[1, 2], verbose=0)
