import horovod.tensorflow.keras as hvd
import keras
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

hvd.init()
gpus = tf.config.list_physical_devices("GPU")
if gpus:
    mine = gpus[hvd.local_rank()]
    tf.config.set_visible_devices(mine, "GPU")

keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = x.astype("float32") / 16
x = x[hvd.rank() :: hvd.size()]
y = y[hvd.rank() :: hvd.size()]

model = keras.Sequential(
    [
        keras.Input((64,)),
        layers.Dense(64, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ]
)
adam = keras.optimizers.Adam(1e-3 * hvd.size())
adam = hvd.DistributedOptimizer(adam)
model.compile(
    adam,
    "sparse_categorical_crossentropy",
    metrics=["accuracy"],
)

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
]
if hvd.rank() == 0:
    last = keras.callbacks.ModelCheckpoint("last.keras")
    callbacks.append(last)
model.fit(
    x,
    y,
    batch_size=32,
    epochs=3,
    callbacks=callbacks,
    verbose=2 if hvd.rank() == 0 else 0,
)
if hvd.rank() == 0:
    model.save("digits.keras")
