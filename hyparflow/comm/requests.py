"""Messages and sums that go on between ranks while these do other work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Pending", "Together", "Transfer"]


@dataclass
class Transfer:
    """One message that is being sent or received.

    Attributes:
        handle: the request of MPI.
        keep: the buffer, which must not be freed before the message has been sent or received.
    """

    handle: Any
    keep: Any


class Together:
    """Several MPI operations that are tested like one."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = list(handles)

    def Test(self) -> bool:
        """Let MPI make progress; returns whether all are done."""
        self._handles = [handle for handle in self._handles if not handle.Test()]
        return not self._handles


class Pending:
    """An exchange between ranks that goes on while its rank does other work.

    MPI makes progress only during calls: call `advance` now and then.

    Args:
        handles: nonblocking operations one after the other; taking the next one begins it.
        poll: polls a condition until it holds.
        what: names the wait in the deadline's report.
    """

    def __init__(
        self, handles: Iterator[Any], poll: Callable[[Callable[[], bool], str], None], what: str
    ) -> None:
        self._handles, self._poll, self._what = handles, poll, what
        self._handle = next(handles, None)

    def advance(self) -> bool:
        """Make progress without waiting; returns whether the exchange is done."""
        while self._handle is not None and self._handle.Test():
            self._handle = next(self._handles, None)
        return self._handle is None

    def wait(self) -> None:
        """Wait until it is done."""
        self._poll(self.advance, self._what)
