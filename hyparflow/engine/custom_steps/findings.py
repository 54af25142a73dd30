"""How gradients, metrics and results of a step are joined over replicas, found by trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hyparflow.engine.custom_steps.gradients import StepGradients
from hyparflow.engine.custom_steps.kinds import (
    MEAN,
    SUM,
    UNKNOWN,
    WEIGHTED_SUM,
    Key,
    group_of,
)
from hyparflow.engine.custom_steps.metrics import StepMetrics
from hyparflow.engine.custom_steps.trial import Verdict

__all__ = ["StepFindings"]

_TRIES = 6


class StepFindings:
    """How the values that a step computes are joined over replicas.

    Attributes:
        step: its name.
        sums: (call, position) of gradients that are sums over rows.
        common: (call, position) of sparse gradients that look up the same rows for all samples.
        scaled: calls with gradients of a mean loss that the optimizer scales.
        log_kinds: the kinds of the leaves that it returns.
        error: why there was no trial.
        verdict: the result of the trials.
        tries: the number of trials.

    Args:
        step: its name.
        verdict: that of all replicas.
        gradients, metrics: the gradients that the step gave, the metrics that it used.
        returned: names of the values that it returns.
        name_of: the name of a variable, for messages.
        tries: the number of trials of the verdict.
    """

    def __init__(
        self,
        step: str,
        verdict: Verdict,
        gradients: StepGradients,
        metrics: StepMetrics,
        returned: Sequence[str],
        name_of: Callable[[Any], str],
        tries: int = 1,
    ) -> None:
        self.step = step
        self.error = verdict.error
        self.tries = tries
        self.verdict = verdict
        self._gradients = gradients
        self._metrics = metrics
        self._returned = list(returned)
        self._name_of = name_of
        kinds = verdict.kinds
        self.common = {(key[0], key[1]) for key in verdict.common}
        self.sums = self._summed()
        scaled = verdict.scaled or set()
        self.scaled = set() if {call for call, _ in self.sums} & scaled else scaled
        self.log_kinds: list[str] = []
        logs = [key[1] for key in kinds if key[0] == "log"]
        for leaf in range(max(logs, default=-1) + 1):
            key = ("log", leaf)
            known = kinds.get(key, UNKNOWN)
            self.log_kinds.append(MEAN if key in verdict.of_results else known)
        self._by_variable = self._metric_kinds()

    @property
    def is_open(self) -> bool:
        """Whether a trial with other rows may tell more: some values were zero, or not finite."""
        if self.error or self.tries >= _TRIES:
            return False
        gradients: dict[int, set[str]] = {}
        for key, kind in self.verdict.kinds.items():
            if key[0] == "gradient":
                gradients.setdefault(key[1], set()).add(kind)
        return {UNKNOWN} in gradients.values() or UNKNOWN in self.log_kinds

    def _summed(self) -> set[tuple[int, int]]:
        """Gradients that are sums; zero gradients count like the others of their call."""
        found = set()
        for call, variables in self._gradients.variables.items():
            positions = range(len(variables))
            kinds = [self.verdict.kinds.get(("gradient", call, n), UNKNOWN) for n in positions]
            known = set(kinds) - {UNKNOWN}
            found |= {
                (call, n)
                for n, kind in enumerate(kinds)
                if kind == SUM or (kind == UNKNOWN and known == {SUM})
            }
        return found

    def _metric_kinds(self) -> dict[int, str]:
        """For each variable of a metric, whether what a batch adds is a mean over its rows."""
        used = list(self._metrics.used.values())
        numbers = {id(v): v for metric in used for v in metric.variables}
        place = {key: n for n, key in enumerate(numbers)}
        found: dict[int, str] = {}
        for metric in used:
            kinds = [
                self.verdict.kinds.get(("metric", place[id(v)]), UNKNOWN) for v in metric.variables
            ]
            known = set(kinds) - {UNKNOWN}
            one_number = not known and id(metric) in self._metrics.scalar
            guess = MEAN if known == {MEAN} or one_number else SUM
            for variable, kind in zip(metric.variables, kinds, strict=True):
                found[id(variable)] = guess if kind == UNKNOWN else kind
        return found

    def weights(self, share: float) -> list[float]:
        """The weight of each variable of the metrics' state, on a replica with this share."""
        counts = 1.0 if share else 0.0
        by_kind = {MEAN: share, WEIGHTED_SUM: counts and 1.0 / share}
        variables = self._metrics.state.variables
        return [by_kind.get(self._by_variable.get(id(v), SUM), counts) for v in variables]

    def worst(self) -> dict[str, set[Key]]:
        """The values that are coupled for rows made worse only, by words for these rows."""
        said = {group_of(key) for key in self.verdict.coupled}
        found = {
            words: {key for key in keys if group_of(key) not in said}
            for words, keys in self.verdict.worst.items()
        }
        return {words: keys for words, keys in found.items() if self.names(keys)}

    def names(self, keys: Iterable[Key]) -> list[str]:
        """Names of values, in messages; without those that metrics' results make right."""
        names = []
        metric_names = [
            metric.name
            for metric in self._metrics.used.values()
            for _ in {id(v): v for v in metric.variables}
        ]
        for key in sorted(keys, key=str):
            kind, *place = key
            if kind == "gradient":
                variable = self._gradients.variables[place[0]][place[1]]
                names.append(f"the gradient of '{self._name_of(variable)}'")
            elif kind == "metric":
                names.append(f"metric '{metric_names[place[0]]}'")
            elif key not in self.verdict.of_results:
                names.append(f"'{self._returned[place[0]]}', which it returns")
        return list(dict.fromkeys(names))
