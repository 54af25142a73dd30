"""Access to what `compile` made: losses, metrics and the optimizer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from hyparflow.model.keras_internals.layers import (
    call_model,
    opened_graph,
    output_structure,
    symbolic_output,
)
from hyparflow.model.keras_internals.patched import patched

__all__ = [
    "asked_for_xla",
    "build_compiled",
    "compile_arguments",
    "compile_loss",
    "compile_metrics",
    "copy_with_losses",
    "has_overridden",
    "has_own_call",
    "loss_entries",
    "loss_tracker",
    "loss_values",
    "masked_weight",
    "metric_function",
    "own_step",
    "replaced_loss",
    "symbolic_batch",
    "tracked_metrics",
]


def loss_tracker(model: Any) -> Any:
    """The metric called "loss" of a compiled model."""
    return model._loss_tracker


def compile_loss(model: Any) -> Any | None:
    """The object that evaluates the losses given to `compile`, or None."""
    return model._compile_loss


def compile_metrics(model: Any) -> Any | None:
    """The object that holds the metrics given to `compile`, or None."""
    return model._compile_metrics


def loss_entries(compiled: Any) -> list[Any]:
    """The flat losses of a built compile-loss object: (path, loss, loss weight, name)."""
    return list(compiled._flat_losses)


def metric_function(metric: Any) -> Callable[[Any, Any], Any] | None:
    """The user's own function that `metric` takes the mean of, or None."""
    function = getattr(metric, "_fn", None)
    if not isinstance(metric, keras.metrics.MeanMetricWrapper) or function is None:
        return None
    if getattr(function, "__module__", "").startswith("keras."):
        return None
    return functools.partial(function, **metric._fn_kwargs)


def copy_with_losses(
    compiled: Any, losses: Iterable[Any], wrap_metric: Callable[[Any], Any] | None = None
) -> Any:
    """A compile-loss object like `compiled` with each loss, and each metric, replaced.

    Keras resolves names, structures and weights of several outputs; only the leaves are wrapped.
    Without `wrap_metric` the copy ignores metrics.
    """
    ignore = _IgnoredMetric() if wrap_metric is None else None
    metrics = [ignore or wrap_metric(metric) for metric in compiled.metrics]  # type: ignore[misc]
    kind: Any = type(compiled)
    twin = _twin_class(kind)(compiled, metrics)
    entries = loss_entries(compiled)
    twin._flat_losses = [
        entry._replace(loss=loss) for entry, loss in zip(entries, losses, strict=True)
    ]
    return twin


@functools.cache
def _twin_class(kind: Any) -> Any:
    """A class of compile-loss objects like another one, with other metrics; made once for each."""

    class Twin(kind):  # type: ignore[misc]
        def __init__(self, compiled: Any, metrics: list[Any]) -> None:
            self.__dict__.update(compiled.__dict__)
            self.__dict__["twin_metrics"] = metrics

        @property
        def metrics(self) -> list[Any]:
            found: list[Any] = self.__dict__["twin_metrics"]
            return found

    return Twin


def symbolic_batch(model: Any, specs: Any) -> Any:
    """Symbolic (y, y_pred, sample weights) of a model, or None without labels or `call`."""
    x, y, sample_weight = specs
    if y is None:
        return None
    functional = opened_graph(model)
    if functional is None and not has_overridden(model, "call"):
        return None  # the model has no `call`; its own steps call its layers
    if functional is None:
        outputs = symbolic_output(lambda x: call_model(model, x, False), _symbolic(x))
    else:
        outputs = output_structure(functional, functional.outputs)
    return _symbolic(y), _symbolic(outputs), _symbolic(sample_weight)


def compile_arguments(model: Any) -> dict[str, Any]:
    """What `compile` was called with."""
    config = getattr(model, "_compile_config", None)
    return {} if config is None else config.config


def asked_for_xla(model: Any) -> bool:
    """Whether `compile` was given jit_compile=True, and "auto" would not have become True.

    Keras does not keep the word "auto". On GPUs it becomes True for nearly all models, so there
    True does not mean that the user asked for XLA.
    """
    is_on = compile_arguments(model).get("jit_compile") is True
    return is_on and not model._resolve_auto_jit_compile()


def build_compiled(model: Any, symbolic: Any) -> None:
    """Create the losses' and metrics' variables, without running the model.

    Keras does this in its first step; a rank that never sees the outputs must do it before, and
    every rank in the same order.
    """
    if symbolic is None:
        return
    metrics = model._compile_metrics
    if metrics is not None and not metrics.built:
        symbolic_output(_updated(metrics), *symbolic)
    loss = model._compile_loss
    if loss is not None and not loss.built:
        symbolic_output(loss, *symbolic)


def _updated(metrics: Any) -> Any:
    def update(y: Any, y_pred: Any, sample_weight: Any) -> Any:
        metrics.update_state(y, y_pred, sample_weight)
        return y_pred

    return update


def _symbolic(structure: Any) -> Any:
    """Symbolic tensors like those in `structure`, with any number of rows."""
    return keras.tree.map_structure(
        lambda x: (
            None
            if x is None
            else keras.KerasTensor(
                (None, *x.shape[1:]), dtype=keras.backend.standardize_dtype(x.dtype)
            )
        ),
        structure,
    )


class _IgnoredMetric:
    """A metric that is never updated."""

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def masked_weight(sample_weight: Any, mask: Any, reduction: str) -> Any | None:
    """Sample weights times mask, broadcast as Keras's losses do it."""
    from keras.src.losses.loss import apply_mask

    return apply_mask(sample_weight, mask, dtype="float64", reduction=reduction)


def loss_values(loss: Any, y_true: Any, y_pred: Any) -> Any | None:
    """The values of a loss before weights and reduction, or None where it has no such step.

    Converts its arguments as Keras's losses do. `ignore_class` leaves a mask on the values.
    """
    if not hasattr(loss, "call") or has_own_call(loss):
        return None

    def convert(x: Any) -> Any:
        return keras.ops.convert_to_tensor(x, dtype=loss.dtype)

    return loss.call(
        keras.tree.map_structure(convert, y_true), keras.tree.map_structure(convert, y_pred)
    )


def has_own_call(loss: Any) -> bool:
    """Whether a loss overrides `__call__`, where Keras reduces values, and not only `call`."""
    return has_overridden(loss, "__call__")


def has_overridden(model: Any, method: str) -> bool:
    """Whether the class of `model` has its own `method` instead of Keras's."""
    for cls in type(model).__mro__:
        if method in vars(cls):
            return not cls.__module__.startswith("keras.")
    return False


def own_step(model: Any, step: str) -> str | None:
    """The method by which the class of `model` makes a step its own; None if the step is Keras's.

    That is the step itself, or what Keras's `train_step` and `test_step` call.

    Args:
        model: a Keras model.
        step: "train_step", "test_step" or "predict_step".
    """
    called = () if step == "predict_step" else ("compute_loss", "compute_metrics")
    return next((name for name in (step, *called) if has_overridden(model, name)), None)


@contextlib.contextmanager
def replaced_loss(model: Any, compiled: Any) -> Iterator[None]:
    """While open, `model.compute_loss` uses another compile-loss object."""
    with patched(model, _compile_loss=compiled):
        yield


def tracked_metrics(model: Any) -> list[Any]:
    """All metrics that a model holds, whether or not its `metrics` names them."""
    compiled = model._compile_metrics
    layers = model._flatten_layers()
    found = [*model.metrics, model._loss_tracker, *(m for x in layers for m in x._metrics)]
    found += [] if compiled is None else compiled.metrics
    return list({id(metric): metric for metric in found if metric is not None}.values())
