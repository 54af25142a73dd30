"""Checks of a call before any message is sent; errors are the same on every rank."""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.formats.text import shortened
from hyparflow.model.keras_internals.compiled import (
    asked_for_xla,
    compile_loss,
    has_overridden,
    own_step,
)
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.optimizer import own_application
from hyparflow.options import Options

_STEPS = ("train_step", "test_step", "predict_step")
_MAKERS = ("make_train_function", "make_test_function", "make_predict_function")

__all__ = [
    "check_batch",
    "check_jit_compile",
    "check_labels",
    "check_optimizer",
    "check_own_steps",
    "check_recompute",
    "check_sequences",
    "check_shards",
    "check_state",
]


def check_jit_compile(model: Any, options: Options) -> None:
    """Check that XLA need not compile an exchange between ranks.

    Raises:
        ValueError: if XLA would have to.
    """
    asked = asked_for_xla(model)
    if asked and (own := own_step(model, "train_step")):
        raise ValueError(
            f"XLA cannot compile a model's own `{own}` over several ranks, which exchange "
            "gradients within the step. Received: jit_compile=True and model of class "
            f"'{type(model).__name__}'. Compile the model with jit_compile=False."
        )
    normalizing = [
        layer.name
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        if options.batchnorm == "sync" or layer.synchronized
    ]
    if asked and normalizing and options.grid.num_replicas > 1:
        raise ValueError(
            "XLA cannot compile layers that exchange their statistics between ranks. Received: "
            f"jit_compile=True and synchronized layers {normalizing}. Compile the model with "
            "jit_compile=False, or use batchnorm='local'."
        )


def check_own_steps(model: Any, options: Options) -> None:
    """Check that a model's own steps, if it has any, can run on replicas.

    Raises:
        ValueError: if the model is cut, or its batches are parted on one rank.
    """
    name = type(model).__name__
    own = [own for step in _STEPS if (own := own_step(model, step))]
    functions = [make for make in _MAKERS if has_overridden(model, make)]
    if functions:
        raise ValueError(
            f"A model with its own `{functions[0]}` is not supported over several ranks. Received: "
            f"model of class '{name}'. Override `{functions[0][5:-9]}_step`, which "
            "strategy='data' calls, or train in one process."
        )
    grid = options.grid
    if own and grid.placement.num_stages > 1:
        raise ValueError(
            f"A model with its own `{own[0]}` cannot be cut: that step needs the whole model at "
            f"once. Received: model of class '{name}' with {grid.num_partitions} partitions of "
            f"{grid.placement.depth} stages. Use strategy='data', which runs it on "
            "each replica's rows."
        )
    if own and (options.compression or options.allreduce != "mpi"):
        raise ValueError(
            f"A model with its own `{own[0]}` has its gradients summed by MPI, as they are. "
            f"Received: model of class '{name}' with allreduce={options.allreduce!r}, "
            f"compression={options.compression!r}. Leave them out."
        )
    if own and options.shard_optimizer and grid.num_replicas > 1:
        raise ValueError(
            f"A model with its own `{own[0]}` updates all weights on each replica. Received: model "
            f"of class '{name}' with shard_optimizer=True. Leave it out."
        )
    if own and options.num_microbatches not in ("auto", 1):
        raise ValueError(
            f"A model with its own `{own[0]}` takes a replica's rows at once. Received: model of "
            f"class '{name}' with num_microbatches={options.num_microbatches}. Leave it out."
        )


def check_recompute(model: Any, options: Options) -> None:
    """Check that the steps of a model can compute forwards again, if that is asked for.

    Raises:
        ValueError: if they cannot.
    """
    if options.recompute is None:
        return
    own = own_step(model, "train_step")
    if own or model.run_eagerly:
        what = f"its own `{own}`" if own else "run_eagerly=True"
        raise ValueError(
            "`recompute` is for stages that hyparflow compiles and whose backward it runs. "
            f"Received: recompute={options.recompute!r} and a model of class "
            f"'{type(model).__name__}' with {what}. Leave `recompute` out, or build the model's "
            "layers under keras.RematScope."
        )


def check_sequences(model: Any, options: Options) -> None:
    """Check that sequences may be divided in the steps of a model, if that is asked for.

    Raises:
        ValueError: if they may not.
    """
    if not options.divides_sequences:
        return
    own = next((own for step in _STEPS if (own := own_step(model, step))), None)
    reasons = {
        f"its own `{own}`": own is not None,
        "run_eagerly=True": bool(model.compiled and model.run_eagerly),
        "jit_compile=True": asked_for_xla(model),
        f"schedule={options.schedule!r}": options.schedule.startswith("zero-bubble"),
        "sharded_data=True": options.sharded_data and (options.num_sequence_shards or 1) > 1,
    }
    if broken := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(
            "A sequence is divided where hyparflow compiles each step in sections, runs whole "
            "backwards, and gives all shards the same rows. Received: model of class "
            f"'{type(model).__name__}' with {' and '.join(broken)}. Leave that out, or "
            "`num_sequence_shards` and `num_sequence_chunks`."
        )


def check_optimizer(optimizer: Any, options: Options) -> None:
    """Check that `optimizer` can update the weights of one rank without the others'.

    Raises:
        ValueError: if the optimizer cannot.
    """
    several = getattr(keras.optimizers, "MultiOptimizer", None)  # since Keras 3.15
    is_several = several and isinstance(optimizer, several)
    partitions = options.grid.num_partitions
    if is_several and partitions > 1:
        raise ValueError(
            "A MultiOptimizer cannot be used on a model that is cut: its optimizers clip and "
            "average over weights of other partitions. Received: optimizer of class "
            f"'{type(optimizer).__name__}' with {partitions} partitions. Use "
            "strategy='data', or one optimizer."
        )
    is_sharded = options.shard_optimizer and options.grid.num_replicas > 1
    if partitions == 1 and not is_sharded:
        return
    method = own_application(optimizer)
    if is_several or method is not None:
        reason = "several optimizers" if is_several else f"its own `{method}`"
        layout = "shard_optimizer=True" if partitions == 1 else f"{partitions} partitions"
        raise ValueError(
            "An optimizer whose weights are updated by several ranks must update each weight by "
            "its own gradient and slots. Received: optimizer of class "
            f"'{type(optimizer).__name__}' with {reason}, and {layout}. Override `update_step` "
            "only, or use strategy='data' without shard_optimizer."
        )


def check_state(model: Any, method: str, num_replicas: int, num_microbatches: int) -> None:
    """Check that layers with a state of their own may see the parts of a batch one by one.

    Raises:
        ValueError: naming the layers that may not.
    """
    layers = all_layers(model)
    stateful = [layer.name for layer in layers if getattr(layer, "stateful", False)]
    if stateful and num_replicas * num_microbatches > 1:
        raise ValueError(
            "Layers with stateful=True keep a state for each row of the whole batch. Received: "
            f"{stateful} with {num_replicas} replicas and {num_microbatches} micro-batches. Use "
            "one replica (strategy='model') and num_microbatches=1."
        )
    spectral = [
        layer.name for layer in layers if isinstance(layer, keras.layers.SpectralNormalization)
    ]
    if spectral and method == "fit" and num_microbatches > 1:
        raise ValueError(
            "SpectralNormalization changes its kernel at each call, once per step in one process. "
            f"Received: {spectral} with {num_microbatches} micro-batches. Use num_microbatches=1."
        )


def check_labels(model: Any, y: Any, method: str, within: str | None = None) -> None:
    """Check that there are labels where Keras's step of `method` needs them for a loss.

    Raises:
        ValueError: if there are none.
    """
    own = ("compute_loss", "train_step" if method == "fit" else "test_step")
    has_own = any(has_overridden(model, name) for name in own)
    has_labels = any(leaf is not None for leaf in keras.tree.flatten(y))
    if not has_labels and compile_loss(model) is not None and not has_own:
        raise ValueError(
            f"A model that was compiled with a loss needs labels. Received: y={shortened(y)}"
            f"{f' in `{within}`' if within else ''}. Pass `y` as well, or compile it without loss."
        )


def check_batch(options: Options, rows: int | None) -> None:
    """Check that a global batch of `rows` rows has one for every micro-batch of every replica.

    The batches of a stream, of None rows, may be of any size.

    Raises:
        ValueError: if there are too few rows.
    """
    grid, count = options.grid, options.num_microbatches
    count = count if isinstance(count, int) else 1
    if rows is not None and rows < grid.num_replicas * count:
        raise ValueError(
            "`batch_size` is the global batch and must have at least one row for each "
            f"micro-batch of each replica. Received: batch_size={rows} for "
            f"{grid.num_replicas} replicas x {count} micro-batches. Pass a larger `batch_size`, or "
            "fewer micro-batches or replicas."
        )


def check_shards(options: Options, sources: Any) -> None:
    """Check that data which are said to be sharded are a stream.

    Raises:
        ValueError: if they are arrays, which every rank has as a whole.
    """
    if options.sharded_data and sources:
        raise ValueError(
            "`sharded_data` is for streams: arrays are dealt out by row numbers, so every rank "
            "passes all of them. Received: sharded_data=True with arrays. Leave it out, or pass a "
            "tf.data.Dataset of this replica's part."
        )
