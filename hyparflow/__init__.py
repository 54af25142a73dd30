"""hyparflow: train any Keras 3 model on MPI ranks, with the numbers of plain ``model.fit``.

Importing it starts no MPI and imports no TensorFlow.
"""

from __future__ import annotations

from hyparflow import guard, launcher
from hyparflow.api import evaluate, fit, is_leader, parallelize, predict, rank, size

__all__ = ["evaluate", "fit", "is_leader", "parallelize", "predict", "rank", "size"]
__version__ = "0.1.0"

guard.install()
launcher.set_thread_defaults()
