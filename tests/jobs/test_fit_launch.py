"""`fit(..., launch=True)`: a process without ranks trains on some, as if it had done it itself."""

from __future__ import annotations

import pathlib

from jobs.jobs import Result, run_alone

MODEL = """
import sys
import keras, numpy as np
import hyparflow as hf

keras.config.set_floatx("float64")

class Scale(keras.layers.Layer):  # not registered: it is this script's own
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale

def own_loss(y, p):
    return keras.ops.mean((y - p) ** 2, -1)

def build():
    keras.utils.set_random_seed(3)
    last = keras.layers.Dense(4, activation=soft)
    dropout = keras.layers.Dropout(0.2)  # the seed that it has drawn is in no file
    model = keras.Sequential([keras.layers.Dense(8), Scale(), dropout, last])
    model.compile("adam", own_loss, metrics=[own_loss])
    return model

def soft(x):
    return keras.ops.softplus(x)

class Seen(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch, "on a rank:", hf.size(), flush=True)

random = np.random.default_rng(0)
x, y = random.normal(size=(64, 6)), random.normal(size=(64, 4))
common = dict(batch_size=16, epochs=2, verbose=0)
ranks = dict(launch={"oversubscribe": True})
"""


def run(folder: pathlib.Path, code: str) -> Result:
    path = folder / "script.py"
    path.write_text(MODEL + code)
    return run_alone(path)


def test_it_is_as_if_trained_here(tmp_path: pathlib.Path) -> None:
    result = run(
        tmp_path,
        """
def compare(model, history, expected, other):
    assert history.history.keys() == other.history.keys()
    for name, values in history.history.items():
        np.testing.assert_allclose(values, other.history[name], rtol=1e-10)
    pairs = zip([*model.weights, *model.optimizer.variables],
                [*expected.weights, *expected.optimizer.variables], strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-12)

# Shuffled, in the order in which this process would have done it; and again, on and on.
model, expected = build(), build()
trained = [hf.fit(model, x, y, callbacks=[Seen()], num_partitions=2, num_microbatches=1,
                  **common, **ranks) for _ in range(2)]
keras.utils.set_random_seed(3)
others = [expected.fit(x, y, **common) for _ in range(2)]
compare(model, trained[1], expected, others[1])
assert trained[0].model is model and model.history is trained[1]
assert "mpi4py.MPI" not in sys.modules
print("the same")
""",
    )
    assert result.code == 0, result.output
    assert "Skipping variable loading" not in result.output
    assert "epoch 1 on a rank: 2" in result.output
    assert "the same" in result.output


def test_a_model_goes_and_comes_back(tmp_path: pathlib.Path) -> None:
    result = run(
        tmp_path,
        """
def train(model):
    import hyparflow as hf
    hf.fit(model, x, y, strategy="data", **common)
    return model

back = hf.launch(train, (build(),), num_ranks=2, oversubscribe=True)
assert type(back.layers[1]) is Scale, type(back.layers[1])
assert int(back.optimizer.iterations) == 8
back.fit(x, y, **common)
print("went on", back.predict(x, verbose=0).shape)
""",
    )
    assert result.code == 0, result.output
    assert "went on (64, 4)" in result.output


REFUSED = {
    "hf.fit(build(), x, y, launch=True)": "ValueError: `launch` must know how many ranks to start",
    "hf.fit(build(), x, y, launch={'num_ranks': 0})": "Received: num_ranks=0",
    "hf.fit(build(), x, y, launch={'ranks': 2})": "output, oversubscribe, hosts. Received: 'ranks'",
    "hf.fit(build(), (i for i in []), num_replicas=2, **ranks)": "Received: a generator",
    "hf.fit(build(), x, y, callbacks=[3], num_replicas=2, **ranks)": "`callbacks` must be",
    "hf.fit(build(), x, y, num_replicas=2, **ranks, "
    "callbacks=keras.callbacks.LambdaCallback(frame=sys._getframe()))": "to pickle",
    "hf.fit(build(), x, y[:3], num_replicas=2, **ranks)": "Data cardinality is ambiguous",
}


def test_what_cannot_be_done(tmp_path: pathlib.Path) -> None:
    code = f"""
for number, call in enumerate({list(REFUSED)!r}):
    try:
        eval(call)
    except Exception as error:
        print(f"{{number}}: {{type(error).__name__}}: {{error}}".replace("\\n", " "))
"""
    result = run(tmp_path, code)
    assert result.code == 0, result.output
    for number, (call, message) in enumerate(REFUSED.items()):
        (line,) = (x for x in result.output.splitlines() if x.startswith(f"{number}: "))
        assert message in line, call
