"""Runs trials of a step of the model's own, on a few rows, and sets everything back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.custom_steps.draws import StepDraws
from hyparflow.engine.custom_steps.gradients import StepGradients
from hyparflow.engine.custom_steps.kinds import Seen
from hyparflow.engine.custom_steps.logs import numbers_of, paths_of
from hyparflow.engine.custom_steps.metrics import StepMetrics
from hyparflow.engine.custom_steps.state import OwnState
from hyparflow.engine.custom_steps.trial import FEW, Verdict, few_rows, row_count, tried
from hyparflow.engine.custom_steps.worse_rows import coupled_for_worse_rows
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.stages.batchnorm import BatchStatistics
from hyparflow.pipeline.row_span import RowSpan

__all__ = ["OwnTrial"]

_MORE = 8  # steps in which a trial waits for gradients that are applied every few steps
_PART = 1 / 64  # of a scaled loss, so that its gradients are finite


class OwnTrial:
    """Tries steps.

    Attributes:
        terms: the model's losses.
        returned: names of the values that the last step has returned.
        name_of: the name of a variable, for messages.

    Args:
        model: the user's model.
        state: its variables.
        draws, gradients, metrics, statistics: make the exchanges of a step, but none in a trial.
    """

    def __init__(
        self,
        model: Any,
        state: OwnState,
        draws: StepDraws,
        gradients: StepGradients,
        metrics: StepMetrics,
        statistics: BatchStatistics,
    ) -> None:
        self._model = model
        self._state = state
        self._draws = draws
        self._gradients = gradients
        self._metrics = metrics
        self._statistics = statistics
        self.terms: LossTerms | None = None
        self.returned: list[str] = []
        self.name_of = state.name
        self._step: Callable[..., Any] = lambda *a: None
        self._trains = False

    def verdict(
        self,
        step: Callable[..., Any],
        data: Any,
        variables: Callable[[], Sequence[Any]],
        trains: bool,
        is_eager: bool,
        half: int = FEW,
        before: Verdict | None = None,
    ) -> Verdict:
        """The kinds of the values that a step computes, as far as this replica's rows tell.

        Args:
            step: takes (data, share, factors of the losses).
            data: this replica's batch.
            variables: returns the variables that the step may change.
            trains: whether to repeat the trial until there are gradients.
            is_eager: whether the step was not traced.
            half: the largest number of rows of a half.
            before: that of earlier trials; None for the first, which tries worse rows, too.
        """
        self._step, self._trains = step, trains
        dtype = str(self._model.compute_dtype)
        verdict = Verdict()
        with self._state.kept(variables):
            self._gradients.on_new = self._metrics.on_new = self._state.add
            self._metrics.tried = self._statistics.alone = True
            try:
                with self._draws.tried():
                    if is_eager and before is None:
                        self._look_at_draws(data)
                    verdict = tried(self._seen, data, dtype, half, before)
                    if before is None:
                        verdict.worst = coupled_for_worse_rows(self._seen, data, dtype)
            except Exception as error:  # the step itself will raise it, or only takes other rows
                verdict.error = f"{type(error).__name__}: {str(error)[:200]}"
            finally:
                self._metrics.tried = self._statistics.alone = False
                self._gradients.watcher = None
                self._gradients.on_new = self._metrics.on_new = None
        self._statistics.forget()
        return verdict

    def _look_at_draws(self, data: Any) -> None:
        """Find out which sizes of draws depend on the rows of the batch."""
        both, one, _ = few_rows(data)
        self._draws.watched = True
        try:
            self._run_alone(both)  # the first step may build layers, and draw their weights
            if self._draws.forget_sizes():
                self._run_alone(both)
                self._run_alone(one)
        finally:
            self._draws.watched = False

    def _run_alone(self, data: Any) -> None:
        rows = row_count(data)
        self._seen(data, RowSpan(0, rows, rows))

    def _seen(
        self,
        data: Any,
        span: RowSpan,
        disturbed: bool = False,
        state: dict[int, np.ndarray] | None = None,
    ) -> Seen:
        """What a step computes for a batch that is a part of a whole one; see `trial.Run`."""
        seen = Seen()

        def watch(call: int, gradients: list[np.ndarray], sparse: list[int]) -> None:
            for position, value in enumerate(gradients):
                if position in sparse:
                    seen.rows[call, position] = len(value)
                    value = value.sum(0)
                seen.values.setdefault(("gradient", call, position), np.array(value, float))

        self._state.restore()
        # What many steps have added up would hide, by its rounding, what one adds.
        self._state.begin_metrics(list(self._metrics.used.values()), state or {})
        self._draws.set(span)
        self._gradients.watcher = watch
        self._gradients.set_part(_PART / 2 if disturbed else _PART)
        self._metrics.disturbed = disturbed
        factors = [] if self.terms is None else self.terms.factors(span.rows, span.total)
        arguments = data, tf.ones([], tf.float64), tf.constant(factors, tf.float64, [len(factors)])
        metrics = list(self._metrics.used.values())
        before = self._state.of_metrics(metrics)
        logs = self._step(*arguments)
        metrics = list(self._metrics.used.values())
        for variable, value in self._state.of_metrics(metrics).items():
            with np.errstate(invalid="ignore"):  # infinity minus infinity
                seen.values["metric", variable] = value - before.get(variable, 0.0)
            seen.state[variable] = value
        logs = logs if isinstance(logs, dict) else {}
        self.returned = paths_of(logs)
        for leaf, number in enumerate(numbers_of(logs)):
            if number is not None:
                seen.values["log", leaf] = np.array(number, float)
        calls = set(self._gradients.variables)
        for _ in range(_MORE if self._trains else 0):
            if calls and calls <= {key[1] for key in seen.values if key[0] == "gradient"}:
                break
            self._step(*arguments)
        return seen
