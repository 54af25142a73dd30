"""Models that are deeper than Python's recursion limit."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import keras
import pytest

from hyparflow.cli.model_file import load_model
from hyparflow.comm import recursion
from hyparflow.launching.pickled_models import reduce_model
from hyparflow.model.building import build_weights

DEPTH = 400  # layers of a chain
LIMIT = 300
FILE = f"""
import keras

def build():
    inputs = x = keras.Input((2,))
    for _ in range({DEPTH}):
        x = keras.layers.Identity()(x)
    return keras.Model(inputs, x)
"""


@pytest.fixture
def low_limit() -> Iterator[None]:
    """A limit that these models overrun, as models of thousands of layers do the usual one."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(LIMIT)
    yield
    sys.setrecursionlimit(before)


def chain() -> keras.Model:
    inputs = x = keras.Input((2,))
    for _ in range(DEPTH):
        x = keras.layers.Identity()(x)
    return keras.Model(inputs, x)


def deep_chain() -> keras.Model:
    with recursion.deep_models():
        return chain()


def test_keras_overruns_the_limit(low_limit: None) -> None:
    """Otherwise all of this could go."""
    with pytest.raises(RecursionError) as caught:
        chain()
    text = recursion.remedy(caught.value, caught.value.__traceback__)
    assert f"Received: RecursionError in Keras with a limit of {LIMIT} calls" in text
    assert text.endswith(f"import sys; sys.setrecursionlimit({recursion.DEEP:_})\n")


def test_other_errors_have_no_such_remedy(low_limit: None) -> None:
    def endless() -> None:
        endless()

    with pytest.raises(RecursionError) as own:
        endless()
    assert recursion.remedy(own.value, own.value.__traceback__) == ""
    with pytest.raises(ValueError) as other:
        keras.layers.Dense(-1)
    assert recursion.remedy(other.value, other.value.__traceback__) == ""
    with pytest.raises(RecursionError) as deep:
        chain()
    sys.setrecursionlimit(recursion.DEEP)  # a higher one would not help
    assert recursion.remedy(deep.value, deep.value.__traceback__) == ""


def test_the_limit_is_the_user_s_again(low_limit: None) -> None:
    with recursion.deep_models():
        assert sys.getrecursionlimit() == recursion.DEEP
    assert sys.getrecursionlimit() == LIMIT
    with recursion.deep_models():
        sys.setrecursionlimit(LIMIT + 1)
    assert sys.getrecursionlimit() == LIMIT + 1
    sys.setrecursionlimit(recursion.DEEP + 1)
    recursion.allow_deep_models()
    assert sys.getrecursionlimit() == recursion.DEEP + 1


def test_the_command_loads_deep_models(low_limit: None, tmp_path: Path) -> None:
    (tmp_path / "deep.py").write_text(FILE)
    built = load_model(f"{tmp_path}/deep.py:build")
    assert len(built.layers) == DEPTH + 1
    built.save(tmp_path / "deep.keras")
    assert len(load_model(str(tmp_path / "deep.keras")).layers) == DEPTH + 1


def test_deep_models_are_sent_to_ranks(low_limit: None) -> None:
    restore, arguments = reduce_model(deep_chain())
    assert len(restore(*arguments).layers) == DEPTH + 1


def test_deep_stacks_are_built_at_the_first_batch(low_limit: None) -> None:
    model = keras.Sequential([keras.layers.Identity() for _ in range(DEPTH)])
    build_weights(model, keras.InputSpec(shape=(4, 2)))
    assert model.built


def test_a_script_that_fails_is_told_what_helps(
    low_limit: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hyparflow.comm import abort

    monkeypatch.setattr(sys, "excepthook", lambda *parts: None)
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    abort.install()
    with pytest.raises(RecursionError) as caught:
        chain()
    sys.excepthook(RecursionError, caught.value, caught.value.__traceback__)
    assert "sys.setrecursionlimit" in capsys.readouterr().err


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example of ResNets."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    return importlib.import_module("cifar10_resnet")


def test_the_example_of_resnets_raises_the_limit(example: ModuleType, low_limit: None) -> None:
    assert len(example.build(302).layers) > LIMIT  # two calls for each of 150 blocks


def test_the_example_of_resnets_takes_round_depths(example: ModuleType) -> None:
    asked = (20, 110, 1001, 2000, 5000)
    assert [example.choose(depth) for depth in asked] == [
        (20, 1), (110, 1), (1001, 2), (2000, 2), (4997, 2),
    ]  # fmt: skip
    assert example.choose(110, 2) == (110, 2)
    assert example.choose(5000, 1) == (5000, 1)
