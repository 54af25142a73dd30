"""Ranks pool the memory of tensors; other processes do what TensorFlow does."""

from __future__ import annotations

import psutil
import pytest

from hyparflow.launching.memory_pool import choose_memory_pool

RANK = {"OMPI_COMM_WORLD_SIZE": "2"}
POOL, LIMIT = "TF_CPU_ALLOCATOR_USE_BFC", "TF_CPU_BFC_MEM_LIMIT_IN_MB"


def test_a_rank_may_pool_all_memory_of_the_machine() -> None:
    environ = dict(RANK)
    choose_memory_pool(environ, limited=False)
    assert environ[POOL] == "true"
    assert int(environ[LIMIT]) * 2**20 > psutil.virtual_memory().total


@pytest.mark.parametrize(("environ", "limited"), [({}, False), (RANK, True)])
def test_others_keep_what_tensorflow_does(environ: dict[str, str], limited: bool) -> None:
    found = dict(environ)
    choose_memory_pool(found, limited=limited)
    assert found == environ


def test_a_process_that_stands_for_a_rank_pools_too() -> None:
    environ: dict[str, str] = {}
    choose_memory_pool(environ, limited=False, is_rank=True)
    assert set(environ) == {POOL, LIMIT}


@pytest.mark.parametrize("chosen", [{POOL: "false"}, {LIMIT: "100"}])
def test_what_the_user_chose_stays(chosen: dict[str, str]) -> None:
    environ = RANK | chosen
    choose_memory_pool(environ, limited=False)
    assert environ | chosen == environ
    assert set(environ) == {*RANK, POOL, LIMIT}


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="Linux limits an address space")
def test_a_limit_on_the_address_space_is_seen() -> None:
    """Of this process itself."""
    own = psutil.Process()
    before = own.rlimit(psutil.RLIMIT_AS)
    own.rlimit(psutil.RLIMIT_AS, (1 << 46, before[1]))
    environ = dict(RANK)
    try:
        choose_memory_pool(environ)
    finally:
        own.rlimit(psutil.RLIMIT_AS, before)
    assert environ == RANK
