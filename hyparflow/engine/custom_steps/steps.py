"""A model's own `train_step`, `test_step` and `predict_step` on replicas.

Each replica runs the model's own code on its rows. What the code does with the whole batch in one
process is done over all replicas at the moment that it happens: gradients are summed when any
optimizer is given them (`hyparflow.engine.custom_steps.gradients`), states of metrics when their
results are read (`hyparflow.engine.custom_steps.metrics`), and other numbers that a step returns
when it ends (`hyparflow.engine.custom_steps.logs`). Which of them are means over rows, and which
are sums, a trial finds out before the first step (`hyparflow.engine.custom_steps.trial`). What
nobody can see, such as a weight written by hand, the comparison of replicas shows
(`hyparflow.engine.custom_steps.replica_check`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.custom_steps.findings import StepFindings
from hyparflow.engine.custom_steps.gradients import StepGradients
from hyparflow.engine.custom_steps.logs import joined_logs, numbers_of, paths_of
from hyparflow.engine.custom_steps.metrics import StepMetrics
from hyparflow.engine.custom_steps.replica_check import ReplicaCheck
from hyparflow.engine.custom_steps.same_calls import SameCalls
from hyparflow.engine.custom_steps.state import OwnState
from hyparflow.engine.custom_steps.trial import Seen, Verdict, agreed, tried
from hyparflow.engine.loss.head import Labels
from hyparflow.engine.loss.metric_state import MetricState
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.stages.batchnorm import BatchStatistics
from hyparflow.model.keras_internals.compiled import asked_for_xla, own_step
from hyparflow.model.keras_internals.interception import metric_calls, optimizer_calls
from hyparflow.model.keras_internals.optimizer import optimizers_of

__all__ = ["CustomSteps"]

_STEPS = ("train_step", "test_step", "predict_step")
_MORE = 8  # steps in which a trial waits for gradients that are applied every few steps


class CustomSteps:
    """The steps that a model's class has in place of Keras's, or changes by its `compute_loss` or
    `compute_metrics`.

    Args:
        model: the user's model.
        peers: the replicas.
        statistics: what BatchNormalization layers normalize by.
    """

    def __init__(self, model: Any, peers: Communicator, statistics: BatchStatistics) -> None:
        self._model = model
        self._peers = peers
        self._statistics = statistics
        self._same = SameCalls(peers)
        self._gradients = StepGradients(model, peers, statistics.order, self._same)
        self._metrics = StepMetrics(peers, statistics.order, self._same)
        self._check = ReplicaCheck(peers)
        self._state = OwnState(model)
        self._findings: dict[str, StepFindings] = {}
        self._terms: LossTerms | None = None
        # Now, for on the leader Keras's loops run eagerly, whatever the steps do.
        self._is_eager = bool(model.compiled and model.run_eagerly)
        self._methods: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._returned: list[str] = []  # names of what a step returns
        for name in _STEPS:
            if own_step(model, name):
                # Not the one that is in its place while a call runs.
                self._methods[name] = getattr(model, name)
                self.compile_anew(name)

    def compile_anew(self, name: str) -> None:
        """From now on, the step of this name, if there is one, reads Python's present values."""
        if name in self._methods:
            self._functions[name] = self._compiled(name)

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    @property
    def metrics(self) -> list[Any]:
        """The metrics that steps are known to use."""
        return list(self._metrics.used.values())

    def prepare(self, specs: Any, terms: LossTerms | None) -> None:
        """Trace the steps, so that optimizers and metrics have their variables on all ranks.

        Args:
            specs: types of (x, y, sample weights).
            terms: the model's losses.
        """
        self._terms = terms
        types = keras.tree.map_structure(
            lambda spec: None if spec is None else tf.TensorSpec(spec.shape, spec.dtype), specs
        )
        count = 0 if terms is None else terms.count
        scalars = [tf.TensorSpec([], tf.float64), tf.TensorSpec([count], tf.float64)]
        for name in ("train_step", "test_step"):
            if name in self and not self._is_eager:
                self._functions[name].get_concrete_function(_packed(*types), *scalars)

    def attach(self, state: MetricState) -> None:
        """Take the state of the model's metrics."""
        self._metrics.state = state

    def _compiled(self, name: str) -> Callable[..., Any]:
        step = self._methods[name]

        def run(data: Any, share: Any, factors: Any) -> Any:
            with self._adapted(share, factors):
                return step(data)

        if self._is_eager:
            return run
        # Gradients and metrics are exchanged between ranks within these: XLA is refused there.
        by_xla = name == "predict_step" and _wants_xla(self._model)
        return tf.function(run, autograph=False, reduce_retracing=True, jit_compile=by_xla or None)

    @contextlib.contextmanager
    def _adapted(self, share: Any, factors: Any) -> Iterator[None]:
        """While open, optimizers and metrics count the rows of all replicas."""
        if self._peers.size == 1:
            yield
            return
        self._gradients.begin()
        with contextlib.ExitStack() as stack:
            stack.enter_context(optimizer_calls(self._gradients.around))
            stack.enter_context(metric_calls(self._metrics.around))
            if self._terms is not None:
                # What a step adds to metrics is weighted after it, so not by the losses.
                stack.enter_context(self._terms.used_by(self._model, tf.ones_like(share), factors))
            stack.enter_context(self._statistics.observed(share))
            yield

    # --- what the worker calls ---

    def try_out(self, name: str, x: Any, labels: Labels) -> StepFindings | None:
        """Before the first step of a kind: find out what it computes. Collective.

        Returns:
            What is to be said of it, or None after the first step.
        """
        if self._peers.size == 1 or name in self._findings:
            return None
        data = _packed(x, labels.y, labels.sample_weight)
        verdict = Verdict()
        with self._state.kept(lambda: self._variables(name, data, labels)):
            self._gradients.on_new = self._metrics.on_new = self._state.add
            self._metrics.tried = self._statistics.alone = True
            try:
                dtype = str(self._model.compute_dtype)
                verdict = tried(lambda *a: self._seen(name, *a), data, dtype)
            except Exception as error:  # the step itself will tell, or take no such part
                verdict.error = f"{type(error).__name__}: {str(error)[:200]}"
            finally:
                self._metrics.tried = self._statistics.alone = False
                self._gradients.watcher = None
                self._gradients.on_new = self._metrics.on_new = None
        self._statistics.forget()
        if self._metrics.state is not None:
            self._metrics.state.include(self.metrics)
        if self._state.draws_numbers:
            self._functions[name] = self._compiled(name)  # generators begin where they would have
        total = agreed(self._peers.all_gather_objects(verdict, "what a step computes"))
        found = StepFindings(name, total, self._gradients, self._metrics, self._returned)
        self._findings[name] = found
        if name == "train_step":
            self._gradients.sums, self._gradients.common = found.sums, found.common
        return found

    def run(self, name: str, x: Any, labels: Labels) -> dict[str, Any]:
        """Run a step on this replica's rows; what it returned, of all replicas. Collective.

        Raises:
            ValueError: if replicas do not the same.
        """
        data, share = _packed(x, labels.y, labels.sample_weight), float(labels.share)
        several = self._peers.size > 1
        if several:
            self._gradients.share = share
            self._metrics.state.begin(self._findings[name].weights(share))  # type: ignore[union-attr]
        self._same.error = None
        try:
            logs = self._functions[name](data, labels.share, labels.factors)
        except Exception:
            if self._same.error is not None:
                raise self._same.error from None
            raise
        logs = logs if isinstance(logs, dict) else {}
        if several:
            found = self._findings[name]
            logs = joined_logs(self._peers, self._same, logs, share, found.log_kinds)
        return logs

    def compare(self) -> list[Any]:
        """After a training step: variables of replicas that differ and need not. Collective.

        Raises:
            ValueError: if weights differ, or the state of optimizers.
        """
        odd = self._check.after_step(lambda: self._state.of_training(self._optimizers()))
        names = [self._state.name(v) for v in odd if self._state.is_weight(v)]
        if names:
            raise self._check.error(names)
        return [self._state.name(v) for v in odd]

    def predict(self, x: Any) -> Any:
        """Run the model's own `predict_step` on this replica's rows."""
        share, factors = tf.ones([], tf.float64), tf.zeros([0], tf.float64)
        return self._functions["predict_step"](_packed(x, None, None), share, factors)

    # --- the trial ---

    def _optimizers(self) -> list[Any]:
        held = optimizers_of(self._model)
        return list({id(o): o for o in [*held, *self._gradients.optimizers.values()]}.values())

    def _variables(self, name: str, data: Any, labels: Labels) -> list[Any]:
        """The variables that a step may change (TensorFlow's)."""
        known = self._state.everything(self._optimizers(), self.metrics)
        if not self._model.run_eagerly:
            function = self._functions[name]
            graph = function.get_concrete_function(data, labels.share, labels.factors).graph
            known += graph.variables
            self._state.look_at(graph)
        return known

    def _seen(
        self, name: str, data: Any, rows: int, whole: int, disturbed: bool, goes_on: bool
    ) -> Seen:
        """What a step computes for a batch that is a part of a whole one."""
        seen = Seen()

        def watch(call: int, gradients: list[np.ndarray], sparse: list[int]) -> None:
            for position, value in enumerate(gradients):
                if position in sparse:
                    seen.rows[call, position] = len(value)
                    value = value.sum(0)
                seen.values.setdefault(("gradient", call, position), np.array(value, float))

        self._state.restore(without_seeds=goes_on)
        self._gradients.watcher = watch
        self._metrics.disturbed = disturbed
        factors = [] if self._terms is None else self._terms.factors(rows, whole)
        arguments = data, tf.ones([], tf.float64), tf.constant(factors, tf.float64, [len(factors)])
        before = self._state.of_metrics(self.metrics)
        logs = self._functions[name](*arguments)
        for variable, value in self._state.of_metrics(self.metrics).items():
            seen.values["metric", variable] = value - before.get(variable, 0.0)
        logs = logs if isinstance(logs, dict) else {}
        self._returned = paths_of(logs)
        for leaf, number in enumerate(numbers_of(logs)):
            if number is not None:
                seen.values["log", leaf] = np.array(number, float)
        calls = set(self._gradients.variables)
        for _ in range(_MORE if name == "train_step" else 0):
            if calls and calls <= {key[1] for key in seen.values if key[0] == "gradient"}:
                break
            self._functions[name](*arguments)
        return seen


def _wants_xla(model: Any) -> bool:
    return asked_for_xla(model)


def _packed(x: Any, y: Any, sample_weight: Any) -> Any:
    """A batch as Keras hands it to a step."""
    return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
