"""Weights that are read from their file when they are needed are those that Keras loads."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

import hyparflow as hf
from hyparflow.model.keras_internals.deferred_variables import is_absent, source_of
from hyparflow.model.keras_internals.stored_values import loading_at_once

FILES = ["m.keras", "m.weights.h5", "shards.weights.json"]


def slow(*arguments: Any) -> Any:
    """Arguments for which another test shows nearly the same."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


def build(width: int = 4) -> Any:
    layers = [keras.layers.Dense(width), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input([3]), *layers, keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def save(model: Any, folder: pathlib.Path) -> None:
    model.save(folder / FILES[0])
    model.save_weights(folder / FILES[1])
    model.save_weights(folder / FILES[2], max_shard_size=1e-7)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Any, pathlib.Path]]:
    """Gives a trained model of the present type and the folder with its files."""
    made: dict[str, tuple[Any, pathlib.Path]] = {}

    def of_this_type() -> tuple[Any, pathlib.Path]:
        name = keras.config.dtype_policy().name
        if name not in made:
            made[name] = build(), tmp_path_factory.mktemp(name)
            made[name][0].fit(np.ones([8, 3]), np.ones([8, 1]), verbose=0)
            save(*made[name])
        return made[name]

    return of_this_type


@pytest.fixture(params=["float32", *(slow(x) for x in ("mixed_bfloat16", "float16")), "bfloat16"])
def saved(request: Any, trained: Any) -> Iterator[tuple[Any, pathlib.Path]]:
    """A trained model and the folder with its files."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield trained()
    keras.config.set_dtype_policy(before)


def equal(left: list[Any], right: list[Any]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def all_absent(variables: list[Any]) -> bool:
    return all(is_absent(v) for v in variables)


@pytest.mark.parametrize("name", FILES)
def test_load_weights(name: str, saved: tuple[Any, pathlib.Path]) -> None:
    model, folder = saved
    loaded = build()
    hf.load_weights(loaded, folder / name)
    assert all_absent(loaded.weights)
    assert equal(loaded.weights, model.weights)
    assert not any(is_absent(v) for v in loaded.weights)
    rows = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(loaded.predict(rows, verbose=0), model.predict(rows, verbose=0))


def test_a_path_that_is_none() -> None:
    with pytest.raises(ValueError, match="`path` must be a string or a path. Received: path=None"):
        hf.load_weights(build(), None)  # type: ignore[arg-type]


def test_load_model(saved: tuple[Any, pathlib.Path]) -> None:
    model, folder = saved
    with hf.deferred():
        loaded = keras.models.load_model(folder / FILES[0])
    variables = [*loaded.weights, *loaded.optimizer.variables[2:]]
    assert all_absent(variables)
    assert equal(variables, [*model.weights, *model.optimizer.variables[2:]])


def test_a_file_that_is_replaced(tmp_path: pathlib.Path) -> None:
    model, other, loaded = build(), build(), build()
    save(model, tmp_path)
    hf.load_weights(loaded, tmp_path / FILES[0])
    other.save(tmp_path / "other.keras")
    (tmp_path / "other.keras").rename(tmp_path / FILES[0])
    (tmp_path / FILES[1]).unlink()
    assert equal(loaded.weights, model.weights)


@pytest.mark.parametrize("name", FILES)
def test_saving_to_the_file_that_was_loaded(name: str, tmp_path: pathlib.Path) -> None:
    """In plain Keras a model may be saved where it came from, by any way to save."""
    model, path = build(), tmp_path / name
    model.fit(np.ones([8, 3]), np.ones([8, 1]), verbose=0)
    save(model, tmp_path)
    with hf.deferred():
        if name == FILES[0]:
            loaded = keras.models.load_model(path)
        else:
            loaded = build()
            hf.load_weights(loaded, path)
    again = build()
    if name == FILES[0]:
        keras.saving.save_model(loaded, path)
        again = keras.models.load_model(path)
    else:
        loaded.save_weights(path, **({"max_shard_size": 1e-7} if name == FILES[2] else {}))
        again.load_weights(path)
    assert equal(loaded.get_weights(), model.get_weights())
    assert equal(again.get_weights(), model.get_weights())


def test_a_save_that_fails_leaves_the_file_that_was_loaded(tmp_path: pathlib.Path) -> None:
    class Unwilling(keras.layers.Dense):
        def save_own_variables(self, store: Any) -> None:
            raise RuntimeError("no")

    path, model = tmp_path / FILES[1], keras.Sequential([keras.Input([3]), Unwilling(2)])
    keras.Sequential([keras.Input([3]), keras.layers.Dense(2)]).save_weights(path)
    before = path.read_bytes()
    with hf.deferred():
        other = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
        hf.load_weights(other, path)
    with pytest.raises(RuntimeError, match="no"):
        model.save_weights(path)
    assert path.read_bytes() == before
    assert len(other.get_weights()) == 2


def test_a_file_that_something_writes_to(tmp_path: pathlib.Path) -> None:
    save(build(), tmp_path)
    loaded = build()
    hf.load_weights(loaded, tmp_path / FILES[1])
    with open(tmp_path / FILES[1], "r+b") as file:
        file.write(b"other")
    with pytest.raises(OSError, match="must stay as it is until they are read"):
        loaded.get_weights()


def test_a_compressed_archive(tmp_path: pathlib.Path) -> None:
    """Someone packed the file anew: its arrays have no place in the archive as they are."""
    model, loaded = build(), build()
    save(model, tmp_path)
    with (
        zipfile.ZipFile(tmp_path / FILES[0]) as old,
        zipfile.ZipFile(tmp_path / "packed.keras", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    hf.load_weights(loaded, tmp_path / "packed.keras")
    assert equal(loaded.weights, model.weights)


class Halved(keras.layers.Dense):
    """Reads more of the file than it assigns."""

    def load_own_variables(self, store: Any) -> None:
        self.kernel.assign(store["0"][:] / 2)
        self.bias.assign(np.asarray(store["1"]) + store["1"].shape[0])


def test_layers_that_convert_what_they_load(tmp_path: pathlib.Path) -> None:
    mine, plain = (keras.Sequential([keras.Input([3]), Halved(4)]) for _ in range(2))
    mine.save_weights(tmp_path / FILES[1])
    hf.load_weights(mine, tmp_path / FILES[1])
    plain.load_weights(tmp_path / FILES[1])
    assert equal(mine.weights, plain.weights)


def test_other_shapes_are_refused_by_keras(tmp_path: pathlib.Path) -> None:
    save(build(), tmp_path)
    loaded = build(5)
    with pytest.raises(ValueError, match="could not be loaded"):
        hf.load_weights(loaded, tmp_path / FILES[1])
    with pytest.warns(UserWarning, match="could not be loaded"):
        hf.load_weights(loaded, tmp_path / FILES[1], skip_mismatch=True)


def test_where_all_must_see_what_is_assigned(tmp_path: pathlib.Path) -> None:
    save(build(), tmp_path)
    loaded = build()
    with loading_at_once():
        hf.load_weights(loaded, tmp_path / FILES[1])
    assert not any(is_absent(v) for v in loaded.weights)


def test_a_folder_that_is_no_preset(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="must be a preset that KerasHub saved"):
        hf.load_weights(build(), tmp_path)


def _backbone() -> Any:
    hub = pytest.importorskip("keras_hub")
    sizes = {"vocabulary_size": 20, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    return hub.models.BertBackbone(**sizes, intermediate_dim=8, max_sequence_length=6)


def _classifier() -> Any:
    backbone = _backbone()
    return pytest.importorskip("keras_hub").models.BertTextClassifier(backbone, num_classes=3)


@pytest.mark.parametrize("make", [_backbone, _classifier])
def test_presets(make: Callable[[], Any], tmp_path: pathlib.Path) -> None:
    model = make()
    model.save_to_preset(tmp_path)
    with hf.deferred():
        loaded = make()
    hf.load_weights(loaded, tmp_path)
    assert all_absent(loaded.weights)
    assert {source_of(v).key[0] for v in loaded.weights} == {"stored"}
    assert equal(loaded.weights, model.weights)
