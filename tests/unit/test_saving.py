"""Files are complete or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hyparflow.model import saving
from hyparflow.model.saving import save_atomically, use_atomic_saves


class FakeModel:
    """Writes half, then the other half; raises between the two if told to."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.paths: list[Path] = []
        self.arguments: list[dict[str, Any]] = []

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> str:
        """Keras's."""
        self.paths.append(Path(filepath))
        self.arguments.append(kwargs)
        with Path(filepath).open("w") as file:
            file.write("new ")
            file.flush()
            if self.fails:
                raise OSError("disk full")
            file.write("model")
        return "saved"

    save_weights = save


def test_complete_file_and_nothing_else(tmp_path: Path) -> None:
    model, path = FakeModel(), tmp_path / "m.keras"
    save_atomically(model, path, include_optimizer=False)
    assert path.read_text() == "new model"
    assert list(tmp_path.iterdir()) == [path]
    assert model.arguments == [{"include_optimizer": False}]


def test_written_beside_under_another_name_of_the_same_kind(tmp_path: Path) -> None:
    """Beside, or the rename would not be atomic; Keras goes by the ending."""
    model = FakeModel()
    for name in ("m.keras", "m.weights.h5", "epoch.01.keras", ".hidden.keras"):
        save_atomically(model, str(tmp_path / name))
        written = model.paths[-1]
        assert written.parent == tmp_path
        assert written.name != name
        assert written.name.endswith(name[name.index(".") :])


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_text("old model")
    with pytest.raises(OSError, match="disk full"):
        save_atomically(FakeModel(fails=True), path)
    assert path.read_text() == "old model"
    assert list(tmp_path.iterdir()) == [path]
    save_atomically(FakeModel(), path)
    assert path.read_text() == "new model"


def test_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        save_atomically(FakeModel(fails=True), tmp_path / "m.keras")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["save", "save_weights"])
def test_the_model_s_own_methods(method: str, tmp_path: Path) -> None:
    model, path = FakeModel(), tmp_path / "m.weights.h5"
    use_atomic_saves(model)
    use_atomic_saves(model)  # twice is as good as once
    assert getattr(model, method)(path) == "saved"
    assert path.read_text() == "new model"
    assert [p == path for p in model.paths] == [False]
    assert list(tmp_path.iterdir()) == [path]
    assert not hasattr(FakeModel.save, "__wrapped__") and model.save.__doc__ == "Keras's."


def test_a_prompt_before_overwriting_is_left_to_keras(tmp_path: Path) -> None:
    model, path = FakeModel(), tmp_path / "m.keras"
    save_atomically(model, path, overwrite=False)
    assert model.paths != [path]  # nothing is there to ask about
    save_atomically(model, path, overwrite=False)
    assert model.paths[-1] == path


@pytest.mark.parametrize("give", [str, os.fsencode, Path, lambda path: os.path.relpath(path)])
@pytest.mark.parametrize("positional", [(), (True,)])
def test_paths_of_all_types(give: Any, positional: tuple[Any, ...], tmp_path: Path) -> None:
    model, path = FakeModel(), tmp_path / "m.keras"
    use_atomic_saves(model)
    model.save(give(path), *positional)
    assert path.read_text() == "new model"
    assert model.paths[-1] != path and list(tmp_path.iterdir()) == [path]


def test_a_model_as_a_folder_keeps_what_else_is_there(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "tokens.txt").write_text("mine")
    (tmp_path / "m" / "config.json").write_text("old")
    save_atomically(model, tmp_path / "m", zipped=False)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names >= {"tokens.txt", "config.json", "model.weights.h5"}
    assert (tmp_path / "m" / "config.json").read_text() != "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_error_names_the_users_file(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=f"Received: filepath={tmp_path}/m.foo"):
        save_atomically(model, tmp_path / "m.foo")
    assert not list(tmp_path.iterdir())


def test_a_real_model(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    save_atomically(model, tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for saved, read in zip(model.get_weights(), loaded.get_weights(), strict=True):
        assert (saved == read).all()
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_weights_in_several_files(tmp_path: Path) -> None:
    """The index names its parts, so they may not be written under a temporary name."""
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((64,)), *(keras.layers.Dense(64) for _ in range(4))])
    use_atomic_saves(model)
    model.save_weights(tmp_path / "m.weights.json", max_shard_size=2e-5)  # GB
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 2
    assert all(name.startswith("m") for name in names)


@pytest.mark.parametrize("can", [True, False])
def test_an_exported_model(
    can: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete before it is there; named as the user named it; what else is there stays."""
    if not can:
        monkeypatch.setattr(saving, "_exchange", lambda one, other: False)
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    use_atomic_saves(model)
    path = tmp_path / "new" / "1"
    model.export(str(path))
    assert f"Saved artifact at '{path}'." in capsys.readouterr().out
    (path / "mine.txt").touch()
    path.chmod(0o700)
    (path / "saved_model.pb").chmod(0o600)
    model.layers[0].kernel.assign([[3.0], [4.0]])
    model.export(path, verbose=False)
    loaded = tf.saved_model.load(path)
    assert float(loaded.serve(tf.ones((1, 2)))[0, 0]) == 7.0
    assert {"assets", "mine.txt", "saved_model.pb"} <= {entry.name for entry in path.iterdir()}
    assert [entry.name for entry in path.parent.iterdir()] == ["1"]
    modes = [entry.stat().st_mode & 0o777 for entry in (path, path / "saved_model.pb")]
    assert modes == [0o700, 0o600]


def test_an_export_replaces_none_that_came_meanwhile(tmp_path: Path) -> None:
    class Model:
        def __init__(self, text: str) -> None:
            self.text = text

        def save(self, filepath: Any) -> None: ...

        def export(self, filepath: Any, first: Any = None) -> None:
            Path(filepath).mkdir()
            if first is not None:  # another rank, which is faster
                first.export(tmp_path / "m")
            for name in ("a", "b"):
                (Path(filepath) / name).write_text(self.text)

    one, other = Model("one"), Model("other")
    for model in (one, other):
        use_atomic_saves(model)
    for expected in ("other", "one", "other"):
        if expected == "one":
            one.export(tmp_path / "m")
        else:
            one.export(tmp_path / "m", first=other)
        assert {path.read_text() for path in (tmp_path / "m").iterdir()} == {expected}
        assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    use_atomic_saves(model)
    with pytest.raises(ValueError, match=f"Got: {tmp_path}/m.foo"):
        model.export(str(tmp_path / "m.foo"), format="litert")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        model.export(tmp_path / "file", verbose=False)
    assert (tmp_path / "file").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
