"""When steps of the model's own are tried, and what is new in each trial.

The first trial tells how values are joined over replicas. What a step does may change later: by a
count of its own, a schedule, or rows of a kind that come late. So a step is tried again after ever
more steps (`occasions.py`), and once more at the end of training, on all rows of a replica.

What a later trial finds is said, but how values are joined stays: the steps since the last trial
are joined already, and to change it in the middle would give the numbers of neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.custom_steps.findings import StepFindings
from hyparflow.engine.custom_steps.gradients import StepGradients
from hyparflow.engine.custom_steps.kinds import UNKNOWN, Key, group_of
from hyparflow.engine.custom_steps.metrics import StepMetrics
from hyparflow.engine.custom_steps.occasions import is_due
from hyparflow.engine.custom_steps.trial import ALL, FEW, Verdict, agreed, row_count
from hyparflow.engine.custom_steps.trial_runs import OwnTrial

__all__ = ["StepReport", "StepTrials"]

_MANY = 8 * FEW


@dataclass
class StepReport:
    """What a trial has found that earlier ones have not, in names for messages.

    Attributes:
        step: the name of the step.
        before: the number of steps before the trial.
        error: why there was no trial.
        coupled: values that are neither a mean over rows nor a sum.
        worst: words for rows made worse -> values that are neither for such rows.
        changed: values that are joined in another way than this trial finds right.
        decisions: operations that decide by values of the whole batch, where nothing else is found.
    """

    step: str
    before: int = 0
    error: str = ""
    coupled: list[str] = field(default_factory=list)
    worst: dict[str, list[str]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)


class StepTrials:
    """Tries steps, and remembers what it found.

    Attributes:
        trial: runs a trial.
        findings: by the name of the step.

    Args:
        peers: the replicas.
        trial: see above.
        gradients, metrics: those of the steps.
        functions: the steps, by name.
        variables: takes the name of a step and a batch; returns variables that it may change.
        decisions: takes the same; returns the operations that decide by values of the whole batch.
        is_eager: whether steps are not traced.
    """

    def __init__(
        self,
        peers: Communicator,
        trial: OwnTrial,
        gradients: StepGradients,
        metrics: StepMetrics,
        functions: Mapping[str, Callable[..., Any]],
        variables: Callable[[str, Any], Sequence[Any]],
        decisions: Callable[[str, Any], list[str]],
        is_eager: bool,
    ) -> None:
        self._peers = peers
        self.trial = trial
        self._gradients = gradients
        self._metrics = metrics
        self._functions = functions
        self._variables = variables
        self._decisions = decisions
        self._is_eager = is_eager
        self.findings: dict[str, StepFindings] = {}
        self._runs: dict[str, int] = {}
        self._last_trial: dict[str, int] = {}
        self._last: Any = None  # the batch of the last training step

    def before_step(self, name: str, data: Any) -> StepReport | None:
        """Try a step, if it is time, before it runs on this batch. Collective.

        Returns:
            What is new; None if there was no trial.
        """
        runs = self._runs.get(name, 0)
        self._runs[name] = runs + 1
        if name == "train_step":
            self._last = data
        before = self.findings.get(name)
        if before is None or before.is_open:
            return self._first(name, data, before)
        is_due_again = runs > 1 and is_due(runs)
        return self._again(name, data, before, runs) if is_due_again else None

    def at_end(self) -> StepReport | None:
        """Try the training step on its last batch, at the end of a call of `fit`. Collective.

        Only if a tenth more steps than at the last trial have run: one may call `fit` for a few
        steps, and often.
        """
        name, data, self._last = "train_step", self._last, None
        before, runs = self.findings.get(name), self._runs.get(name, 0)
        if data is None or before is None or 10 * runs < 11 * self._last_trial.get(name, 0):
            return None
        return self._again(name, data, before, runs)

    def _first(self, name: str, data: Any, before: StepFindings | None) -> StepReport | None:
        """Find out how values are joined."""
        found = before or self._found(name, data, None, FEW)
        if found.is_open:
            found = self._found(name, data, found, ALL)
        self._take(name, found)
        if before is None:
            worst = {words: found.names(keys) for words, keys in found.worst().items()}
            names = found.names(found.verdict.coupled)
            decisions = [] if names or worst else self._decisions(name, data)
            return StepReport(
                step=name, error=found.error, coupled=names, worst=worst, decisions=decisions
            )
        names = found.names(_news(found.verdict.coupled, before.verdict.coupled))
        return StepReport(step=name, before=self._runs[name] - 1, coupled=names)

    def _again(self, name: str, data: Any, before: StepFindings, runs: int) -> StepReport | None:
        """Find out whether the step still does the same."""
        if before.error:
            return None
        self._last_trial[name] = runs
        known = before.verdict
        verdict = self._verdict(name, data, ALL, known)  # all rows have what is rare
        if self._rows(data) > _MANY:  # of few, halves differ more from each other
            verdict = agreed([self._verdict(name, data, FEW, known), verdict])
        if verdict.error:  # the step itself will raise it, or only takes other rows
            return None
        total = agreed([known, verdict])
        total.scaled, total.common = known.scaled, known.common
        found = self._findings(name, total, before.tries)
        self._take(name, found)
        total.changed |= {
            key
            for key, kind in verdict.kinds.items()
            if key not in total.coupled
            and UNKNOWN not in (kind, known.kinds.get(key, UNKNOWN))
            and known.kinds[key] != kind
        }
        return StepReport(
            step=name,
            before=runs,
            coupled=found.names(_news(total.coupled, known.coupled)),
            changed=found.names(_news(total.changed, known.changed)),
        )

    def _rows(self, data: Any) -> int:
        """The largest number of rows of the batch that a replica has. Collective."""
        return max(self._peers.all_gather_objects(row_count(data), "the rows of a batch"))

    def _take(self, name: str, found: StepFindings) -> None:
        self.findings[name] = found
        if name == "train_step":
            self._gradients.take(found.sums, found.common, found.scaled)

    def _found(self, name: str, data: Any, before: StepFindings | None, half: int) -> StepFindings:
        """The findings of a trial on these rows and of earlier trials."""
        verdict = self._verdict(name, data, half, None)
        if before is not None:
            verdict = agreed([before.verdict, verdict])
        return self._findings(name, verdict, 1 if before is None else before.tries + 1)

    def _verdict(self, name: str, data: Any, half: int, before: Verdict | None) -> Verdict:
        """The verdict of all replicas. Collective."""
        known = len(self._metrics.used)
        mine = self.trial.verdict(
            self._functions[name],
            data,
            lambda: self._variables(name, data),
            name == "train_step",
            self._is_eager,
            half,
            before,
        )
        if before is None or len(self._metrics.used) > known:
            self._metrics.state.include(self._metrics.used.values())
        return agreed(self._peers.all_gather_objects(mine, "what a step computes"))

    def _findings(self, name: str, verdict: Verdict, tries: int) -> StepFindings:
        returned, name_of = self.trial.returned, self.trial.name_of
        return StepFindings(name, verdict, self._gradients, self._metrics, returned, name_of, tries)


def _news(found: set[Key], known: set[Key]) -> set[Key]:
    """The values of groups of which nothing is known yet."""
    said = {group_of(key) for key in known}
    return {key for key in found if group_of(key) not in said}
