"""Without a seed TensorFlow has no generator to set back."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from tensorflow.python.ops import gen_random_ops

from hyparflow.engine.compiled.random_draws import unknown_draws
from hyparflow.engine.custom_steps.draws import StepDraws

SCRIPT = """
from hyparflow.engine.compiled.random_draws import eager_generator, set_eager_generator
import tensorflow as tf
assert eager_generator() is None
set_eager_generator(None)
tf.random.set_seed(3)
state = eager_generator()
first = tf.compat.v1.get_seed(None)  # what a draw without a seed gets
assert tf.compat.v1.get_seed(None) != first
set_eager_generator(state)
assert tf.compat.v1.get_seed(None) == first
"""


def test_the_generator_of_eager_draws() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


def test_operations_that_a_tensorflow_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unknown_draws() == []
    monkeypatch.delattr(gen_random_ops, "random_gamma")
    assert unknown_draws() == ["random_gamma"]
    peers = SimpleNamespace(rank=0, broadcast_object=lambda value, root, what: value)
    with pytest.warns(UserWarning, match="Received: no random_gamma"):
        StepDraws(peers)  # type: ignore[arg-type]
