"""How ranks are asked for, said in the words of each launcher."""

from __future__ import annotations

import io
import os
import pwd
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from hyparflow.launching import flags as flags_module
from hyparflow.launching import job as job_module
from hyparflow.launching import mpi_library as mpi_module
from hyparflow.launching.flags import LaunchRequest, environment, flags, passed_on
from hyparflow.launching.job import Job, run, run_and_show
from hyparflow.launching.mpi_library import (
    INTEL,
    MPICH,
    OPEN_MPI,
    Mpi,
    find_launcher,
    identify,
    library,
    matching,
)

OPEN, HYDRA, INTEL_MPI = Mpi(OPEN_MPI, "5.0.11"), Mpi(MPICH, "4.3.2"), Mpi(INTEL, "2021.17")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags_module, "physical_cores", lambda: 8)


@pytest.mark.parametrize(
    ("text", "mpi"),
    [
        ("Open MPI v5.0.11, package: Open MPI root@host", OPEN),
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to", OPEN),
        ("mpirun (Open MPI) 4.1.6", Mpi(OPEN_MPI, "4.1.6")),
        ("MPICH Version:      4.3.2\nMPICH Release date: Mon", HYDRA),
        ("HYDRA build details:\n    Version:                                 4.3.2\n", HYDRA),
        ("Intel(R) MPI Library 2021.17 for Linux* OS\n", INTEL_MPI),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.17 Build 2025", INTEL_MPI),
        ("ls (GNU coreutils) 9.1", None),
        ("", None),
    ],
)
def test_what_a_library_or_a_launcher_says(text: str, mpi: Mpi | None) -> None:
    assert identify(text) == mpi


@pytest.mark.parametrize(
    ("mpi", "request_", "expected"),
    [
        (OPEN, LaunchRequest(4), "-n 4 --map-by slot:PE=2 --bind-to core"),
        (OPEN, LaunchRequest(3), "-n 3 --map-by slot:PE=2 --bind-to core"),
        (OPEN, LaunchRequest(9, oversubscribe=True), "-n 9 --map-by :OVERSUBSCRIBE --bind-to none"),
        (
            OPEN,
            LaunchRequest(4, "a:2,b:2"),
            "-n 4 --host a:2,b:2 --map-by slot:PE=4 --bind-to core",
        ),
        (OPEN, LaunchRequest(4, None, "hosts"), "-n 4 --hostfile hosts --bind-to none"),
        (OPEN, LaunchRequest(99, is_allocated=True), "-n 99 --bind-to none"),
        (HYDRA, LaunchRequest(4), "-n 4 -bind-to core:2"),
        (HYDRA, LaunchRequest(9, oversubscribe=True), "-n 9 -bind-to none"),
        (HYDRA, LaunchRequest(4, "a:2,b:2"), "-n 4 -hosts a:2,b:2 -bind-to core:4"),
        (HYDRA, LaunchRequest(4, None, "hosts"), "-n 4 -f hosts -bind-to none"),
        (INTEL_MPI, LaunchRequest(4), "-n 4 -genv I_MPI_PIN_DOMAIN 2"),
        (INTEL_MPI, LaunchRequest(9, oversubscribe=True), "-n 9 -genv I_MPI_PIN off"),
    ],
)
def test_flags(mpi: Mpi, request_: LaunchRequest, expected: str) -> None:
    assert " ".join(flags(mpi, request_)) == expected


def test_too_many_ranks() -> None:
    with pytest.raises(ValueError, match="9 ranks on 8 cores"):
        flags(OPEN, LaunchRequest(9))
    assert flags(
        OPEN, LaunchRequest(32, "a:16,b:16")
    )  # hosts may have more cores than this machine


def added(mpi: Mpi, request: LaunchRequest, names: tuple[str, ...], **known: str) -> dict[str, str]:
    """What of these variables is set beside those that are known."""
    found = environment(mpi, request, known)
    return {name: value for name, value in found.items() if name in names}


def test_threads_match_cores() -> None:
    threads = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    assert added(OPEN, LaunchRequest(4), threads) == dict.fromkeys(threads, "2")
    several = LaunchRequest(16, oversubscribe=True)
    assert added(OPEN, several, threads) == dict.fromkeys(threads, "1")
    chosen = added(OPEN, LaunchRequest(4), threads, OMP_NUM_THREADS="7")
    assert chosen == dict.fromkeys(threads[:2], "2")


def test_ranks_of_this_machine_listen_to_it_only() -> None:
    names = ("OMPI_MCA_btl", "OMPI_MCA_btl_tcp_if_include", "UCX_NET_DEVICES", "FI_TCP_IFACE")
    local = {"UCX_NET_DEVICES": "lo", "FI_TCP_IFACE": "lo"}
    assert added(OPEN, LaunchRequest(2), names) == local | {"OMPI_MCA_btl": "^tcp"}
    assert added(HYDRA, LaunchRequest(2), names) == local
    for chosen in ("OMPI_MCA_btl", "OMPI_MCA_btl_tcp_if_include"):
        assert added(OPEN, LaunchRequest(2), names, **{chosen: "mine"}) == local
    assert added(HYDRA, LaunchRequest(2), names, UCX_NET_DEVICES="eth0") == {"FI_TCP_IFACE": "lo"}
    for elsewhere in (
        LaunchRequest(2, "a:2"),
        LaunchRequest(2, None, "hosts"),
        LaunchRequest(2, is_allocated=True),
    ):
        assert not added(OPEN, elsewhere, names)


def test_tcp_stays_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMPI_MCA_btl", "OMPI_MCA_btl_tcp_if_include")
    monkeypatch.setattr(flags_module, "has_shared_memory", lambda ranks: False)
    assert added(OPEN, LaunchRequest(2), names) == {"OMPI_MCA_btl_tcp_if_include": "lo"}


def test_a_home_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    assert added(OPEN, LaunchRequest(2), ("HOME",)) == {"HOME": pwd.getpwuid(os.geteuid()).pw_dir}
    assert not added(OPEN, LaunchRequest(2), ("HOME",), HOME="/mine")


def test_launchers_do_not_wait_for_a_folder_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    wrong = {"TMPDIR": str(tmp_path / "pipe"), "TMP": str(tmp_path / "none")}
    found = added(OPEN, LaunchRequest(2), ("TMPDIR", "TEMP", "TMP"), TEMP=str(tmp_path), **wrong)
    assert found == dict.fromkeys(("TMPDIR", "TMP"), tempfile.gettempdir())
    monkeypatch.setenv("TMPDIR", wrong["TMPDIR"])
    assert find_launcher(library()).exists()


def test_launchers_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    for path, reason in (
        (tmp_path / "text", "may not be executed"),
        (tmp_path, "may not be executed"),
        (Path("/bin/true"), "says of no MPI that is known"),
    ):
        with pytest.raises(ValueError, match=rf"Received: {path} \({reason}\)"):
            find_launcher(OPEN, str(path))


def test_more_ranks_than_memory_holds() -> None:
    with pytest.raises(ValueError, match="Ranks must fit in memory. Received: 1000000000 ranks"):
        flags(OPEN, LaunchRequest(10**9, oversubscribe=True))


def test_hosts_are_text() -> None:
    with pytest.raises(ValueError, match=r"'a:2,b:2'. Received: \['a'\]"):
        flags(OPEN, LaunchRequest(2, ["a"]))  # type: ignore[arg-type]


def test_root_is_allowed_for_open_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert environment(OPEN, LaunchRequest(2), {})["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in environment(HYDRA, LaunchRequest(2), {})
    both = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in environment(OPEN, LaunchRequest(2), both)


def test_other_hosts_are_told_what_concerns_them() -> None:
    names = ["HOME", "HYPARFLOW_TIMEOUT", "PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL"]
    told = ["-x", "HYPARFLOW_TIMEOUT", "-x", "PYTHONPATH", "-x", "TF_CPP_MIN_LOG_LEVEL"]
    assert passed_on(OPEN, LaunchRequest(2, "a:1,b:1"), names) == told
    assert passed_on(OPEN, LaunchRequest(2), names) == []
    assert passed_on(HYDRA, LaunchRequest(2, "a:1,b:1"), names) == []


def test_a_launcher_that_starts_no_rank_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "mpirun"
    launcher.write_text("#!/bin/sh\nexec sleep 60\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("HYPARFLOW_TIMEOUT", "0.5")
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    job = Job(launcher, Mpi(OPEN_MPI, "5.0"), LaunchRequest(1), [sys.executable, "-c", "pass"])
    assert run(job, lambda text: None).code == 128 + signal.SIGTERM
    assert said.getvalue() == (
        f"hyparflow: {launcher} has started no rank within 0.5 s (HYPARFLOW_TIMEOUT); "
        "all ranks are stopped.\n"
    )


@pytest.mark.parametrize("code", [0, 3])
def test_a_launcher_that_outlives_its_ranks_is_stopped(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "mpirun"
    skip = f'while [ "$1" != {sys.executable} ]; do shift; done'
    launcher.write_text(f'#!/bin/sh\n{skip}\n"$@"\n"$@"\nexec sleep 60\n')
    launcher.chmod(0o755)
    monkeypatch.setattr(job_module, "_PATIENCE", 0.5)
    program = [sys.executable, "-c", f"raise SystemExit({code})"]
    job = Job(launcher, Mpi(OPEN_MPI, "5.0"), LaunchRequest(2), program)
    for end in (run(job, lambda text: None), run_and_show(job, lambda text: None, tmp_path)):
        assert end.code == code
        assert bool(end.text) == bool(code)


def test_a_library_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_module, "_ASK", "import time; time.sleep(60)")
    monkeypatch.setattr(mpi_module, "_PATIENCE", 0.5)
    with pytest.raises(ValueError, match="must tell within 0.5 s which MPI .* it loads. Received"):
        library()


def test_launchers_read_nothing(tmp_path: Path) -> None:
    launcher = tmp_path / "mpirun"
    launcher.write_text("#!/bin/sh\ncat\necho 'mpirun (Open MPI) 5.0.11'\n")
    launcher.chmod(0o755)
    reading, writing = os.pipe()  # which never ends
    kept = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert matching(launcher) == OPEN
    finally:
        os.dup2(kept, 0)
        for descriptor in (reading, writing, kept):
            os.close(descriptor)


def test_a_deadline_that_is_none_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPARFLOW_TIMEOUT", "soon")
    job = Job(tmp_path / "mpirun", Mpi(OPEN_MPI, "5.0"), LaunchRequest(1), ["true"])
    with pytest.raises(ValueError, match="HYPARFLOW_TIMEOUT must be a positive number"):
        run(job, lambda text: None)
