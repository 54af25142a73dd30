"""`launch`: run a function on ranks that are started for it, from a notebook or a script."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyparflow.comm import launcher
from hyparflow.formats.argument_checks import count_of
from hyparflow.launching.flags import LaunchRequest
from hyparflow.launching.folder import job_folder
from hyparflow.launching.job import Job, run_and_show
from hyparflow.launching.mpi_library import find_launcher, library
from hyparflow.launching.output import checked_output
from hyparflow.launching.payload import Outcome, RemoteCall, read_outcomes, write_call
from hyparflow.model.arguments import named

__all__ = ["launch"]


class _RemoteTraceback(Exception):
    """The cause of an error that came from a rank: its traceback on that rank."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"on rank {outcome.rank}\n\n{outcome.text}")


@named
def launch(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_ranks: int,
    output: str | os.PathLike[str] = "leader",
    oversubscribe: bool = False,
    hosts: str | None = None,
) -> Any:
    """Call a function on several ranks that are started for it, from a notebook or a script.

    The ranks are new processes, started by the launcher of the MPI library that mpi4py loads. This
    process is not forked and starts no MPI. The function and its arguments are sent with
    cloudpickle, so the function may be defined in a notebook; arrays of a megabyte or more are
    written to files that the ranks map into memory.

    Args:
        function: Callable. Called on every rank; it calls `hyparflow.fit`, for example.
        args: List or tuple. Positional arguments of `function`.
        kwargs: Dict or `None`. Keyword arguments of `function`.
        num_ranks: Integer. The number of ranks to start.
        output: String or path. `"leader"` shows the output of rank 0 as it is written, and the
            last lines of a rank that fails. `"all"` shows the lines of all ranks, each with the
            number of its rank. Anything else is the path of a folder, which is created and gets
            one file for each rank.
        oversubscribe: Boolean. Whether there may be more ranks than cores.
        hosts: String or `None`. The hosts to run on, each with a number of ranks, as in
            `"a:2,b:2"`; they must share this machine's folder for temporary files. `None` runs
            all ranks on this machine.

    Returns:
        The value that `function` returns on rank 0.

    Raises:
        Exception: What `function` raises on a rank, with the traceback of that rank.
        RuntimeError: If a rank ends without a result and without an exception, or if this process
            is a rank itself.
        ValueError: If an argument is not valid or cannot be sent to another process.

    Example::

        def train(x, y):
            model = build()
            hf.fit(model, x, y, epochs=3, num_partitions=2)
            return model.get_weights()

        weights = hf.launch(train, (x, y), num_ranks=2)
    """
    if launcher.is_launched():
        raise RuntimeError(
            "hyparflow.launch starts ranks of its own. Received: a process that is a rank already. "
            "Call the function itself, or start this script without mpirun."
        )
    num_ranks = count_of("num_ranks", num_ranks)
    _check(function, args, kwargs, oversubscribe)
    output = checked_output("`output`", output)
    mpi = library()
    with job_folder() as folder:
        write_call(folder, RemoteCall(function, tuple(args), dict(kwargs or {})))
        program = [sys.executable, str(Path(__file__).with_name("remote_call.py")), str(folder)]
        request = LaunchRequest(num_ranks, hosts, None, oversubscribe)
        job = Job(
            launcher=find_launcher(mpi), mpi=mpi, request=request, program=program, output=output
        )
        end = run_and_show(job, _show, folder)
        return _result(read_outcomes(folder), end.text)


def _check(function: Any, args: Any, kwargs: Any, oversubscribe: Any) -> None:
    is_one = isinstance(args, str | bytes) or hasattr(args, "__array__")  # one argument, not many
    if not callable(function) or is_one or not isinstance(args, Iterable):
        raise ValueError(
            "`launch` takes a function and a list or tuple of its arguments. "
            f"Received: {function!r} and args={args!r}"
        )
    is_mapping = kwargs is None or isinstance(kwargs, Mapping)
    if not is_mapping or not all(isinstance(name, str) for name in kwargs or ()):
        raise ValueError(f"`launch` takes kwargs as a dict with names. Received: kwargs={kwargs!r}")
    if not isinstance(oversubscribe, bool):
        raise ValueError(
            f"`oversubscribe` must be True or False. Received: oversubscribe={oversubscribe!r}"
        )


def _show(text: str) -> None:
    """Write to `sys.stdout`, from which Jupyter takes it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _result(outcomes: Sequence[Outcome], ended: str) -> Any:
    failed = next((outcome for outcome in outcomes if outcome.error is not None), None)
    if failed is not None and isinstance(failed.error, Exception):
        raise failed.error from _RemoteTraceback(failed)
    if failed is not None:  # an exit of a rank must not end this process, too
        raise RuntimeError(
            "A function that runs on ranks must return, or raise an exception. "
            f"Received: {failed.error!r} on rank {failed.rank}"
        ) from _RemoteTraceback(failed)
    if ended or not outcomes:
        raise RuntimeError(
            "The ranks ended without a result and without an exception. "
            f"Received: {ended or 'rank 0 ended with exit status 0'}. What they wrote stands above."
        )
    return outcomes[0].value
