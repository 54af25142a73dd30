"""A small convolutional network that reads handwritten digits.

The images (1797 of 8x8 pixels) come with scikit-learn: nothing to download.
"""

import argparse
import json
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--save", help="write the trained model to this .keras file")
args = parser.parse_args()

keras.utils.set_random_seed(1)

# Pixels are 0 to 16; the labels become vectors with a one at the digit.
images, digits = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
labels = keras.utils.to_categorical(digits, 10)
x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=300, random_state=0)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(64, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-4)),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
model.summary()

patience = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
slower = keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=1)
options = {
    "batch_size": args.batch_size,
    "epochs": args.epochs,
    "validation_split": 0.1,
    "callbacks": [patience, slower],
    "verbose": 2,
}
history = model.fit(x_train, y_train, **options)

scores = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
if args.save:
    model.save(args.save)
print(json.dumps({"history": history.history, "test": scores}))
