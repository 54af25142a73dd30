"""Each rank of a node sees one GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyparflow.launching.devices import choose_device, count_devices


def environment(local_rank: int, **more: str) -> dict[str, str]:
    return {
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank),
    } | more


@pytest.mark.parametrize(("local_rank", "device"), [(0, "0"), (1, "1"), (2, "0"), (3, "1")])
def test_ranks_take_turns(local_rank: int, device: str) -> None:
    environ = environment(local_rank)
    choose_device(environ, available=2)
    assert environ["CUDA_VISIBLE_DEVICES"] == device
    assert environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def test_devices_that_the_batch_system_gave() -> None:
    environ = environment(1, CUDA_VISIBLE_DEVICES="GPU-5,GPU-7")
    choose_device(environ, available=8)
    assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-7"


def test_devices_end_where_cuda_ends_the_list() -> None:
    environ = environment(2, CUDA_VISIBLE_DEVICES="4,5,-1,6")
    choose_device(environ, available=8)
    assert environ["CUDA_VISIBLE_DEVICES"] == "4"


@pytest.mark.parametrize("seen", ["3", "", "-1", "3,-1,4"])
def test_one_device_or_none_is_kept(seen: str) -> None:
    environ = environment(1, CUDA_VISIBLE_DEVICES=seen)
    choose_device(environ, available=8)
    assert environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize("available", [0, 1])
def test_nothing_to_choose(available: int) -> None:
    environ = environment(1)
    choose_device(environ, available=available)
    assert "CUDA_VISIBLE_DEVICES" not in environ


def test_memory_as_the_user_wants_it() -> None:
    environ = environment(0, TF_FORCE_GPU_ALLOW_GROWTH="false")
    choose_device(environ, available=2)
    assert environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "false"


def test_a_process_alone_keeps_all() -> None:
    environ: dict[str, str] = {"SLURM_LOCALID": "1"}  # of the batch job, not of a rank
    choose_device(environ, available=4)
    assert environ == {"SLURM_LOCALID": "1"}


def test_devices_are_counted(tmp_path: Path) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert count_devices(tmp_path) == 2
    assert count_devices(tmp_path / "nothing") == 0
