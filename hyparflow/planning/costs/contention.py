"""Measures how much slower a rank computes while other ranks of its node compute.

Cores share caches and memory. A piece of the model is timed alone, and while other processes run
the same piece, in turns. One more process has the cores of all ranks of the node: it tells what
training without ranks would gain from them.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil

from hyparflow.comm import launcher
from hyparflow.comm.timeout import Waiting, timeout_seconds
from hyparflow.launching.cores import intra_op_threads
from hyparflow.planning.costs.sample import Sample

__all__ = ["Companions", "companions", "companions_possible", "measure_crowd"]

_PROCESS = 600 << 20  # bytes of memory of a process with TensorFlow and a piece of a model
_TURNS = 3
_LOOK = 0.5  # seconds from one look at the time to the next
# Variables that launchers set for ranks; a companion process is no rank.
_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "HYDRA_", "MPI_")


def companions_possible(ranks_per_node: int) -> int:
    """How many processes can compute beside this one: one for each other rank of a node, as far
    as this machine has cores and memory.
    """
    cores = len(_all_cores()) // intra_op_threads()
    return int(max(0, min(ranks_per_node - 1, cores - 1, _processes_in_memory())))


def _processes_in_memory() -> int:
    return psutil.virtual_memory().available // 2 // _PROCESS


def _other_cores() -> set[int]:
    """Cores that other ranks of this job are bound to."""
    if not launcher.is_launched():
        return set()
    return set(range(os.cpu_count() or 1)) - launcher.usable_cores()


def _all_cores() -> set[int]:
    return launcher.usable_cores() | _other_cores()


class Companions:
    """Processes that run a piece of the model when they are told to.

    Args:
        processes: at work on `contention_process.py`.
        with_all_cores: a further one, with as many threads as all ranks of a node have; or None.
    """

    def __init__(
        self,
        processes: Sequence[subprocess.Popen[str]],
        with_all_cores: subprocess.Popen[str] | None = None,
    ) -> None:
        self._processes = processes
        self._with_all_cores = with_all_cores

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self._processes)

    def run(self, rows: int) -> None:
        """Let all run with so many rows, and wait until they do; 0 is a pause."""
        for process in self._processes:
            _tell(process, rows)
        for process in self._processes:
            _answer(process)

    def gain_of_all_cores(self, rows: int, budget: float) -> float | None:
        """How many times as fast as one rank alone a process with the cores of all ranks computes.

        Args:
            rows: to run with.
            budget: seconds to spend on each of the two.

        Returns:
            The factor; None if there is no such process.

        Raises:
            RuntimeError: as for `measure_crowd`.
        """
        if self._with_all_cores is None:
            return None
        seconds = []
        for process in (self._processes[0], self._with_all_cores):
            _tell(process, rows, budget)
            seconds.append(float(_answer(process)))
        return seconds[0] / seconds[1]


def measure_crowd(
    sample: Sample, rows: Sequence[int], beside: Companions, budget: float
) -> np.ndarray:
    """How many times longer a sample takes beside processes that run it as well.

    Args:
        sample: a piece of the model.
        rows: sizes of micro-batches; the smallest and the largest are taken to be like their
            neighbours, for the largest takes longest and the smallest is rarely chosen.
        beside: the processes.
        budget: seconds to spend on each size and turn.

    Returns:
        The factors, [(forward, backward, fused), size]: the same for all three, since they do not
        differ by more than noise.

    Raises:
        RuntimeError: if a process cannot run the sample, or does not answer within the deadline.
    """
    middle = rows[1:-1] or rows
    tried = {size: min(middle, key=lambda other: abs(other - size)) for size in rows}
    factors = {}
    for size in middle:
        alone, crowded = [], []
        for _ in range(_TURNS):
            alone.append(sample.fused_seconds(size, budget))
            beside.run(size)
            crowded.append(sample.fused_seconds(size, budget))
            beside.run(0)
        # The fastest turns, since a shared machine is slow for seconds at a time.
        factors[size] = max(1.0, min(crowded) / min(alone))
    return np.array([[factors[tried[size]] for size in rows]] * 3)


@contextlib.contextmanager
def companions(
    sample: Sample, ranks_per_node: int, say: Callable[[str], None]
) -> Iterator[Companions | None]:
    """Processes that can run a sample as other ranks of a node would; they end with the context.

    Args:
        sample: a piece of the model.
        ranks_per_node: this process and the others.
        say: is told why there are none, if not for want of cores or memory.
    """
    count = companions_possible(ranks_per_node)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if count:
                sample.save(folder)
        except Exception as error:  # for example a layer that another process cannot load
            say(f"measuring {count + 1} processes at a time: not possible ({error})")
            count = 0
        if not count:
            yield None
            return
        with contextlib.ExitStack() as ending:
            processes = [_start(folder, ending) for _ in range(count)]
            is_node = count == ranks_per_node - 1 and _processes_in_memory() > count
            yield Companions(processes, _start(folder, ending, ranks_per_node) if is_node else None)


def _start(
    folder: str, ending: contextlib.ExitStack, ranks: int | None = None
) -> subprocess.Popen[str]:
    """A process that runs what was saved in a folder, until `ending` ends it.

    Args:
        folder: the folder.
        ending: ends the process.
        ranks: the number of ranks of which it has all cores; None for those of another rank.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    launcher.set_threads(environment, intra_op_threads() * (ranks or 1))
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    others = _other_cores()
    cores = [",".join(map(str, _all_cores()))] if ranks and others else []
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("contention_process.py")), folder, *cores],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    ending.callback(_end, process)
    if others:
        psutil.Process(process.pid).cpu_affinity(list(others))
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _tell(process: subprocess.Popen[str], *words: float) -> None:
    with contextlib.suppress(BrokenPipeError):  # `_answer` reports it
        print(*words, file=process.stdin, flush=True)


def _answer(process: subprocess.Popen[str]) -> str:
    """Wait for the line by which a process answers each line that it is sent."""
    answers, seconds, waiting = process.stdout, timeout_seconds(), Waiting()
    while answers is not None and not select.select([answers], [], [], _LOOK)[0]:
        if waiting.look() > seconds:
            raise RuntimeError(
                f"A process that computes beside this one has not answered within {seconds:g} s "
                "(HYPARFLOW_TIMEOUT)."
            )
    answer = answers.readline() if answers is not None else ""
    if not answer:
        raise RuntimeError("A process that computes beside this one has ended.")
    return answer
