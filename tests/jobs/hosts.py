"""Two hosts on one machine: network namespaces joined by a cable that can be slowed and cut."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest
from jobs.cable import Cable

__all__ = ["Hosts", "require_namespaces"]

_DELAY = 5e-3  # seconds, in each direction
_RATE = "rate 50mbit burst 32kbit latency 400ms"
# The agent is what a launcher calls in place of ssh: AGENT HOST COMMAND...
_AGENT = """#!/bin/sh
shift
exec ip netns exec {host} unshare --uts sh -c "hostname {host}; $*"
"""


def require_namespaces() -> None:
    """Skip where this process may not make hosts."""
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (iproute2, util-linux)")
    asked = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip(f"no network namespaces here: {asked.stderr.strip()}")


class Hosts:
    """Two hosts, and the cable between them.

    Args:
        folder: where to put what belongs to them.
        frame: the most bytes of a frame on the cable.

    Attributes:
        addresses: of both.
        cable: between them, while this context lasts.
    """

    def __init__(self, folder: pathlib.Path, frame: int = 1500) -> None:
        self._frame = str(frame)
        # Names of interfaces have at most 15 letters.
        number = os.getpid()
        self._names = (f"hf{number}a", f"hf{number}b")
        self._ends = (f"c{number}a", f"c{number}b")
        # 198.18.0.0/15 is kept for tests of networks.
        self.addresses = ["198.18.7.1", "198.18.7.2"]
        self._agent = folder / "agent"
        self._agent.write_text(_AGENT.format(host=self._names[1]))
        self._agent.chmod(0o755)

    def __enter__(self) -> Hosts:
        self.cable = Cable(self._ends)
        for name in self._names:
            _do("ip", "netns", "add", name)
        for name, cable, address in zip(self._names, self._ends, self.addresses, strict=True):
            _do("ip", "link", "set", cable, "netns", name, "mtu", self._frame)
            _do("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
            _do("ip", "-n", name, "link", "set", "lo", "up")
            _do("ip", "-n", name, "link", "set", cable, "up")
        return self

    def __exit__(self, *error: object) -> None:
        self.cable.close()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    @property
    def before(self) -> list[str]:
        """What to put before a command that is to run on the first host."""
        host = self._names[0]
        inside = ["sh", "-c", f'hostname {host}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", host, "unshare", "--uts", *inside]

    @property
    def environment(self) -> dict[str, str]:
        """With it, Open MPI's launcher reaches the second host."""
        return {"PRTE_MCA_plm_ssh_agent": str(self._agent)}

    def slow(self) -> None:
        """Let everything on the cable take longer, in each direction."""
        self.cable.delay = _DELAY
        for name, end in zip(self._names, self._ends, strict=True):
            _do(*f"tc -n {name} qdisc add dev {end} root tbf {_RATE}".split())


def _do(*command: str) -> None:
    subprocess.run(command, check=True, timeout=20)
