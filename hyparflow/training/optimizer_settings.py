"""Sends changes of an optimizer by callbacks on the leader to the other ranks, with a step."""

from __future__ import annotations

from typing import Any

from hyparflow.model.keras_internals.optimizer import (
    inner_optimizer,
    learning_rates,
    optimizers_of,
    settable_learning_rates,
)
from hyparflow.training.commands import Changes

__all__ = ["Tuning", "take_over"]


class Tuning:
    """Finds the changes, on the leader.

    Args:
        model: the user's model, before its callbacks run.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._is_eager = model.compiled and model.run_eagerly
        self._optimizers = optimizers_of(model)  # looking for them takes long in deep models
        self._rates: list[float] = []
        self._settings: dict[str, Any] | None = _settings(model)

    def add_to(self, changes: Changes) -> None:
        """Add the changes since the last step to `changes`."""
        if self._settings is not None:
            settings = _settings(self._model)
            changes.settings = dict(settings.items() - self._settings.items())
            # Unless steps run eagerly, they are compiled with the first.
            self._settings = settings if self._is_eager else None
        rates = [float(rate) for one in self._optimizers for rate in learning_rates(one)]
        if rates != self._rates:
            changes.learning_rates = self._rates = rates


def take_over(model: Any, changes: Changes) -> None:
    """Make the changes of the leader's optimizer in this rank's."""
    for name, value in changes.settings.items():
        setattr(inner_optimizer(model.optimizer), name, value)
    if changes.learning_rates is not None:
        rates = settable_learning_rates(model)
        for rate, value in zip(rates, changes.learning_rates, strict=True):
            rate.assign(value)


def _settings(model: Any) -> dict[str, Any]:
    """The optimizer's settings, without its learning rate."""
    if getattr(model, "optimizer", None) is None:
        return {}
    config = inner_optimizer(model.optimizer).get_config()
    simple = {k: v for k, v in config.items() if isinstance(v, int | float | bool | None)}
    return {k: v for k, v in simple.items() if k != "learning_rate"}
