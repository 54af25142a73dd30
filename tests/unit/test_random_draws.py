"""Without a seed TensorFlow has no generator to set back."""

from __future__ import annotations

import subprocess
import sys

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
