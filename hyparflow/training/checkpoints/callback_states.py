"""What Keras's callbacks count and remember, in a checkpoint and back.

Their own numbers, such as the epochs that `EarlyStopping` has waited, are attributes that are no
arguments. Callbacks of the user's own say nothing of what they keep, and begin anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from hyparflow.training.checkpoints.json_values import from_json, is_plain, to_json

__all__ = ["best_weights", "restore_callbacks", "states_of_callbacks"]

_WEIGHTS = "best_weights"  # of EarlyStopping
_BY_FILE = "append_header"  # of CSVLogger, which finds out from its file


def states_of_callbacks(callbacks: Sequence[Any]) -> list[dict[str, Any]]:
    """For each of Keras's own callbacks, its class and its numbers; see `restore_callbacks`."""
    return [{"class": type(one).__name__, "numbers": _numbers(one)} for one in _kerass(callbacks)]


def best_weights(callbacks: Sequence[Any]) -> dict[str, np.ndarray]:
    """The weights that callbacks hold on to, by name."""
    found = {}
    for number, callback in enumerate(_kerass(callbacks)):
        for place, weight in enumerate(getattr(callback, _WEIGHTS, None) or ()):
            found[f"callbacks/{number}/{place}"] = np.asarray(weight)
    return found


def restore_callbacks(
    callbacks: Sequence[Any], states: Sequence[dict[str, Any]], weights: dict[str, np.ndarray]
) -> list[str]:
    """Let callbacks go on from the states that they had.

    Args:
        callbacks: of the call.
        states: what `states_of_callbacks` returned.
        weights: what `best_weights` returned.

    Returns:
        The classes of callbacks that have no state, for others were given when it was saved.
    """
    left = list(enumerate(states))
    anew = []
    for callback in _kerass(callbacks):
        name = type(callback).__name__
        place = next((n for n, (_, state) in enumerate(left) if state["class"] == name), None)
        if place is None:
            anew.append(name)
            continue
        number, state = left.pop(place)
        vars(callback).update(from_json(state["numbers"]))
        kept = [key for key in weights if key.startswith(f"callbacks/{number}/")]
        if kept:
            ordered = sorted(kept, key=lambda key: int(key.rsplit("/", 1)[1]))
            setattr(callback, _WEIGHTS, [weights[key] for key in ordered])
    return anew


def _kerass(callbacks: Sequence[Any]) -> list[Any]:
    kinds = keras.callbacks.History, keras.callbacks.ProgbarLogger
    return [
        one
        for one in callbacks
        if type(one).__module__.startswith("keras.") and not isinstance(one, kinds)
    ]


def _numbers(callback: Any) -> dict[str, Any]:
    given = set(inspect.signature(type(callback).__init__).parameters)
    given |= {"params", "_model", _BY_FILE}
    return {
        name: to_json(value)
        for name, value in vars(callback).items()
        if name not in given and is_plain(value)
    }
