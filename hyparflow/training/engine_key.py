"""The key of a rank's engine: when it changes, the engine must be built again."""

from __future__ import annotations

from typing import Any

from hyparflow.comm import abort
from hyparflow.model.keras_internals.compiled import compile_loss, compile_metrics

__all__ = ["engine_key", "has_another_optimizer", "require_same_weights"]


def engine_key(model: Any) -> tuple[Any, ...]:
    """The key of a rank's engine: the objects that `compile` made, and the weights.

    A model that runs eagerly trains the weights that are trainable when a step begins.
    """
    weights = tuple(map(id, model.weights))
    if not model.compiled:
        return (), None, weights
    made = (model.optimizer, compile_loss(model))
    ids = tuple(map(id, (*made, compile_metrics(model))))
    eager = bool(model.run_eagerly)
    return (ids, eager), eager and tuple(map(id, model.trainable_variables)), weights


def require_same_weights(model: Any, before: tuple[Any, ...], now: tuple[Any, ...]) -> None:
    """Check that a model that was not compiled again has the weights it was compiled with."""
    compiled = model.compiled and not model.run_eagerly
    if compiled and before[0] == now[0] and before[2] != now[2]:
        error = ValueError(
            "A model whose layers or weights were exchanged must be compiled again. Received: "
            f"model '{model.name}' with {len(now[2])} weights, of which there were "
            f"{len(before[2])} in its last `fit` or `evaluate`. Call its `compile`."
        )
        raise abort.mark_collective(error)


def has_another_optimizer(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether the optimizer, and nothing else that `compile` makes, has been exchanged.

    A model that runs eagerly uses the new one at once.
    """
    if not before[0] or not now[0]:  # not compiled
        return False
    (old, was_eager), (new, is_eager) = before[0], now[0]
    return not (was_eager or is_eager) and old[0] != new[0] and old[1:] == new[1:]
