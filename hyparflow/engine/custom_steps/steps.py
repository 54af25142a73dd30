"""A model's own `train_step`, `test_step` and `predict_step` on replicas.

Each replica runs the model's own code on its rows. Operations on the whole batch are done over all
replicas at the moment that they happen: gradients are summed when any optimizer is given them
(`gradients.py`), states of metrics when their results are read (`metrics.py`), and other numbers
that a step returns when it ends (`logs.py`). Random numbers are those of the global batch
(`draws.py`). A trial before the first step finds out which values are means over rows, and which
are sums (`trial.py`); later ones find out whether they still are (`step_trials.py`). Changes that
cannot be intercepted, such as a weight written by hand, show when replicas are compared
(`replica_check.py`).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.compiled.captured import captured_variables
from hyparflow.engine.custom_steps.decisions import decisions_of, of_operations
from hyparflow.engine.custom_steps.draws import StepDraws
from hyparflow.engine.custom_steps.gradients import StepGradients
from hyparflow.engine.custom_steps.logs import joined_logs
from hyparflow.engine.custom_steps.metrics import StepMetrics
from hyparflow.engine.custom_steps.replica_check import ReplicaCheck
from hyparflow.engine.custom_steps.same_calls import SameCalls
from hyparflow.engine.custom_steps.state import OwnState
from hyparflow.engine.custom_steps.step_trials import StepReport, StepTrials
from hyparflow.engine.custom_steps.trial_runs import OwnTrial
from hyparflow.engine.loss.head import Labels
from hyparflow.engine.loss.metric_state import MetricState
from hyparflow.engine.loss.terms import LossTerms
from hyparflow.engine.stages.batchnorm import BatchStatistics
from hyparflow.model.keras_internals.compiled import asked_for_xla, own_step
from hyparflow.model.keras_internals.interception import metric_calls, optimizer_calls
from hyparflow.model.keras_internals.layers import seed_states
from hyparflow.model.keras_internals.optimizer import optimizers_of, settable_learning_rates
from hyparflow.pipeline.row_span import RowSpan

__all__ = ["CustomSteps"]

_STEPS = ("train_step", "test_step", "predict_step")


class CustomSteps:
    """The steps that a model's class overrides, or changes by `compute_loss` or `compute_metrics`.

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
        self._draws: StepDraws | None = None
        self._trials: StepTrials | None = None
        self._known_odd: dict[int, Any] = {}
        self._terms: LossTerms | None = None
        # Read now: later the leader's Keras loops run eagerly, whether or not the steps do.
        self._is_eager = bool(model.compiled and model.run_eagerly)
        self._methods: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._traced_variables: list[Any] = []
        names = [name for name in _STEPS if own_step(model, name)]
        self._state = OwnState(model)
        if names and peers.size > 1:
            self._draws = StepDraws(peers)
            self._state.leave_out([*self._draws.variables, *self._gradients.prepare()])
            parts = self._gradients, self._metrics, statistics
            trial = OwnTrial(model, self._state, self._draws, *parts)
            self._trials = StepTrials(
                peers,
                trial,
                *parts[:2],
                functions=self._functions,
                variables=self._variables,
                decisions=self._decisions,
                is_eager=self._is_eager,
            )
        for name in names:
            # Keras's own, not the method that replaces it while a call runs.
            self._methods[name] = getattr(model, name)
            self.compile_anew(name)

    def compile_anew(self, name: str) -> None:
        """Trace the step of this name, if there is one, again, with the present Python values.

        What its code did to them when it was traced is undone, for it will do so again.
        """
        if name in self._methods:
            self._state.undo_trace(name)
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
        if self._trials is not None:
            self._trials.trial.terms = terms
        data = _packed(*specs)
        for name in ("train_step", "test_step"):
            if name in self and not self._is_eager:
                # A step that is not used need not work, for example without a loss.
                may_fail = contextlib.suppress(*([Exception] if name == "test_step" else []))
                with may_fail, self._state.noting_trace(name):
                    concrete = self._traced(self._functions[name], data)
                    self._traced_variables += captured_variables(concrete)

    def _traced(self, function: Any, data: Any) -> Any:
        """Trace a compiled step for any number of rows of `data`; returns the concrete function."""
        types = keras.tree.map_structure(
            lambda x: None if x is None else tf.TensorSpec([None, *x.shape[1:]], x.dtype), data
        )
        count = 0 if self._terms is None else self._terms.count
        scalars = [tf.TensorSpec([], tf.float64), tf.TensorSpec([count], tf.float64)]
        return function.get_concrete_function(types, *scalars)

    def shared(self) -> list[Any] | None:
        """The variables that steps use beside those of the model and its optimizer, in an order
        that all ranks share; all must begin with the leader's values. None without such steps.
        """
        if self._draws is None or not {"train_step", "test_step"} & set(self._functions):
            return None
        return self._state.shared(self._optimizers(), self._traced_variables, self.metrics)

    def attach(self, state: MetricState) -> None:
        """Take the state of the model's metrics."""
        self._metrics.attach(state)

    def _compiled(self, name: str) -> Callable[..., Any]:
        run = self._with_exchanges(name, self._methods[name])
        if self._is_eager:
            return run
        # XLA must know all sizes, and lets nothing be exchanged: it is refused for other steps.
        by_xla = name == "predict_step" and self._draws is None and asked_for_xla(self._model)
        return tf.function(run, autograph=False, reduce_retracing=True, jit_compile=by_xla or None)

    def _with_exchanges(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(data: Any, share: Any, factors: Any) -> Any:
            with self._adapted(name, share, factors):
                return step(data)

        return run

    @contextlib.contextmanager
    def _adapted(self, name: str, share: Any, factors: Any) -> Iterator[None]:
        """While open, optimizers and metrics count the rows of all replicas."""
        if self._draws is None:
            yield
            return
        self._gradients.begin()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._draws.around(name))
            stack.enter_context(optimizer_calls(self._gradients.around))
            stack.enter_context(metric_calls(self._metrics.around))
            if self._terms is not None:
                # Updates of metrics are weighted after the step, and not by the losses.
                stack.enter_context(self._terms.used_by(self._model, tf.ones_like(share), factors))
            stack.enter_context(self._statistics.observed(share))
            yield

    # --- what the worker calls ---

    def try_out(self, name: str, x: Any, labels: Labels) -> StepReport | None:
        """Try a step, if it is time, before it runs. Collective.

        Returns:
            What is new; None if there was no trial.
        """
        if self._trials is None:
            return None
        return self._trials.before_step(name, _packed(x, labels.y, labels.sample_weight))

    def try_at_end(self) -> StepReport | None:
        """Try the training step once more at the end of training; as `try_out`. Collective."""
        return None if self._trials is None else self._trials.at_end()

    def run(self, name: str, x: Any, labels: Labels, span: RowSpan) -> dict[str, Any]:
        """Run a step on this replica's rows; returns its values, joined over replicas. Collective.

        Args:
            name: the name of the step.
            x, labels: the rows.
            span: their places in the global batch.

        Raises:
            ValueError: if replicas do different things.
        """
        data, share = _packed(x, labels.y, labels.sample_weight), float(labels.share)
        if self._draws is not None and self._trials is not None:
            self._draws.begin(span, self._is_eager)
            self._gradients.set_share(share)
            self._metrics.state.begin(self._trials.findings[name].weights(share))
        self._same.error = None
        try:
            with self._common_seeds():
                logs = self._functions[name](data, labels.share, labels.factors)
        except Exception:
            if self._same.error is not None:
                raise self._same.error from None
            raise
        logs = logs if isinstance(logs, dict) else {}
        if self._trials is not None:
            found = self._trials.findings[name]
            logs = joined_logs(self._peers, self._same, logs, share, found.log_kinds)
        return logs

    def compare(self, between_steps: bool = False) -> list[str]:
        """The names of other variables that differ between replicas, each once. Collective.

        Args:
            between_steps: whether callbacks may have set learning rates, which reach the other
                ranks with the next step; else a training step has just ended.

        Raises:
            ValueError: if weights differ, or the state of optimizers.
        """
        if self._trials is None or "train_step" not in self:
            return []
        if between_steps:
            odd = self._check.between_steps(lambda: self._compared(no_rates=True))
        else:
            odd = self._check.after_step(self._compared)
        names = [self._state.name(v) for v in odd if self._state.is_weight(v)]
        if names:
            raise self._check.error(names)
        new = [v for v in odd if id(v) not in self._known_odd]
        self._known_odd.update({id(v): v for v in new})
        return [self._state.name(v) for v in new]

    def _compared(self, no_rates: bool = False) -> list[Any]:
        found = self._state.of_training(self._optimizers(), self.metrics)
        rates = settable_learning_rates(self._model) if no_rates else []
        return [v for v in found if all(v is not rate for rate in rates)]

    def predict(self, x: Any, span: RowSpan) -> Any:
        """Run the model's own `predict_step` on this replica's rows. Collective."""
        if self._draws is not None:
            self._draws.begin(span, self._is_eager)
        share, factors = tf.ones([], tf.float64), tf.zeros([0], tf.float64)
        with self._common_seeds():
            return self._functions["predict_step"](_packed(x, None, None), share, factors)

    def _common_seeds(self) -> contextlib.AbstractContextManager[None]:
        """While open, all replicas draw by the leader's seeds."""
        if self._draws is None or "train_step" in self:  # seeds are always the same then
            return contextlib.nullcontext()
        # Keras's own step trains, by other seeds on each replica.
        return self._draws.leaders_seeds(seed_states(self._model))

    def _optimizers(self) -> list[Any]:
        held = optimizers_of(self._model)
        return list({id(o): o for o in [*held, *self._gradients.optimizers.values()]}.values())

    def _variables(self, name: str, data: Any) -> list[Any]:
        """The variables that a step may change (TensorFlow's)."""
        known = self._state.everything(self._optimizers(), self.metrics)
        if self._is_eager:
            return known
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first trace has shown the warnings
            return known + captured_variables(self._traced(self._functions[name], data))

    def _decisions(self, name: str, data: Any) -> list[str]:
        """The operations of a step that decide by values of the whole batch."""
        if not self._is_eager:
            return decisions_of(lambda: self._traced(self._functions[name], data))
        run = self._with_exchanges(name, of_operations(self._methods[name]))
        with self._state.kept(lambda: self._variables(name, data)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the step itself will show them
            return decisions_of(lambda: self._traced(tf.function(run, autograph=False), data))


def _packed(x: Any, y: Any, sample_weight: Any) -> Any:
    """A batch as Keras hands it to a step."""
    return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
