"""Shards of tensors that make sure that all of them choose the same tokens."""

from __future__ import annotations

from hyparflow.comm.communicator import Communicator
from hyparflow.serving.ranks.runner import Runner, WindowResult
from hyparflow.serving.scheduling.window import Window

__all__ = ["AgreeingShards"]


class AgreeingShards:
    """Computes as another runner does, and compares its tokens with those of other shards.

    Args:
        runner: computes this rank's share.
        shards: the ranks that share this one's partition.
    """

    def __init__(self, runner: Runner, shards: Communicator) -> None:
        self._runner, self._shards = runner, shards

    def run(self, window: Window) -> WindowResult:
        """See `Runner.run`.

        Raises:
            RuntimeError: if the shards choose different tokens.
        """
        result = self._runner.run(window)
        if result.tokens:
            said = self._shards.all_gather_objects(result.tokens, "the shards to agree on tokens")
            if any(tokens != said[0] for tokens in said):
                raise RuntimeError(
                    "All shards of a layer must choose the same tokens. Received: different ones, "
                    "as processors of different kinds may make them. Run the shards of a partition "
                    "on equal machines."
                )
        return result

    def warm_up(self, window: Window) -> None:
        """See `Runner.warm_up`."""
        self._runner.warm_up(window)

    def bytes(self) -> dict[str, int]:
        """See `Runner.bytes`."""
        return self._runner.bytes()

    def close(self) -> None:
        """See `Runner.close`."""
        self._runner.close()
