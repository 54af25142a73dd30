"""Draws faults from a seed that a training goes on after, and tells whether it ends with its bits.

A job trains under `hyparflow run --restarts`, and one fault after another comes, most of them in an
attempt of its own; `scripts/survives.py` brings them about. `test_restart_faults.py` tries some,
and `benchmarks/restarts` many.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.hosts import Hosts
from jobs.jobs import SCRIPTS, Job, Result

from hyparflow.formats.checkpoint.folder import CheckpointFolder
from hyparflow.formats.checkpoint.verify import verify

__all__ = ["DEADLINE", "KINDS", "Fault", "Loss", "Outcome", "Plan", "draw", "expected", "try_out"]

DEADLINE = 6.0  # HYPARFLOW_TIMEOUT
KINDS = ("kill", "stop", "raise", "disk", "mpirun", "cut")
_ON_ONE_HOST = KINDS[:-1]
_ON_TWO_HOSTS = ("cut", "cut", "cut", "cut", "cut", "kill", "stop", "mpirun")
# Before, during and after saves: a share half written, the record that says that it is written half
# written, before the index is renamed, between that and the removal of older steps, and amid that.
_MOMENTS = {"step": 5, "share": 2, "record": 1, "commit": 2, "committed": 2, "removal": 1}
_FATAL = ("kill", "stop", "mpirun")  # after them another attempt begins for certain
_STEPS, _EPOCH = 10, 12  # from one fault to the next; of an epoch
_LIMIT = 90.0  # seconds for each attempt, after which a job is endless
_REPORT = re.compile(
    r"hyparflow run: attempt (\d+) on \d+ ranks?: (.*?), (?:reached epoch \d+, step (\d+)|step not"
    r" known), (?:last saved step (\d+)|no save known)(?:, ([\d.]+) s lost)?$",
    re.M,
)
_PAUSE = re.compile(r"attempt (\d+) of \d+ starts in (\S+) s on")


@dataclass(frozen=True)
class Fault:
    """What happens when.

    Attributes:
        kind: one of `KINDS`.
        moment: "start", "step", or what of a save is being done.
        rank: which comes to harm; without a meaning for "mpirun" and "cut".
        step: it comes at this step or later.
        seconds: after which it comes; in a save, for which that waits afterwards.
        lasts: seconds until a disk has room again or a cable is mended; 0 for never.
        bytes: that a file may have on a full disk.
    """

    kind: str
    moment: str
    rank: int
    step: int
    seconds: float
    lasts: float
    bytes: int


@dataclass(frozen=True)
class Plan:
    """A job and its faults.

    Attributes:
        seed: it was drawn from this.
        partitions, replicas: the layout.
        has_hosts: whether the ranks are on two hosts.
        floatx, epochs: of the training.
        every_steps, every_minutes, keep, asynchronous: as in `hyparflow.Checkpoint`.
        faults: in their order.
    """

    seed: int
    partitions: int
    replicas: int
    has_hosts: bool
    floatx: str
    epochs: int
    every_steps: int | None
    every_minutes: float | None
    keep: int
    asynchronous: bool
    faults: tuple[Fault, ...]

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self.partitions * self.replicas

    @property
    def training(self) -> tuple[object, ...]:
        """What decides the bits."""
        layout = (self.partitions, self.replicas, self.has_hosts)
        return (*layout, self.floatx, self.epochs)


@dataclass(frozen=True)
class Loss:
    """What a fault cost.

    Attributes:
        fault: what happened.
        how: how the attempt ended, as the report says; empty if the fault did not end it.
        seconds: from the last save to the first step of the next attempt, as the report says; from
            the fault, where a save ended after it.
        twice: of these, until the fault: what is trained again.
        noticed: from the fault until all processes have ended.
        pause: before the next attempt.
        start: from there to the end of its first step.
        steps: how many are trained again.
    """

    fault: Fault
    how: str = ""
    seconds: float = 0.0
    twice: float = 0.0
    noticed: float = 0.0
    pause: float = 0.0
    start: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a job went.

    Attributes:
        plan: what was to happen.
        problems: what was not as it must be; nothing, if it ended with the bits.
        losses: what each fault cost that came.
        unprovoked: how attempts ended in which no fault came.
        seconds: that the job took.
        output: what it wrote.
    """

    plan: Plan
    problems: list[str]
    losses: list[Loss] = field(default_factory=list)
    unprovoked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output: str = ""


def draw(seed: int, count: int, has_hosts: bool = False, ranks: int = 2) -> Plan:
    """A job with so many faults, always the same for a seed."""
    chance = random.Random(seed)
    layouts = {2: ((1, 2), (2, 1)), 4: ((2, 2),)}[ranks]
    partitions, replicas = chance.choice(layouts)
    kinds = _ON_TWO_HOSTS if has_hosts else _ON_ONE_HOST
    deck: list[str] = []
    while len(deck) < count:
        deck += chance.sample(kinds, len(kinds))
    by_time = chance.random() < 0.4  # then attempts save at different steps
    return Plan(
        seed=seed,
        partitions=partitions,
        replicas=replicas,
        has_hosts=has_hosts,
        floatx=chance.choice(("float32", "float32", "float64")),
        epochs=(_STEPS * count + 2 * _EPOCH) // _EPOCH,
        every_steps=None if by_time else chance.randint(3, 6),
        every_minutes=chance.uniform(0.02, 0.3) / 60 if by_time else None,
        keep=chance.randint(1, 2),
        asynchronous=chance.random() < 0.8,
        faults=tuple(_faults(chance, deck[:count], ranks)),
    )


def _faults(chance: random.Random, kinds: list[str], ranks: int) -> Iterator[Fault]:
    before = None
    for number, kind in enumerate(kinds):
        moments = dict(_MOMENTS)
        if before is not None and before.kind == "disk" and not before.lasts:
            moments = {"step": 1}  # full for ever: no save comes so far that a fault could come
        elif before is not None and before.kind in _FATAL and kind not in ("raise", "disk"):
            moments["start"] = 2  # an attempt begins; an error that early would be a bug
        before = _fault(chance, kind, moments, ranks, 3 + number * _STEPS)
        yield before


def _fault(
    chance: random.Random, kind: str, moments: dict[str, int], ranks: int, first: int
) -> Fault:
    moment = chance.choices(list(moments), list(moments.values()))[0]
    lasts = 0.0
    if kind == "disk" and chance.random() < 0.7:
        lasts = chance.uniform(0.1, 0.6)
    if kind == "cut":
        is_brief = chance.random() < 0.2
        lasts = chance.uniform(0.5, 3) if is_brief else DEADLINE + chance.uniform(2, 12)
    longest = {"step": 0.05, "start": 4.0}.get(moment, 0.3)
    return Fault(
        kind=kind,
        moment=moment,
        rank=chance.randrange(ranks),
        step=0 if moment == "start" else first + chance.randrange(_STEPS - 2),
        seconds=round(chance.uniform(0, longest), 3),
        lasts=round(lasts, 2),
        bytes=chance.randrange(200, 2500),
    )


def expected(plan: Plan, folder: pathlib.Path) -> list[dict[str, Any]]:
    """What each rank has at the end of a training without a fault.

    Args:
        plan: the faults of which do not come.
        folder: an empty one.
    """
    quiet = dataclasses.replace(plan, faults=())
    result = _run(quiet, folder)
    assert result.code == 0, result.output
    return _ends(plan, folder)


def try_out(plan: Plan, bits: list[dict[str, Any]], folder: pathlib.Path) -> Outcome:
    """Run a job with all its faults.

    Args:
        plan: what is to happen.
        bits: what `expected` returned.
        folder: an empty one, for all that the job writes.
    """
    begun = time.time()
    result = _run(plan, folder)
    problems = list(_problems(plan, bits, folder, result))
    losses, unprovoked = _losses(plan, folder, result.output)
    return Outcome(
        plan=plan,
        problems=problems,
        losses=losses,
        unprovoked=unprovoked,
        seconds=result.end - begun,
        output=result.output,
    )


def _run(plan: Plan, folder: pathlib.Path) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan"
    file.write_text(json.dumps(dataclasses.asdict(plan)))
    words: list[object] = ["-m", "hyparflow.cli", "run", "-n", plan.ranks, "--oversubscribe"]
    if plan.faults:
        words += ["--restarts", 2 * len(plan.faults)]
    script = (SCRIPTS / "survives.py", file, folder)
    limit = _LIMIT * (len(plan.faults) + 1)
    told = {"HYPARFLOW_TIMEOUT": f"{DEADLINE:g}"}
    if not plan.has_hosts:
        return Job(0, *words, *script, **told).wait(limit)
    with Hosts(folder) as hosts:
        where = ",".join(f"{address}:{plan.ranks // 2}" for address in hosts.addresses)
        words += ["--hosts", where]
        job = Job(0, *words, *script, before=hosts.before, **hosts.environment, **told)
        _cut(plan, folder, hosts, job, limit)
        return job.wait(1.0 if job.is_running() else limit)


def _cut(plan: Plan, folder: pathlib.Path, hosts: Hosts, job: Job, limit: float) -> None:
    """Cut the cable whenever a rank asks for it, and mend it again, until the job ends."""
    end = time.monotonic() + limit
    while job.is_running() and time.monotonic() < end:
        time.sleep(0.01)
        for number, fault in enumerate(plan.faults):
            told = folder / f"is-cut-{number}"
            if not (folder / f"cut-{number}").exists() or told.exists():
                continue
            hosts.cable.is_cut = True
            told.touch()
            time.sleep(fault.lasts)
            hosts.cable.is_cut = False
            if fault.lasts < DEADLINE:  # the job may live on
                (folder / f"over-{number}").touch()


def _problems(
    plan: Plan, bits: list[dict[str, Any]], folder: pathlib.Path, result: Result
) -> Iterator[str]:
    """What is not as it must be."""
    if result.code:
        yield f"exit status {result.code}"
    left = [command for command in result.left if not (plan.has_hosts and "prted" in command)]
    if left:
        yield f"processes stay behind: {left}"
    ends = _ends(plan, folder)
    for rank, (end, right) in enumerate(zip(ends, bits, strict=True)):
        others = [name for name in right if end.get(name) != right[name]]
        if others:
            yield f"rank {rank} has not the {', '.join(others)} of a training without a fault"
    checkpoints = CheckpointFolder(folder / "checkpoints")
    for step in verify(checkpoints):
        if step.faults:
            yield f"step {step.step} is damaged: {step.faults}"
    if checkpoints.newest() == plan.epochs * _EPOCH:
        if checkpoints.unfinished():
            yield f"steps that no save has removed: {checkpoints.unfinished()}"
        hidden = [str(path) for path in checkpoints.path.rglob(".*")]
        if hidden:
            yield f"files that nobody has removed: {hidden}"


def _ends(plan: Plan, folder: pathlib.Path) -> list[dict[str, Any]]:
    """What each rank had at its end."""
    paths = [folder / f"end-{rank}" for rank in range(plan.ranks)]
    return [json.loads(path.read_text()) if path.exists() else {} for path in paths]


def _losses(plan: Plan, folder: pathlib.Path, output: str) -> tuple[list[Loss], list[str]]:
    """What each fault cost that came, and how attempts ended without one."""
    came = {
        number: json.loads(path.read_text())
        for number in range(len(plan.faults))
        if (path := folder / f"fault-{number}").exists()
    }
    launched = _notes(folder, "launched")
    last: dict[int, int] = {}  # attempt -> its last fault
    for number, fault in came.items():
        last[max((n for n, at in launched.items() if at <= fault["at"]), default=0)] = number
    losses = {number: Loss(plan.faults[number]) for number in came}
    unprovoked = []
    firsts, pauses = _notes(folder, "first"), _PAUSE.findall(output)
    waits = {int(number): float(seconds) for number, seconds in pauses}
    for text in _REPORT.findall(output.replace("\0", "")):
        attempt, how, reached, _, lost = int(text[0]), *text[1:]
        if not lost:
            continue
        if attempt not in last:
            unprovoked.append(how)
            continue
        number, following = last[attempt], attempt + 1
        loss = Loss(plan.faults[number], how, float(lost))
        if following in firsts:
            pause, begun = waits[following], launched[following]
            noticed = begun - pause - came[number]["at"]
            start = firsts[following]["at"] - begun
            loss = dataclasses.replace(
                loss,
                noticed=noticed,
                pause=pause,
                start=start,
                twice=max(0.0, float(lost) - noticed - pause - start),
                seconds=max(float(lost), noticed + pause + start),
                steps=max(0, int(reached or 0) - firsts[following]["from"]),
            )
        losses[number] = loss
    return list(losses.values()), unprovoked


def _notes(folder: pathlib.Path, what: str) -> dict[int, Any]:
    """What the attempts have noted, by their numbers."""
    return {
        int(path.name.rpartition("-")[2]): json.loads(path.read_text())
        for path in folder.glob(f"{what}-*")
    }
