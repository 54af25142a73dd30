"""Runs on each rank the function that `hyparflow.launch` was given.

    python remote_call.py FOLDER

The module path of the process that started this one is read first, since hyparflow, too, is
imported from there.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from os import _exit as end_process
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]


def main(folder: Path) -> None:
    """Call the function; the leader writes what it returns, and each rank what it raises."""
    sys.path[:], directory, settings = json.loads((folder / "place.json").read_text())
    os.chdir(directory)
    from hyparflow.comm import abort
    from hyparflow.comm.last_threads import watch_last_threads
    from hyparflow.comm.recursion import allow_deep_models
    from hyparflow.comm.timeout import timeout_seconds
    from hyparflow.launching.payload import Outcome, read_call, write_outcome
    from hyparflow.launching.pickled_models import use_keras_settings
    from hyparflow.launching.rank_process import rank_number

    rank = rank_number()

    def tell(error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        write_outcome(folder, Outcome(rank, error=error, text=text))

    try:
        use_keras_settings(settings)
        allow_deep_models()  # which the function may build
        function, args, kwargs = read_call(folder)
        with abort.witnessed(tell):  # of an error that ends the job in the middle of a step
            value = function(*args, **kwargs)
    except BaseException as error:
        tell(error)
        _end(error)
    if rank == 0:
        write_outcome(folder, Outcome(rank, value))

    def give_up(text: str) -> NoReturn:
        abort.say(text)
        abort.flush()
        end_process(1)

    watch_last_threads(rank, timeout_seconds(), give_up, "function")


def _end(error: BaseException) -> NoReturn:
    """Show an error and end at once: at Python's own end MPI would wait for the other ranks."""
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stdout.flush()
    sys.stderr.flush()
    end_process(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
