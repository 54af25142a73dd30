"""A deadline for MPI's start where a script starts MPI itself, before its first call of hyparflow.

The import of mpi4py.MPI waits for all other ranks. If hyparflow was imported before, the process
beside the rank watches the deadline, as it does when hyparflow itself starts MPI.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from hyparflow.comm import launcher, sentinel
from hyparflow.comm.watch import own_watch

__all__ = ["watch_start_of_mpi"]

_MPI = "mpi4py.MPI"


def watch_start_of_mpi() -> None:
    """Arrange that the import of mpi4py.MPI is watched; starts nothing."""
    if launcher.expected_size()[0] > 1 and _MPI not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the module mpi4py.MPI, once, by asking the other finders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, with a loader that is watched."""
        if name != _MPI:
            return None
        sys.meta_path.remove(self)
        for finder in list(sys.meta_path):
            if (spec := finder.find_spec(name, path, target)) is not None:
                _watch(spec.loader)
                return spec
        return None


def _watch(loader: Any) -> None:
    """Patch the loader, if possible, so that the deadline is watched while it loads."""
    if not isinstance(getattr(loader, "__dict__", None), dict):  # of some other import hook
        return
    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del vars(loader)["exec_module"]
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(ValueError):  # a wrong deadline is refused by the first call
                stack.enter_context(own_watch().during(sentinel.STARTING))
            original(module)

    vars(loader)["exec_module"] = exec_module
