"""The folder of a training's checkpoints, while the training saves into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hyparflow.checkpoint.settings import Checkpoint
from hyparflow.comm.leader import on_leader
from hyparflow.comm.world import World
from hyparflow.formats.checkpoint.lock import locked
from hyparflow.formats.checkpoint.names import step_of
from hyparflow.formats.text import first_line
from hyparflow.formats.writing import require_writable
from hyparflow.training.checkpoints.told_to_end import listening

__all__ = ["folder_in_use"]


@contextlib.contextmanager
def folder_in_use(settings: Checkpoint | None, world: World) -> Iterator[None]:
    """While open, no other job saves into the folder, and SIGUSR1 ends the training after a save.

    Collective, when it is opened.

    Args:
        settings: of the checkpoints, or None for none.
        world: all ranks.

    Raises:
        ValueError: if nothing can be written there, or another job saves into it.
    """
    if settings is None:
        yield
        return
    path = Path(settings.path)
    with contextlib.ExitStack() as stack:

        def hold() -> None:
            _require_place(path)
            stack.enter_context(locked(path))

        on_leader(world, hold, "the folder of checkpoints")
        stack.enter_context(listening())
        yield


def _require_place(path: Path) -> None:
    """Refuse a place for checkpoints before anything is trained.

    Raises:
        ValueError: if nothing can be written there.
    """
    try:
        if step_of(path.name) is not None:
            raise ValueError("it is named as that of one step is")
        path.mkdir(parents=True, exist_ok=True)
        require_writable(path / "any")
    except (OSError, ValueError) as error:
        raise ValueError(
            "Checkpoints need a folder into which rank 0 can write. Received: "
            f"checkpoint={str(path)!r} ({first_line(error)}). Choose another place."
        ) from error
