"""`fit(..., launch=True)`: starts ranks, trains on them, and brings the weights back."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Mapping
from types import GeneratorType
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.recursion import deep_models
from hyparflow.engine.compiled import choice
from hyparflow.formats.argument_checks import count_of
from hyparflow.launching.function import launch
from hyparflow.model.building import build_weights
from hyparflow.model.checks import check_model
from hyparflow.model.keras_internals.data import is_array_data
from hyparflow.model.keras_internals.layers import seed_states
from hyparflow.options import declared, resolve
from hyparflow.planning.as_arguments import as_plan
from hyparflow.tracing.collect import wants_trace
from hyparflow.training.data.array_source import ArraySource
from hyparflow.training.data_arguments import keras_arguments

__all__ = ["fit_on_ranks"]


class Trained(NamedTuple):
    """The results of training that the leader sends back.

    Attributes:
        build: the data to build a model that was not built.
        weights: the weights of the model, and the states of its random generators.
        optimizer: the values of its variables.
        history: the History's attributes.
        randomness: see `_randomness`.
    """

    build: Any
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    history: dict[str, Any]
    randomness: tuple[Any, ...]


def fit_on_ranks(
    fit: Callable[..., Any],
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    own: dict[str, Any],
    options: Mapping[str, Any],
) -> Any:
    """Train `model` on new ranks, and give it the trained weights.

    Args:
        fit: `hyparflow.fit`, which each rank calls.
        model: a compiled Keras model.
        args, kwargs: the arguments of Keras's `fit`.
        own: the further arguments of `hyparflow.fit`.
        options: keyword arguments of `hyparflow.launch`. Without `num_ranks`, the number of ranks
            follows from the numbers of partitions and replicas.

    Returns:
        The History.

    Raises:
        ValueError: if the number of ranks is not known, or something cannot be sent.
    """
    check_model(model)
    keras_arguments(model, "fit", args, kwargs)
    wants_trace(own["trace"])
    _check_options(options)
    ranks = {"num_ranks": _num_ranks(own)} | dict(options)
    if ranks["num_ranks"] is None:
        raise ValueError(
            "`launch` must know how many ranks to start. Received: no number of them. Pass "
            "num_partitions, num_replicas, num_sequence_shards, or launch={'num_ranks': 2}."
        )
    if own["plan"] is None:
        count = count_of("num_ranks", ranks["num_ranks"])
        resolve(count, **{name: own[name] for name in declared()})
    x = args[0] if args else kwargs.get("x")
    _check_data(x, kwargs.get("validation_data"))
    _build(model, x)
    trained = launch(
        _train, (fit, model, args, kwargs | own | {"gather": True}, _randomness(model)), **ranks
    )
    return _take_over(model, trained)


def _check_options(options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(launch).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if unknown := set(options) - set(known):
        raise ValueError(
            f"`launch` takes {', '.join(known)}. Received: {', '.join(map(repr, sorted(unknown)))}"
        )


def _check_data(*data: Any) -> None:
    for value in data:
        if isinstance(value, tf.data.Dataset | GeneratorType):
            raise ValueError(
                "Data go to the ranks as arrays, or as what can be pickled. Received: a "
                f"{type(value).__name__}. Make it on the ranks, in a function for hyparflow.launch."
            )


def _num_ranks(own: dict[str, Any]) -> int | None:
    if (plan := own["plan"]) is not None:
        return as_plan(plan).num_ranks
    names = ("num_partitions", "num_replicas", "num_sequence_shards")
    given = [count_of(name, own[name]) for name in names if own[name] is not None]
    return math.prod(given) if given else None


def _build(model: Any, x: Any) -> None:
    """Draw the first weights in this process, whose random generators plain Keras would use."""
    if not model.built and is_array_data(x):
        build_weights(model, ArraySource(x).specs()[0])


def _train(
    fit: Callable[..., Any], model: Any, args: Any, kwargs: dict[str, Any], randomness: Any
) -> Trained:
    """Train on one rank; the result of the leader is sent back."""
    _continue_with(randomness, model)
    history = fit(model, *args, **kwargs)
    return Trained(
        build=model.get_build_config(),
        weights=[variable.numpy() for variable in _weights(model)],
        optimizer=[keras.ops.convert_to_numpy(variable) for variable in model.optimizer.variables],
        history={name: getattr(history, name) for name in ("history", "epoch", "params")},
        randomness=_randomness(model),
    )


def _take_over(model: Any, trained: Trained) -> Any:
    if not model.built:
        with deep_models():
            model.build_from_config(trained.build)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = [*_weights(model), *model.optimizer.variables]
    for variable, value in zip(variables, (*trained.weights, *trained.optimizer), strict=True):
        variable.assign(value)
    _continue_with(trained.randomness, model)
    history = keras.callbacks.History()
    history.set_model(model)
    vars(history).update(trained.history)
    model.history = history
    return history


def _weights(model: Any) -> list[Any]:
    states = seed_states(model)
    return list({id(variable): variable for variable in (*model.weights, *states)}.values())


def _randomness(model: Any) -> tuple[Any, ...]:
    """What decides the order of samples, and what layers draw: no file has their seeds."""
    seeds = [state.numpy() for state in seed_states(model)]
    return choice.compiler().seed(), random.getstate(), np.random.get_state(), seeds


def _continue_with(randomness: tuple[Any, ...], model: Any) -> None:
    seed, python, numpy, seeds = randomness
    if seed is not None:
        tf.random.set_seed(seed)
    random.setstate(python)
    np.random.set_state(numpy)
    for state, value in zip(seed_states(model), seeds, strict=True):
        state.assign(value)
