"""The pure modules and `import hyparflow` work without MPI, Keras and TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import hyparflow

SOURCE = Path(hyparflow.__file__).parents[1]
ROOT = Path(hyparflow.__file__).parent
PURE = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for room in ("formats", "pipeline", "experts")
    for path in sorted((ROOT / room).rglob("*.py"))
] + [
    "hyparflow",
    "hyparflow.comm.abort",
    "hyparflow.comm.launcher",
    "hyparflow.options",
    "hyparflow.planning.costs.cluster",
    "hyparflow.planning.costs.costs",
    "hyparflow.planning.make_plan",
    "hyparflow.planning.plan",
    "hyparflow.planning.plot",
    "hyparflow.planning.search.cuts",
    "hyparflow.planning.search.layouts",
]

SCRIPT = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mpi4py", "keras", "tensorflow"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
importlib.import_module(sys.argv[1])
"""


def import_alone(module: str) -> str:
    """Import `module` in a fresh process where the big packages are blocked; the error, if any."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, module],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


@pytest.mark.parametrize("module", PURE)
def test_import(module: str) -> None:
    assert import_alone(module) == ""


def test_the_blocker_blocks() -> None:
    assert "ImportError: keras is blocked" in import_alone("hyparflow.model.keras_internals.layers")


def test_public_names() -> None:
    for name in hyparflow.__all__:
        found = getattr(hyparflow, name)
        assert callable(found) or isinstance(found, types.ModuleType), name
