"""A cable between two hosts: passes frames on, late and slowly if it is told so, and can be cut.

Not by `tc`, for many kernels have no netem: each end is a TAP device, and a thread carries what it
reads from one to the other.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import os
import pathlib
import select
import struct
import threading
import time

import pytest

__all__ = ["Cable"]

_DEVICE = pathlib.Path("/dev/net/tun")
_NUMBERS = (10, 200)  # of that device, in every Linux
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_LONGEST = 65536  # bytes of a frame, at most
_PR_SET_TIMERSLACK = 29  # of prctl: by how many nanoseconds the kernel may wake a thread late
_SOON = 2e-5  # seconds that are waited for without sleeping


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
        rate: bytes per second, in each direction.
        carried: bytes that have arrived, in both directions.
        is_cut: whether nothing arrives any more.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.delay, self.rate = 0.0, float("inf")
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
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
        ways = [_Way(*self._files), _Way(*self._files[::-1])]
        while self._is_open:
            now = time.monotonic()
            until = min([way.due - now for way in ways if way.frames] or [0.1])
            pause = 0.0 if until < _SOON else min(until, 0.1)
            ready = set(select.select(self._files, [], [], pause)[0])
            for way in ways:
                if way.source in ready:
                    way.take_in(self.delay, self.rate)
                if way.frames and way.due <= time.monotonic():
                    self.carried += way.give_out(self.is_cut)


class _Way:
    """One direction of a cable.

    Args:
        source, target: files of the interfaces.

    Attributes:
        frames: on their way, with when they arrive.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source, self._target = source, target
        self.frames: collections.deque[tuple[float, bytes]] = collections.deque()
        self._free = 0.0  # when the last frame has left

    @property
    def due(self) -> float:
        """When the next frame arrives."""
        return self.frames[0][0]

    def take_in(self, delay: float, rate: float) -> None:
        """Read a frame; its bytes leave one after the other."""
        with contextlib.suppress(OSError):  # the interface is not up yet
            frame = os.read(self.source, _LONGEST)
            self._free = max(self._free, time.monotonic()) + len(frame) / rate
            self.frames.append((self._free + delay, frame))

    def give_out(self, is_cut: bool) -> int:
        """Write the next frame: how many bytes arrived."""
        _, frame = self.frames.popleft()
        with contextlib.suppress(OSError):
            return 0 if is_cut else os.write(self._target, frame)
        return 0
