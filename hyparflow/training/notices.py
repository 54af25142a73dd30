"""Notices of the leader before training: the layout, and differences from plain Keras."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from hyparflow.comm.log import STATUS, users_stack_level
from hyparflow.engine.custom_steps.step_trials import StepReport
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.trials.row_findings import RowFindings
from hyparflow.formats.sizes import size_text
from hyparflow.model.keras_internals.compiled import own_step
from hyparflow.model.keras_internals.optimizer import inner_optimizer, writes_at_end
from hyparflow.model.normalization import normalized_layers
from hyparflow.pipeline.schedules import in_words
from hyparflow.training.call import Call, is_shown

__all__ = [
    "announce",
    "announce_changed",
    "announce_fetched",
    "announce_layers",
    "announce_other_batch",
    "announce_read",
    "announce_step",
]

_FETCHED, _READ = "_hyparflow_fetched", "_hyparflow_read"  # attributes of a model
_MUCH = 1 << 26  # bytes that somebody may miss


def announce(model: Any, call: Call, terms: LossTerms, num_chunks: int = 1) -> None:
    """Log how a batch is divided, and warn of values that cannot equal those of plain Keras.

    Args:
        model: the user's model.
        call: the call of `fit`; the layout is not logged with ``verbose=0``.
        terms: the model's losses.
        num_chunks: of sequences, if they are divided.
    """
    grid, rows, num_microbatches = call.options.grid, call.rows, call.num_microbatches
    if is_shown(call.arguments):
        parts = grid.num_replicas * num_microbatches
        size = "?" if rows is None else -(-rows // parts)
        layout = f"{grid.num_replicas} x {grid.num_partitions} (replicas x partitions)"
        if call.options.divides_sequences:
            layout = (
                f"{grid.num_replicas} x {grid.num_shards} x {grid.num_partitions} (replicas x "
                "sequence shards x partitions)"
            )
        words = in_words(call.options.schedule, grid.placement)
        schedule = f", {words}" if words else ""
        STATUS.info(
            f"hyparflow: {layout}"
            f"{_sequence(call, num_chunks)}{schedule}; global batch {rows or '?'} = "
            f"{grid.num_replicas} x {num_microbatches} x {size} (replicas x micro-batches x rows)"
        )
    if call.options.shard_optimizer and is_shown(call.arguments):
        _announce_shards(model, grid.num_replicas)
    if grid.num_replicas * num_microbatches == 1:
        return
    _announce_batchnorm(model, call)
    if terms.one_number:
        warnings.warn(
            f"The losses {_some(terms.one_number)} give a number for a batch that is not known to "
            "be a mean or a sum over its rows; the mean over micro-batches and replicas is taken. "
            "Remedy: a loss that returns one value per row.",
            stacklevel=users_stack_level(),
        )


def _sequence(call: Call, chunks: int) -> str:
    """How sequences are divided, in words."""
    options = call.options
    source = call.sources.get("train")
    if not options.divides_sequences or source is None:
        return ""
    shards = options.grid.num_shards
    lengths = [x.shape[1] for x in keras.tree.flatten(source.specs()[0]) if len(x.shape) > 1]
    tokens = -(-lengths[0] // (chunks * shards)) if lengths else "?"
    where = {"memory": "in memory", "disk": "on disk", "bf16": "in memory, rounded to bfloat16"}
    where["host"] = "in the host's memory"
    return (
        f"; sequence {lengths[0] if lengths else '?'} = {chunks} x {shards} x {tokens} (chunks x "
        f"shards x tokens), {where.get(options.sequence_store, f'in {options.sequence_store}')}"
    )


def _announce_shards(model: Any, num_replicas: int) -> None:
    """Log it where sharding the optimizer's state gives back no memory."""
    optimizer = model.optimizer
    reason = None
    if num_replicas == 1:
        reason = "there is one replica"
    elif writes_at_end(optimizer):
        reason = "the optimizer averages weights at the end, of which all ranks hold the averages"
    elif not type(inner_optimizer(optimizer)).__module__.startswith("keras."):
        reason = "it is not known which slots of an optimizer of one's own belong to which weight"
    if reason is not None:
        STATUS.info(f"hyparflow: shard_optimizer=True gives back no memory: {reason}")


def announce_other_batch(planned: int, rows: int | None) -> None:
    """Log that a plan does not hold for time and memory of batches of `rows` rows."""
    if rows not in (None, planned):
        warnings.warn(
            f"The plan is for batches of {planned} rows: what it says of time and memory does not "
            f"hold. Received: batches of {rows} rows. Remedy: plan again with batch_size={rows}.",
            stacklevel=users_stack_level(),
        )


def announce_layers(names: list[str], found: RowFindings) -> None:
    """Warn of layers of the user's own that give other results when a batch is parted.

    Args:
        names: the names of these layers.
        found: what they do.
    """
    remedy = "Remedy: one replica and num_microbatches=1 (strategy='model')."
    if found.mixed:
        which = _some(found.mixing) if found.mixing else f"among {_some(names)}"
        warnings.warn(
            f"Layers that mix the rows of a batch ({which}) see a micro-batch of one replica, not "
            f"the global batch as in one process: results will differ. {remedy}",
            stacklevel=users_stack_level(),
        )
    if found.branches:
        warnings.warn(
            f"Layers that branch, or loop, on values of the whole batch ({_some(found.branches)}) "
            "see a micro-batch of one replica, not the global batch as in one process: parts may "
            f"branch otherwise, and results differ. {remedy}",
            stacklevel=users_stack_level(),
        )
    if found.hidden:
        warnings.warn(
            "With run_eagerly=True it cannot be seen whether layers branch on values of the whole "
            f"batch (among {_some(names)}): if they do, results will differ. {remedy}",
            stacklevel=users_stack_level(),
        )
    elif found.error:
        warnings.warn(
            f"It is not known what layers of one's own ({_some(names)}) do with the rows of a "
            f"batch, for the model could not be tried on random rows: {found.error} If they mix "
            f"rows, results will differ. {remedy}",
            stacklevel=users_stack_level(),
        )
    if found.state:
        warnings.warn(
            f"Variables that layers change in each call ({_some(found.state)}) change for each "
            "micro-batch of each replica, not once for the global batch as in one process. "
            f"{remedy}",
            stacklevel=users_stack_level(),
        )


def announce_step(model: Any, found: StepReport) -> None:
    """Warn of values of a model's own step that cannot be joined over replicas.

    Args:
        model: the user's model.
        found: what a trial of that step has found.
    """
    own = own_step(model, found.step) or found.step
    if found.error:
        warnings.warn(
            f"The model's own `{own}` could not be tried on a few rows: its losses and "
            "numbers are taken for means over the rows of a batch, which sums are not. Received: "
            f"{found.error}. Remedy: a step that takes batches of any size.",
            stacklevel=users_stack_level(),
        )
    if any(layer.trainable for layer in normalized_layers(model)):
        return  # they join rows, which is said
    when = f", after step {found.before}," if found.before else ""
    if found.coupled:
        warnings.warn(
            f"What the model's own `{own}` computes{when} is neither a mean nor a sum over the "
            f"rows of a batch ({_listed(found.coupled)}): each replica computes it of its own "
            "rows, so results will differ from those of one process. Remedy: a loss that treats "
            "each row alone, a metric that adds up, or one process.",
            stacklevel=users_stack_level(),
        )
    for rows, names in found.worst.items():
        warnings.warn(
            f"What the model's own `{own}` computes for {rows} is neither a mean nor a sum over "
            f"the rows of a batch ({_listed(names)}): each replica clips, masks or leaves out by "
            "its own rows, so where such rows come, results will differ from those of one process. "
            "Remedy: let the optimizer do it, which gets the gradients of all replicas "
            "(`clipnorm`, `global_clipnorm`, `clipvalue`, `LossScaleOptimizer`), or one process.",
            stacklevel=users_stack_level(),
        )
    if found.decisions:
        warnings.warn(
            f"The model's own `{own}` decides by values of the whole batch (operations: "
            f"{_listed(found.decisions)}): each replica decides by its own rows, so where they "
            "decide otherwise, results will differ from those of one process. Remedy: decide for "
            "each row (`ops.where`), let the optimizer clip or skip, which gets the gradients of "
            "all replicas, or one process.",
            stacklevel=users_stack_level(),
        )
    if found.changed:
        warnings.warn(
            f"What the model's own `{own}` computes was a mean over the rows of a batch at first "
            f"and is a sum{when} or the other way round ({_listed(found.changed)}): it is joined "
            "over replicas as at first, so results will differ from those of one process. Remedy: "
            "a loss that always is a mean over all rows, or always a sum, or one process.",
            stacklevel=users_stack_level(),
        )


def announce_another_optimizer(model: Any) -> None:
    """Warn that the optimizer of a model was exchanged without `compile`."""
    warnings.warn(
        "An optimizer that is exchanged without `compile` trains from now on, where plain Keras "
        "goes on with the one before until the model is compiled. Received: model "
        f"'{model.name}' with a new {type(model.optimizer).__name__}. Call its `compile`.",
        stacklevel=users_stack_level(),
    )


def announce_changed(names: list[str]) -> None:
    """Warn of variables, of no optimizer, that steps have changed differently on replicas."""
    warnings.warn(
        f"Variables that the model's own `train_step` changes ({_some(names)}) differ between "
        "replicas: each has changed them by its own rows, and the leader's are kept. Remedy: one "
        "process, if the model reads them in training or after it.",
        stacklevel=users_stack_level(),
    )


def announce_fetched(model: Any, size: int) -> None:
    """Warn, once for a model, that the leader reads weights of other partitions one by one."""
    if vars(model).setdefault(_FETCHED, False):
        return
    vars(model)[_FETCHED] = True
    warnings.warn(
        "While ranks hold parts of a model, reads of other partitions' weights ask their owners "
        f"one by one, and take memory until the next step. Received: {size_text(size)} of model "
        f"'{model.name}', read on rank 0 between two steps. Read weights at the ends of epochs, "
        "when the leader has them all, or fewer of them.",
        stacklevel=users_stack_level(),
    )


def announce_read(model: Any, size: int, rank: int) -> None:
    """Warn, once for a model, that a rank has read deferred weights which it does not need."""
    if size < _MUCH or vars(model).setdefault(_READ, False):
        return
    vars(model)[_READ] = True
    warnings.warn(
        "A model that was built with `hyparflow.deferred` takes memory for the weights that are "
        f"read, on each rank that reads them. Received: {size_text(size)} of model '{model.name}', "
        f"read on rank {rank} before the call and needed by other partitions only. Read fewer "
        "weights, or only after training; `summary` and `count_params` read none.",
        stacklevel=users_stack_level(),
    )


def _announce_batchnorm(model: Any, call: Call) -> None:
    """Warn if BatchNormalization layers normalize over less than the global batch."""
    names = [layer.name for layer in normalized_layers(model) if layer.trainable]
    mode, grid = call.options.batchnorm, call.options.grid
    if not names or (mode == "sync" and call.num_microbatches == 1):
        return
    over = "all replicas" if mode == "sync" or grid.num_replicas == 1 else "one replica"
    moving = "each of them" if mode == "local" else "the whole global batch"
    remedies = "fewer micro-batches, a larger batch, GroupNormalization"
    if grid.num_replicas > 1 and mode != "sync":
        remedies = f"batchnorm='sync', {remedies}"
    if mode == "local" and call.num_microbatches > 1:
        remedies = f"batchnorm='deferred' for the moving statistics, {remedies}"
    warnings.warn(
        f"batchnorm={mode!r}: {len(names)} BatchNormalization layers ({_some(names)}) normalize "
        f"over a micro-batch of {over}, not over the global batch as in one process; their moving "
        f"statistics follow {moving}. Remedies: {remedies}.",
        stacklevel=users_stack_level(),
    )


def _some(names: list[str]) -> str:
    """The first few of `names`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _listed(words: list[str]) -> str:
    """The first few of `words`, which quote names themselves."""
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if words[4:] else "")
