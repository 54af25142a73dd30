"""Jobs that stay alive and do what they are asked, one at a time: others only wait meanwhile.

Commands and answers are files of a folder, so that each job may have a Python of its own. Imports
nothing but the standard library.
"""

import atexit
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Worker", "obey", "timed"]

_PAUSE = 0.02  # seconds between two looks
_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def timed(function: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """What a function returns, and seconds of processor and wall time."""
    cpu, wall = time.process_time(), time.perf_counter()
    made = function()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}, made


def obey(folder: Path, commands: Mapping[str, Callable[..., Any]], rank: int = 0) -> None:
    """Do what is asked, until told to end.

    Args:
        folder: of the commands.
        commands: name -> what does it; it is given the rest of the command.
        rank: of this process: each does all commands.
    """
    number = 0
    while True:
        path = folder / f"command-{number}"
        while not path.exists():
            time.sleep(_PAUSE)
        asked = json.loads(path.read_text())
        if asked["do"] == "end":
            return
        answer = commands[asked.pop("do")](**asked)
        _write(folder / f"answer-{number}-{rank}", answer)
        number += 1


class Worker:
    """A job and the way to ask it.

    Attributes:
        name: of the job.

    Args:
        name: of the job.
        script: that it runs; it is given its folder.
        python: that runs it.
        ranks: how many processes `mpirun` starts; None to start one without it.
        threads: of each.
        arguments: further ones of the script.
        mpirun: how to start ranks.
        timeout: seconds of one command.
    """

    def __init__(
        self,
        name: str,
        script: str,
        *arguments: str,
        python: str = sys.executable,
        ranks: int | None = None,
        threads: int = 1,
        mpirun: str = "mpirun --map-by :OVERSUBSCRIBE --bind-to none",
        timeout: float = 1800,
    ) -> None:
        self.name, self._timeout, self._number = name, timeout, 0
        self._ranks = ranks or 1
        self.folder = Path(tempfile.mkdtemp(prefix="serving-"))
        path = str(Path(__file__).with_name(script))
        command = [python, path, str(self.folder), *arguments]
        if ranks is not None:
            command = [*shlex.split(mpirun), "-n", str(ranks), *command]
        environment = {k: v for k, v in os.environ.items() if k not in _THREADS}
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)  # of another environment
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        environment |= dict.fromkeys(_THREADS, str(threads))
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        atexit.register(self._process.terminate)  # whatever ends the benchmark

    def ask(self, do: str, **rest: Any) -> list[Any]:
        """Have it do something: the answer of each rank."""
        number, self._number = self._number, self._number + 1
        _write(self.folder / f"command-{number}", {"do": do, **rest})
        paths = [self.folder / f"answer-{number}-{rank}" for rank in range(self._ranks)]
        end = time.monotonic() + self._timeout
        while not all(path.exists() for path in paths):
            if self._process.poll() is not None or time.monotonic() > end:
                text = (self.folder / "log").read_text()[-3000:]
                raise RuntimeError(f"{self.name} has ended, or takes too long:\n{text}")
            time.sleep(_PAUSE)
        return [json.loads(path.read_text()) for path in paths]

    def end(self) -> None:
        """Let it end."""
        _write(self.folder / f"command-{self._number}", {"do": "end"})
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _write(path: Path, content: Any) -> None:
    """At once: nobody finds half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content))
    part.rename(path)
