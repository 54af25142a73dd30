"""`hf.launch`: a function on fresh ranks, as from a notebook."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

LAUNCHER = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "MV2_")
HEAD = """
import sys, time
import numpy as np
import hyparflow as hf

def who():
    from mpi4py import MPI
    return MPI.COMM_WORLD
"""


def run(body: str, folder: pathlib.Path, seconds: float = 60) -> tuple[int, str]:
    """Run a script; its exit status and output."""
    process = start(body, folder)
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def start(body: str, folder: pathlib.Path) -> subprocess.Popen[str]:
    path = folder / "cell.py"
    path.write_text(HEAD + body)
    known = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER)}
    return subprocess.Popen(
        [sys.executable, path],
        cwd=folder,
        env=known,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started(folder: pathlib.Path) -> list[psutil.Process]:
    """The processes of two ranks, when each has made its file "at-RANK"."""
    end = time.monotonic() + 30
    while not ((folder / "at-0").exists() and (folder / "at-1").exists()):
        assert time.monotonic() < end, "the ranks did not start"
        time.sleep(0.05)
    ranks = [
        p for p in psutil.process_iter(["cmdline"]) if "remote_call.py" in str(p.info["cmdline"])
    ]
    assert ranks
    return ranks


def require_end(ranks: list[psutil.Process], seconds: float = 30) -> None:
    """Fail if any of them still runs after so long."""
    end = time.monotonic() + seconds
    while (left := [rank for rank in ranks if runs(rank)]) and time.monotonic() < end:
        time.sleep(0.1)
    for rank in left:
        rank.kill()
    assert not left


def runs(process: psutil.Process) -> bool:
    """Whether it does; one that has ended may wait for its parent to see it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_returns_what_rank_0_returns(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text("def twice(x):\n    return 2 * x\n")
    code, out = run(
        """
import mine
offset = 1

def train(x, scale=1):
    comm = who()
    print("rank", comm.rank, "shows this")
    return comm.allreduce(mine.twice(float(x.sum())) * scale + offset), comm.rank, comm.size

print(hf.launch(train, (np.ones(5),), {"scale": 3}, num_ranks=2, oversubscribe=True))
assert "mpi4py.MPI" not in sys.modules  # this process starts no MPI
""",
        tmp_path,
    )
    assert code == 0, out
    assert "(62.0, 0, 2)" in out  # 2 x (10 x 3 + 1)
    assert "rank 0 shows this" in out
    assert "rank 1 shows this" not in out


def test_large_arrays_are_mapped_and_stay_whole(tmp_path: pathlib.Path) -> None:
    code, out = run(
        """
def train(large, again, small, half, mapped):
    given = (large, again, small, half, mapped)
    kinds = [type(x).__name__ for x in given] + [isinstance(x.base, np.memmap) for x in given[:4]]
    large[:] = 5  # of this rank alone
    return kinds, large is again, float(mapped[3, 2]), float(who().allreduce(large[0, 0])), large

large = np.ones((600, 600))
np.save("data.npy", np.arange(1e6).reshape(1000, 1000))
mapped = np.load("data.npy", mmap_mode="r")
half = np.ones((1000, 1000), "float16")
kinds, same, value, total, back = hf.launch(
    train, (large, large, np.ones(3), half, mapped), num_ranks=2, oversubscribe=True)
print(kinds, same, value, total, back[7, 7], large[0, 0])
""",
        tmp_path,
    )
    assert code == 0, out
    kinds = [*["ndarray"] * 4, "memmap", True, True, False, True]
    assert f"{kinds} True 3002.0 10.0 5.0 1.0" in out


def test_an_error_comes_back_with_its_traceback(tmp_path: pathlib.Path) -> None:
    code, out = run(
        """
class Mine(Exception):
    def __init__(self, reason, number):
        super().__init__(f"{reason} {number}")

def train():
    import hyparflow as hf
    if hf.rank() == 1:
        raise Mine("no luck", 3)
    time.sleep(50)

try:
    hf.launch(train, num_ranks=2, oversubscribe=True)
except Mine as error:
    print("caught", error)
    print("cause", "in train" in str(error.__cause__), "on rank 1" in str(error.__cause__))

def step():  # an error there ends the job at once
    from hyparflow.comm import abort
    try:
        if who().rank == 1:
            raise Mine("in a step", 4)
        time.sleep(50)
    except Mine as error:
        abort.fail(error)

try:
    hf.launch(step, num_ranks=2, oversubscribe=True)
except Mine as error:
    print("also", error, "in step" in str(error.__cause__), "on rank 1" in str(error.__cause__))
""",
        tmp_path,
    )
    assert code == 0, out
    assert "no luck 3" in out.split("caught")[1]
    assert "cause True True" in out
    assert "also in a step 4 True True" in out


def test_threads_that_a_function_leaves_behind_are_named(tmp_path: pathlib.Path) -> None:
    code, out = run(
        """
import os, threading
os.environ["HYPARFLOW_TIMEOUT"] = "3"
def leave():
    threading.Thread(target=time.sleep, args=(100,), name="mine").start()
try:
    hf.launch(leave, num_ranks=2, oversubscribe=True)
except RuntimeError as error:
    print("caught", error)
""",
        tmp_path,
    )
    assert code == 0, out
    assert "caught The ranks ended without" in out
    assert out.count("after its function, for it waits for threads that are no daemons: mine;") == 1


def test_a_rank_that_dies(tmp_path: pathlib.Path) -> None:
    code, out = run(
        """
import os
try:
    hf.launch(lambda: os._exit(3), num_ranks=2, oversubscribe=True)
except RuntimeError as error:
    print("caught", error)

def leave():
    if who().rank == 1:
        sys.exit(0)
    time.sleep(50)

for function in (leave, lambda: sys.stdin.read()):
    try:
        print("read", repr(hf.launch(function, num_ranks=2, oversubscribe=True, output="new/logs")))
    except RuntimeError as error:
        print("caught", error)
""",
        tmp_path,
    )
    assert code == 0, out
    assert "or raise an exception. Received: SystemExit(0) on rank 1" in out
    assert "read ''" in out  # to its end, not for ever
    assert (tmp_path / "new" / "logs" / "rank-1.txt").exists()
    assert (
        "caught The ranks ended without a result and without an exception. Received: rank " in out
    )
    assert " ended with exit status 3. " in out


def test_the_launchers_files_go_with_the_job(tmp_path: pathlib.Path) -> None:
    code, out = run(
        """
import os

def folder():
    who()
    return os.environ.get("PMIX_SERVER_TMPDIR")

found = hf.launch(folder, num_ranks=2, oversubscribe=True)
print("files:", found, bool(found) and os.path.exists(found))
""",
        tmp_path,
    )
    assert code == 0, out
    (line,) = (line for line in out.splitlines() if line.startswith("files: "))
    if "None" in line:
        pytest.skip("only Open MPI keeps files")
    assert "/hyparflow-" in line
    assert line.endswith("False")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_with_the_process_that_started_them(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    (tmp_path / "files").mkdir()
    process = start(
        """
import tempfile
tempfile.tempdir = "files"

def train():
    open(f"at-{who().rank}", "w").close()
    time.sleep(300)

hf.launch(train, num_ranks=2, oversubscribe=True)
""",
        tmp_path,
    )
    ranks = started(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=40)
    require_end(ranks)
    end = time.monotonic() + 20
    while list((tmp_path / "files").iterdir()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not list((tmp_path / "files").iterdir())


# A call -> what its error says; one script makes all of them.
REFUSED = {
    "hf.launch(who, (iter([1]) for _ in 'a'), num_ranks=2)": "takes 0 positional",
    "hf.launch(who, (i for i in [sys._getframe()]), num_ranks=2)": "possible to pickle",
    "hf.launch(who, num_ranks=1000)": "Each rank needs a core",
    "hf.launch(who, num_ranks=10**9, oversubscribe=True)": "Ranks must fit in memory",
    "hf.launch(who, num_ranks=True)": "must be a positive integer",
    "hf.launch(who, np.zeros(2), num_ranks=2)": "takes a function and a list or tuple of its",
    "hf.launch(who, kwargs=3, num_ranks=2)": "takes kwargs as a dict with names",
    "hf.launch(who, num_ranks=2, hosts=['a'])": "'a:2,b:2'. Received: ['a']",
    "hf.launch(who, num_ranks=2, output=None)": "or a folder. Received: None",
    "hf.launch(who, num_ranks=1, oversubscribe='yes')": "must be True or False",
    "hf.launch(who, 'ab', num_ranks=2)": "takes a function and a list or tuple",
    "hf.launch(sys._getframe, num_ranks=1, oversubscribe=True)": "possible to pickle",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The last line of the error of each call."""
    calls = {
        call: call.replace("num_ranks=2", "num_ranks=2, oversubscribe=True") for call in REFUSED
    }
    body = f"""
import json, traceback
found = {{}}
for name, call in {calls!r}.items():
    try:
        eval(call)
    except Exception as error:
        found[name] = "".join(traceback.format_exception_only(error)).splitlines()[-1]
with open("found.json", "w") as file:
    json.dump(found, file)
"""
    folder = tmp_path_factory.mktemp("refused")
    code, out = run(body, folder)
    assert code == 0, out
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(("call", "message"), REFUSED.items())
def test_what_cannot_be_done(refused: dict[str, str], call: str, message: str) -> None:
    assert message in refused[call]


def test_a_rank_cannot_launch(tmp_path: pathlib.Path) -> None:
    code, out = run(
        """
def train():
    import hyparflow as hf
    hf.launch(print, num_ranks=2)

hf.launch(train, num_ranks=1)
""",
        tmp_path,
    )
    assert code == 1
    assert "a process that is a rank already" in out.splitlines()[-1]


def test_an_interrupt_stops_the_ranks(tmp_path: pathlib.Path) -> None:
    process = start(
        """
def train(marker):
    open(f"{marker}-{who().rank}", "w").close()
    time.sleep(60)

try:
    hf.launch(train, ("at",), num_ranks=2, oversubscribe=True)
except KeyboardInterrupt:
    print("interrupted")
""",
        tmp_path,
    )
    ranks = started(tmp_path)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=40)
    assert "interrupted" in out
    require_end(ranks)
