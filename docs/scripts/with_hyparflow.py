import keras
from keras import layers
from sklearn.datasets import load_digits

import hyparflow as hf

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16

model = keras.Sequential(
    [
        keras.Input((64,)),
        layers.Dense(64, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ]
)
adam = keras.optimizers.Adam(1e-3)
model.compile(
    adam,
    "sparse_categorical_crossentropy",
    metrics=["accuracy"],
)

last = keras.callbacks.ModelCheckpoint("last.keras")
hf.fit(
    model,
    x,
    y,
    batch_size=64,
    epochs=3,
    callbacks=[last],
    verbose=2,
    strategy="data",
)
model.save("digits.keras")
