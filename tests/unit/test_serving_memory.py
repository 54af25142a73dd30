"""Memory of a server stays as it is, however many requests come and however they are sampled."""

from __future__ import annotations

import gc
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from byte_text import new_byte_model  # noqa: E402

import hyparflow as hf  # noqa: E402
from hyparflow.serving.decoding.chooser import TokenChoice  # noqa: E402

# A process of its own: names of variables that others have made cost nothing a second time.
_SCRIPT = """
import psutil
from byte_text import new_byte_model
import hyparflow as hf
from hyparflow.comm.freed_memory import give_back_freed_memory
from hyparflow.serving.http.service import sampling_for

def resident():
    give_back_freed_memory()  # compilers free much, into which all else would fit
    return psutil.Process().memory_info().rss

def request(server, number):
    server.submit([1], max_new_tokens=2, sampler="top_p").tokens(60)
    sampling = sampling_for(0.5 + number / 1000, 0.9 - number / 2000)
    server.submit([1], max_new_tokens=2, sampler=sampling).tokens(60)

with hf.serve(new_byte_model(), max_batch=1, max_length=64, warm_up=False) as server:
    for number in range(50):
        request(server, number)
    before = resident()
    for number in range(50, 450):
        request(server, number)
    print(resident() - before)
"""
_MOST = 8 << 20  # bytes; TensorFlow keeps 35 KB for each variable of a new name


def test_samplers_of_requests_leave_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < _MOST


def test_choices_without_samplers_that_came_later_are_freed() -> None:
    """All that is compiled for a choice is freed with it."""
    before = num_choices()
    model = new_byte_model()
    with hf.serve(model, max_batch=1, max_length=64, warm_up=False) as server:
        for sampler in ("greedy", "top_p", "random", "top_k"):
            server.submit([1], max_new_tokens=2, sampler=sampler).tokens(60)
        assert num_choices() == before + 1
        server.submit([1], max_new_tokens=2, num_logprobs=1).tokens(60)
        assert num_choices() == before + 2
        server.submit([1], max_new_tokens=2).tokens(60)
        assert num_choices() == before + 2


def num_choices() -> int:
    """How many there are in this process."""
    gc.collect()
    return sum(type(thing) is TokenChoice for thing in gc.get_objects())
