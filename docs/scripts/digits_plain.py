import keras
from sklearn.datasets import load_digits

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

model.fit(x, y, epochs=3, verbose=2)
model.save("digits.keras")
