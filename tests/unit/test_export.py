"""An ordinary Keras file from a checkpoint, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import hyparflow as hf
from hyparflow.checkpoint.export import export
from hyparflow.checkpoint.tensor_names import named_variables
from hyparflow.cli.main import main
from hyparflow.model.keras_internals.deferred_variables import is_absent

ROWS = np.random.default_rng(0).normal(size=(16, 4))


def build() -> Any:
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.layers.Dense(5), keras.layers.BatchNormalization()])
    inputs = keras.Input([4])
    x = keras.layers.Dropout(0.1)(inner(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile(keras.optimizers.AdamW(1e-2, use_ema=True), "mse", metrics=["mae"])
    return model


def trained(folder: Path) -> Any:
    model = build()
    hf.fit(model, ROWS, ROWS[:, :2], epochs=2, verbose=0, batch_size=8, checkpoint=folder)
    return hf.load_checkpoint(folder, build())  # without the averages at the end of `fit`


def test_a_keras_file(tmp_path: Path) -> None:
    model = trained(tmp_path / "run")
    made = export(tmp_path / "run", tmp_path / "a.keras", None)
    here = [name for name, v in named_variables(made).items() if len(v.shape) and not is_absent(v)]
    assert all(name.startswith("random/") for name in here)
    loaded = keras.models.load_model(tmp_path / "a.keras")
    pairs = zip(
        [*loaded.weights, *loaded.optimizer.variables],
        [*model.weights, *model.optimizer.variables],
        strict=True,
    )
    assert [x.path for x, y in pairs if not np.array_equal(x, y)] == []
    assert np.array_equal(loaded.predict(ROWS, verbose=0), model.predict(ROWS, verbose=0))
    more = {"epochs": 1, "verbose": 0, "shuffle": False}
    first, second = (m.fit(ROWS, ROWS[:, :2], **more).history for m in (loaded, model))
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)  # dropout draws anew


def test_a_file_of_weights_of_an_older_step(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    older = hf.load_checkpoint(tmp_path / "run", build(), step=2)
    words = ["checkpoint", "export", str(tmp_path / "run"), str(tmp_path / "a.weights.h5")]
    result = CliRunner().invoke(main, [*words, "--step", "2"])
    assert result.exit_code == 0, result.output
    other = build()
    other.load_weights(tmp_path / "a.weights.h5")
    assert all(map(np.array_equal, other.get_weights(), older.get_weights()))


def test_a_saved_model(tmp_path: Path) -> None:
    """A few tensors at a time have memory; the file is what TensorFlow would have written."""
    model = trained(tmp_path / "run")
    made = export(tmp_path / "run", tmp_path / "served", None)
    weights = [v for v in made.weights if "seed" not in v.path]
    assert all(map(is_absent, weights))
    model.export(tmp_path / "plain", verbose=False)
    loaded, plain = (tf.saved_model.load(str(tmp_path / name)) for name in ("served", "plain"))
    rows = tf.constant(ROWS, "float32")
    assert np.array_equal(loaded.serve(rows), plain.serve(rows))
    found, expected = (
        sorted(
            (tuple(shape), name)
            for name, shape in tf.train.list_variables(f"{tmp_path}/{name}/variables/variables")
        )
        for name in ("served", "plain")
    )
    assert [shape for shape, _ in found] == [shape for shape, _ in expected]
    assert sorted(p.name for p in (tmp_path / "served").rglob("*part*")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.h5"], "must end in '.keras'"),
        (["a.keras", "--step", "3"], "there is no such step"),
        (["none/a.keras"], "none"),
    ],
    ids=str,
)
def test_what_cannot_be_exported(words: list[str], said: str, tmp_path: Path) -> None:
    trained(tmp_path / "run")
    arguments = [
        "checkpoint",
        "export",
        str(tmp_path / "run"),
        str(tmp_path / words[0]),
        *words[1:],
    ]
    (tmp_path / "none").write_text("a file")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_description_that_was_changed(tmp_path: Path) -> None:
    """Another activation would make another model of it."""
    trained(tmp_path / "run")
    path = tmp_path / "run" / "step-0000000004" / "state-model.json"
    path.write_text(path.read_text().replace("linear", "sigmoi", 1))
    for words in (["verify"], ["export"]):
        more = [str(tmp_path / "a.keras")] if words == ["export"] else []
        result = CliRunner().invoke(main, ["checkpoint", *words, str(tmp_path / "run"), *more])
        assert result.exit_code == 2
        assert "its checksum does not fit" in result.output
    assert not (tmp_path / "a.keras").exists()


class Untold(keras.layers.Layer):
    """A layer that does not tell its configuration."""

    def call(self, inputs: Any) -> Any:
        return 2 * inputs

    def get_config(self) -> Any:
        raise NotImplementedError


class Unregistered(keras.layers.Layer):
    """A layer that no other process knows."""

    def call(self, inputs: Any) -> Any:
        return 2 * inputs


@pytest.mark.parametrize(
    ("layer", "said"),
    [(Untold, "a layer has no `get_config`"), (Unregistered, "Could not locate class")],
)
def test_a_layer_of_ones_own(layer: Any, said: str, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input([4]), layer(), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    hf.fit(model, ROWS, ROWS[:, :2], verbose=0, checkpoint=tmp_path / "run")
    words = ["checkpoint", "export", str(tmp_path / "run"), str(tmp_path / "a.keras")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "a.keras").exists()
