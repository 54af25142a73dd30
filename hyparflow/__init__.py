"""hyparflow: train any Keras 3 model on MPI ranks, with the numbers of plain ``model.fit``.

Importing it starts no MPI and imports no TensorFlow.

The rooms, each importing only from those below it::

    api.py, cli/      what users call: hyparflow.fit; the command hyparflow
    layers.py         Keras layers that Keras does not have
    training/         one call of fit on all ranks: the leader runs Keras, the others follow
    tracing/          what ranks did and when: recorded, written, summed up, drawn
    planning/         which layout is fastest: costs, search, plans
    engine/           one training step on one rank      launching/   starts ranks
                      (compiled: compilers of stages; stages: one stage; loss: losses and metrics;
                      gradients: their sums; weights: who holds which; trials: does the model add
                      up over parts of a batch; custom_steps: a model's own train_step)
    model/            the user's Keras model as operations; private uses of Keras
    options.py        the parallel arguments
    pipeline/         partitions, schedules, lowering (a schedule with its messages added),
                      simulator; pure: without MPI, Keras and TensorFlow
    comm/             communicators, deadlines, notices of failure
    experts/          which rank holds which expert, by a routing trace; pure
    formats/          text, tables, sizes, JSON records, whole files; checkpoint: its files

The route of one training step, from the call to one compiled forward::

    fit (api.py) -> ParallelModel.fit (training/parallel_model.py) -> Session.run
    (training/session.py) -> Keras's own fit -> LeaderSteps.train_step (training/worker.py) ->
    Worker.step (training/worker.py) -> TrainingSteps (training/steps.py) -> Engine.train
    (engine/engine.py) -> Stage.forward (engine/stages/stage.py) -> SplitPair.forward
    (engine/compiled/split_pair.py)

That is the leader, whose model's steps are replaced by those of LeaderSteps while the call runs
(training/keras_bridge.py), and a stage that is not the last. Other ranks enter at Worker.follow.
The last stage calls Stage.forward_backward, which compiles forward and backward together. In place
of SplitPair stands EagerPair with run_eagerly, and TapedPair with HYPARFLOW_COMPILED=plain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hyparflow.api import evaluate, fit, parallelize, predict
from hyparflow.comm import abort, launcher
from hyparflow.comm.ranks import is_leader, rank, size
from hyparflow.comm.start_of_mpi import watch_start_of_mpi
from hyparflow.launching import devices
from hyparflow.launching.memory_pool import choose_memory_pool
from hyparflow.model.deferred import deferred
from hyparflow.model.from_start import choose_variables
from hyparflow.model.stored_weights import load_weights
from hyparflow.model.versions import require_versions

if TYPE_CHECKING:
    from hyparflow import layers
    from hyparflow.checkpoint.load import load_checkpoint
    from hyparflow.checkpoint.settings import Checkpoint
    from hyparflow.experts.placement import ExpertPlacement
    from hyparflow.experts.trace import RoutingTrace
    from hyparflow.launching.function import launch
    from hyparflow.model.experts.place_experts import place_experts
    from hyparflow.model.experts.trace_experts import trace_experts
    from hyparflow.planning.costs.cluster import Cluster, Link
    from hyparflow.planning.costs.costs import Costs
    from hyparflow.planning.plan import Plan
    from hyparflow.planning.plan_model import plan
    from hyparflow.serving.generate import generate
    from hyparflow.serving.serve import serve

__all__ = [
    "Checkpoint",
    "Cluster",
    "Costs",
    "ExpertPlacement",
    "Link",
    "Plan",
    "RoutingTrace",
    "deferred",
    "evaluate",
    "fit",
    "generate",
    "is_leader",
    "launch",
    "layers",
    "load_checkpoint",
    "load_weights",
    "parallelize",
    "place_experts",
    "plan",
    "predict",
    "rank",
    "serve",
    "size",
    "trace_experts",
]
__version__ = "0.1.0"

# What needs numpy or TensorFlow is imported when it is asked for.
_LATE = {
    "Checkpoint": "hyparflow.checkpoint.settings",
    "Cluster": "hyparflow.planning.costs.cluster",
    "Costs": "hyparflow.planning.costs.costs",
    "ExpertPlacement": "hyparflow.experts.placement",
    "Link": "hyparflow.planning.costs.cluster",
    "Plan": "hyparflow.planning.plan",
    "RoutingTrace": "hyparflow.experts.trace",
    "generate": "hyparflow.serving.generate",
    "launch": "hyparflow.launching.function",
    "load_checkpoint": "hyparflow.checkpoint.load",
    "place_experts": "hyparflow.model.experts.place_experts",
    "plan": "hyparflow.planning.plan_model",
    "serve": "hyparflow.serving.serve",
    "trace_experts": "hyparflow.model.experts.trace_experts",
}

abort.install()
launcher.set_thread_defaults()
launcher.set_log_default()
devices.choose_device()
choose_memory_pool()
choose_variables()
watch_start_of_mpi()


def __getattr__(name: str) -> Any:
    """A public name that is imported late."""
    if name == "layers":
        return importlib.import_module("hyparflow.layers")
    if name not in _LATE:
        raise AttributeError(f"module 'hyparflow' has no attribute '{name}'")
    require_versions()
    return getattr(importlib.import_module(_LATE[name]), name)
