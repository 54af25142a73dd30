import keras
from sklearn.datasets import load_digits

import hyparflow as hf

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = x / 16

layers = [
    keras.Input((64,)),
    keras.layers.Dense(64, activation="relu"),
    keras.layers.Dense(10, activation="softmax"),
]
model = keras.Sequential(layers)
loss = "sparse_categorical_crossentropy"
model.compile("adam", loss, metrics=["accuracy"])

hf.fit(model, x, y, epochs=3, verbose=2, strategy="model")
model.save("digits.keras")
