"""A cable between two hosts: passes frames on, late if it is told so, and can be cut.

Not by `tc`, for many kernels have no netem: each end is a TAP device, and a thread carries what it
reads from one to the other.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import pathlib
import selectors
import struct
import threading
import time

import pytest

__all__ = ["Cable"]

_DEVICE = pathlib.Path("/dev/net/tun")
_NUMBERS = (10, 200)  # of that device, in every Linux
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_LONGEST = 65536  # bytes of a frame, at most


def _end(name: str) -> int:
    """The file of a new network interface: what is written to it, the interface receives."""
    if not _DEVICE.exists():
        _DEVICE.parent.mkdir(exist_ok=True)
        os.mknod(_DEVICE, 0o600 | 0o020000, os.makedev(*_NUMBERS))
    file = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return file


class Cable:
    """Makes two network interfaces and carries frames between them until it is closed.

    Args:
        names: of the interfaces, at most 15 letters each.

    Attributes:
        delay: seconds that a frame is on its way.
        carried: bytes that have arrived, in both directions.
        is_cut: whether nothing arrives any more.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.delay = 0.0
        self.carried = 0
        self.is_cut = False
        try:
            self._files = [_end(name) for name in names]
        except OSError as error:
            pytest.skip(f"no TAP devices here: {error}")
        self._is_open = True
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the interfaces."""
        self._is_open = False
        self._thread.join()
        for file in self._files:
            os.close(file)

    def _carry(self) -> None:
        other = dict(zip(self._files, reversed(self._files), strict=True))
        on_the_way: collections.deque[tuple[float, int, bytes]] = collections.deque()
        with selectors.DefaultSelector() as selector:
            for file in self._files:
                selector.register(file, selectors.EVENT_READ)
            while self._is_open:
                until = on_the_way[0][0] - time.monotonic() if on_the_way else 0.1
                for key, _ in selector.select(max(0.0, min(until, 0.1))):
                    with contextlib.suppress(OSError):  # the interface is not up yet
                        frame = os.read(key.fd, _LONGEST)
                        on_the_way.append((time.monotonic() + self.delay, other[key.fd], frame))
                while on_the_way and on_the_way[0][0] <= time.monotonic():
                    _, file, frame = on_the_way.popleft()
                    if not self.is_cut:
                        with contextlib.suppress(OSError):
                            self.carried += os.write(file, frame)
