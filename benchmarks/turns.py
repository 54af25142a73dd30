"""Jobs that take turns: each stays alive and trains a few steps when it is told to.

All others are stopped meanwhile, so drift of the machine meets all alike.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from hyparflow.tracing.trace import Trace

__all__ = ["THREADS", "Job", "Setup", "add_arguments"]

THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


class Setup(NamedTuple):
    """One way to train.

    Attributes:
        name: what to call it.
        kind: "plain" for Keras alone, "apart" for Keras alone on each rank with its part of the
            batch, "hyparflow", "horovod" or "torch".
        ranks: how many processes.
        threads: of each; None leaves the framework its default.
        options: of `hyparflow.fit`, or of `torch_steps.py`.
        python: that runs it.
        is_traced: whether a job of hyparflow writes a trace.
        environment: further environment variables.
        policy: with which numbers Keras's layers compute.
    """

    name: str
    kind: str
    ranks: int = 1
    threads: int | None = 1
    options: dict[str, Any] = {}
    python: str = sys.executable
    is_traced: bool = True
    environment: dict[str, str] = {}
    policy: str = "float32"

    @property
    def script(self) -> str:
        """What its processes run, of the files beside this one."""
        return "torch_job.py" if self.kind == "torch" else "job.py"

    @property
    def is_launched(self) -> bool:
        """Whether by mpirun.

        Also one rank: hyparflow leaves to Keras what no launcher started, and one thread that no
        core is reserved for moves between them, and is slower.
        """
        return self.kind == "hyparflow" or self.ranks > 1 or self.threads == 1


def add_arguments(parser: argparse.ArgumentParser, steps: int, turns: int) -> None:
    """What a benchmark of jobs in turns can be told."""
    parser.add_argument("--steps", type=int, default=steps, help="of a turn")
    parser.add_argument("--turns", type=int, default=turns)
    parser.add_argument("--mpirun", default="mpirun --bind-to core")


class Job:
    """A setup at work.

    Attributes:
        first_step: seconds until it was done.
        cpu_seconds: of a step in the last turn, on the first rank.

    Args:
        setup: how it trains.
        model, batch: what it trains: a name in `models.py`, and rows of the global batch.
        args: what `add_arguments` brought.
        turns: how many it will take, if not as `args` say.
        steps: of a turn, if not as `args` say.
    """

    def __init__(
        self,
        setup: Setup,
        model: str,
        batch: int,
        args: argparse.Namespace,
        turns: int | None = None,
        steps: int | None = None,
    ) -> None:
        self.setup, self.batch, self._turns = setup, batch, turns or args.turns
        self._folder = Path(tempfile.mkdtemp(prefix="turns-"))
        spec = {
            "model": model,
            "batch": batch,
            "kind": setup.kind,
            "options": setup.options,
            "steps": steps or args.steps,
            "turns": self._turns,
            "folder": str(self._folder),
            "is_traced": setup.is_traced,
            "policy": setup.policy,
        }
        path = self._folder / "spec.json"
        path.write_text(json.dumps(spec))
        command = [setup.python, str(Path(__file__).with_name(setup.script)), str(path)]
        if setup.is_launched:
            command = [*shlex.split(args.mpirun), "-n", str(setup.ranks), *command]
        # Nothing of the shell that would make this job another.
        set_here = (*THREADS, "HYPARFLOW_SPIN")
        environment = {k: v for k, v in os.environ.items() if k not in set_here}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "HYPARFLOW_TIMEOUT": "100000"}
        environment |= setup.environment
        if setup.threads is not None:
            environment |= dict.fromkeys(THREADS, str(setup.threads))
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.cpu_seconds = 0.0
        self.first_step = self._wait("ready")["first_step"]
        self._wait("warm")
        self._signal("suspend")

    def turn(self, number: int) -> float:
        """Seconds of a step in this turn."""
        self._signal("resume")
        (self._folder / f"go-{number}").touch()
        done = self._wait(f"done-{number}")
        self._signal("suspend")
        self.cpu_seconds = float(done["cpu_seconds"])
        return float(done["seconds"])

    def finish(self) -> None:
        """Let the job end; several may do so at a time, for some take a minute."""
        self._signal("resume")
        (self._folder / f"go-{self._turns}").touch()

    def end(self) -> tuple[list[int], Trace | None]:
        """Wait until it has. Each rank's peak memory above a bare import (bytes), and its trace."""
        self._process.wait(600)
        ends = [json.loads(path.read_text()) for path in sorted(self._folder.glob("end-*"))]
        trace = self._folder / "trace.json"
        return [end["peak"] for end in ends], Trace.load(trace) if trace.exists() else None

    def stop(self) -> None:
        """End the job whatever it does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(self._folder)

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [*parent.children(recursive=True), parent]

    def _signal(self, what: str) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, what)()

    def _wait(self, name: str) -> Any:
        path = self._folder / name
        while not path.exists():
            if self._process.poll() is not None:
                text = (self._folder / "log").read_text()[-3000:]
                raise RuntimeError(f"{self.setup.name} ended:\n{text}")
            time.sleep(0.01)
        return json.loads(path.read_text())
