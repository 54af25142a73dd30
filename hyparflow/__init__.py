"""hyparflow: train any Keras 3 model on MPI ranks, with the numbers of plain ``model.fit``.

Importing it starts no MPI and imports no TensorFlow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyparflow import devices, guard, launcher
from hyparflow.api import evaluate, fit, parallelize, predict
from hyparflow.early import watch_start_of_mpi
from hyparflow.ranks import is_leader, rank, size

if TYPE_CHECKING:
    from hyparflow.launching import launch
    from hyparflow.planning import Cluster, Costs, Link, Plan
    from hyparflow.plans import plan

__all__ = [
    "Cluster",
    "Costs",
    "Link",
    "Plan",
    "evaluate",
    "fit",
    "is_leader",
    "launch",
    "parallelize",
    "plan",
    "predict",
    "rank",
    "size",
]
__version__ = "0.1.0"

guard.install()
launcher.set_thread_defaults()
launcher.set_log_default()
devices.choose_device()
watch_start_of_mpi()


def __getattr__(name: str) -> Any:
    """What plans need, which imports numpy and TensorFlow, when it is asked for."""
    if name == "plan":
        from hyparflow.plans import plan

        return plan
    if name == "launch":
        from hyparflow.launching import launch

        return launch
    if name in ("Cluster", "Costs", "Link", "Plan"):
        from hyparflow import planning

        return getattr(planning, name)
    raise AttributeError(f"module 'hyparflow' has no attribute '{name}'")
