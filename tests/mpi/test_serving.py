"""Generation over ranks: tokens, counts of messages, refusals."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import pytest
from contract import WORLD
from language_models import GROUPED, SMALL, VOCABULARY, alone, kept_model, language_model, padded
from many_requests import LENGTH as LONG
from many_requests import ManyRequests, random_limits

import hyparflow as hf
from hyparflow.comm.ranks import world
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.prepare import prepared_replicas
from hyparflow.serving.ranks import replicas_on_ranks
from hyparflow.serving.ranks.following_rank import FollowingRank
from hyparflow.serving.ranks.pipeline_runner import PipelineRunner
from hyparflow.serving.ranks.replicas import OneReplica
from hyparflow.serving.ranks.replicas_on_ranks import ReplicasOnRanks
from hyparflow.serving.ranks.runner import LocalRunner, WindowResult
from hyparflow.serving.ranks.serving_grid import serving_grid
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request
from hyparflow.serving.scheduling.window import Window

LENGTH = 40  # of prompts and what follows
SEED = 3
HELD = VOCABULARY - 1  # a token of prompts whose windows wait
SERVED: dict[str, Any] = {"max_batch": 4, "max_length": LENGTH, "warm_up": False}
# (partitions, shards) of as many ranks as there are, with replicas for the rest.
LAYOUTS = [(p, t) for p in (1, 2, 4) for t in (1, 2, 4) if WORLD.size % (p * t) == 0]


def sampler(seed: int) -> Any:
    return keras_hub.samplers.TopKSampler(k=5, seed=seed)


def prompts() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(1, VOCABULARY, random.integers(1, 30)).tolist() for _ in range(9)]


@functools.cache
def expected(name: str, is_greedy: bool) -> list[list[int]]:
    """What each prompt is given alone, by KerasHub; all of one length, which is compiled once."""
    found: list[list[int]] = []
    model = language_model(name)
    for row, prompt in enumerate(prompts()):
        model.compile(sampler="greedy" if is_greedy else sampler(SEED + row), jit_compile=False)
        found.append(alone(model, prompt, LENGTH - len(prompt)))
    return found


@pytest.mark.parametrize(("partitions", "shards"), LAYOUTS)
@pytest.mark.parametrize(
    "name",
    ["Llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("GPT2", "OPT", "Gemma"))],
)
@pytest.mark.parametrize("is_greedy", [True, False])
def test_tokens(name: str, partitions: int, shards: int, is_greedy: bool) -> None:
    if name in ("Llama", "Gemma") and shards == 4:
        pytest.skip("two heads of keys")
    model = kept_model(name)
    model.compile(sampler="greedy" if is_greedy else sampler(SEED), jit_compile=False)
    given = prompts()
    found = hf.generate(
        model,
        padded(given, [LENGTH] * len(given)),
        stop_token_ids=None,
        num_partitions=partitions,
        num_shards=shards,
    )
    right = expected(name, is_greedy)
    for row, prompt in enumerate(given):
        assert found["token_ids"][row, len(prompt) :].tolist() == right[row], row


@pytest.mark.parametrize(("partitions", "shards"), LAYOUTS)
def test_messages(partitions: int, shards: int) -> None:
    """Records, tensors and tokens of partitions, sums of shards: so many, and so large."""
    if shards == 4 or WORLD.size == 1:
        pytest.skip("two heads of keys" if shards == 4 else "one rank sends nothing")
    model, grid = kept_model("Llama"), serving_grid(WORLD.size, partitions, None, shards)
    replicas = prepared_replicas(model, grid, world())
    assert not isinstance(replicas, OneReplica)
    before = replicas.traffic.messages.copy(), replicas.traffic.bytes.copy()
    rows = 2 * partitions
    counts = None
    if isinstance(replicas, ReplicasOnRanks):
        limits = Limits(rows * grid.num_replicas, 32, window=4, fewest=rows, multiple=partitions)
        engine = ServingEngine(replicas, limits)
        for number in range(rows * grid.num_replicas):
            engine.submit(Request(number, (1 + number,), 11))
        while not engine.is_idle:
            engine.advance()
        assert {scheduler.counts.windows for scheduler in engine.schedulers} == {3}
        counts = [scheduler.counts.iterations for scheduler in engine.schedulers]
        replicas.close()
    else:
        replicas.follow()
    counts = WORLD.bcast(counts)
    sent = {kind: n - before[0][kind] for kind, n in replicas.traffic.messages.items()}
    size = {kind: n - before[1][kind] for kind, n in replicas.traffic.bytes.items()}
    steps = counts[grid.replica(WORLD.rank)]
    assert steps == 11
    # 3 windows of its replica, and the end, to each rank but the leader.
    assert sent.get("records", 0) == (4 * (WORLD.size - 1) if WORLD.rank == 0 else 0)
    partition = grid.partition(WORLD.rank)
    if partitions > 1:
        is_last = partition == partitions - 1
        assert sent.get("tokens", 0) == (steps * partitions if is_last else 0)
        assert size.get("tokens", 0) == (steps * rows * 4 if is_last else 0)
        # The width is 16, of 4 bytes each; one tensor of a group crosses each cut.
        assert sent.get("tensors", 0) == (0 if is_last else steps * partitions)
        assert size.get("tensors", 0) == (0 if is_last else steps * rows * 16 * 4)
    if shards > 1 and partitions == 1:
        layers = 2
        assert sent["sums"] == 2 * layers * steps
        assert size["sums"] == 2 * layers * steps * rows * 16 * 4


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.parametrize(("partitions", "shards"), LAYOUTS)
@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_many_requests(name: str, partitions: int, shards: int) -> None:
    """Arrivals, stops, cancels, growing caches, too little memory."""
    if name == "Llama" and shards == 4:
        pytest.skip("two heads of keys")
    model, random = language_model(name, LONG), np.random.default_rng(partitions + 10 * shards)
    model.compile(sampler="greedy", jit_compile=False)
    replicas = prepared_replicas(model, serving_grid(WORLD.size, partitions, None, shards), world())
    many = ManyRequests.random(random, 16)
    if isinstance(replicas, FollowingRank):
        replicas.follow()
    else:
        many.run(ServingEngine(replicas, random_limits(random, partitions)))
        replicas.close()
        assert many.faults(model) == []


def test_a_server_on_the_leader() -> None:
    model = kept_model("Llama")
    model.compile(sampler="greedy", jit_compile=False)
    partitions = 2 if WORLD.size % 2 == 0 else 1
    bodies = 0
    with hf.serve(model, num_partitions=partitions, **SERVED) as server:
        bodies += 1
        requests = [server.submit(prompt, max_new_tokens=9) for prompt in prompts()]
        cancelled = server.submit([1, 2], max_new_tokens=30)
        cancelled.cancel()
        right = expected("Llama", True)
        for request, tokens in zip(requests, right, strict=True):
            assert request.tokens() == tokens[:9]
        assert len(cancelled.tokens()) < 30
        assert server.stats().tokens >= 81
    assert bodies == (WORLD.rank == 0)


class Gate:
    """Lets windows with some token in a prompt wait, on all ranks of their replica.

    Args:
        folder: whose files all ranks see.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, run: Any) -> Any:
        """Of a runner."""

        def held(runner: Any, window: Window) -> Any:
            if any(HELD in piece.tokens for piece in window.pieces):
                self.open("begun")
                self.wait_for("go")
            return run(runner, window)

        return held

    def open(self, name: str) -> None:
        (self._folder / name).touch()

    def is_open(self, name: str) -> bool:
        return (self._folder / name).exists()

    def wait_for(self, name: str) -> None:
        """Not for ever, for then nobody would say what is wrong."""
        end = time.monotonic() + 30
        while not self.is_open(name):
            if time.monotonic() > end:
                self.open("given up")
                return
            time.sleep(0.01)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(Path(WORLD.bcast(str(tmp_path))))
    for kind in (LocalRunner, PipelineRunner):
        monkeypatch.setattr(kind, "run", found.before(kind.run))
    yield found
    assert not found.is_open("given up")


@pytest.mark.skipif(WORLD.size == 1, reason="one rank is one replica")
@pytest.mark.parametrize("busy", [0, 1])
def test_a_replica_that_takes_long_holds_up_no_other(busy: int, gate: Gate) -> None:
    """While a window of one replica goes on, requests of the other have all of theirs."""
    model, partitions = kept_model("Llama"), WORLD.size // 2
    model.compile(sampler="greedy", jit_compile=False)
    with hf.serve(model, window=4, num_partitions=partitions, **SERVED) as server:
        # Each goes to the replica with the least to do.
        first = [server.submit([3, 1, 4], max_new_tokens=9)] if busy else []
        held = server.submit([HELD] * 20, max_new_tokens=20)
        gate.wait_for("begun")
        others = [server.submit(prompt, max_new_tokens=9) for prompt in ([5, 1], [2, 7, 1])]
        for request in (*first, *others):
            request.tokens(timeout=60)
        counts = server.stats().counts
        assert counts[busy].windows == held.num_tokens == 0
        assert counts[1 - busy].iterations >= 9
        gate.open("go")
        assert held.tokens() == alone(model, [HELD] * 20, 20)
        assert others[0].tokens() == alone(model, [5, 1], 9)
        assert others[1].tokens() == alone(model, [2, 7, 1], 9)


@pytest.mark.skipif(WORLD.size != 2, reason="two replicas are enough")
def test_a_replica_without_work_hears_of_the_leader(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long another computes, so that it does not give up."""
    monkeypatch.setattr(replicas_on_ranks, "_SILENCE", 0.01)
    model = kept_model("Llama")
    with hf.serve(model, **SERVED) as server:
        held = server.submit([HELD] * 20, max_new_tokens=2)
        gate.wait_for("begun")
        before = server.stats().bytes.get("heartbeats", 0)
        end = time.monotonic() + 20
        while server.stats().bytes.get("heartbeats", 0) < before + 100:
            assert time.monotonic() < end
            time.sleep(0.01)
        gate.open("go")
        assert len(held.tokens()) == 2


@pytest.mark.skipif(WORLD.size != 2, reason="two replicas are enough")
def test_a_leader_that_fails_lets_the_other_replica_end(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the window that the other is in; nothing is left for the next call."""
    model = kept_model("Llama")

    def fails(runner: LocalRunner, window: Window) -> WindowResult:
        gate.wait_for("begun")
        raise OSError("the accelerator is gone")

    with monkeypatch.context() as patched, hf.serve(model, **SERVED) as server:
        patched.setattr(LocalRunner, "run", fails)
        requests = [server.submit(prompt, max_new_tokens=9) for prompt in ([1], [HELD] * 20)]
        for request in requests:
            with pytest.raises(RuntimeError, match="the server failed: the accelerator is gone"):
                request.tokens(timeout=60)
        gate.open("go")
    found = hf.generate(model, padded([[5, 1], [2, 7]], [11, 11]), stop_token_ids=None)
    assert found["token_ids"][0, 2:].tolist() == alone(model, [5, 1], 9)
    assert found["token_ids"][1, 2:].tolist() == alone(model, [2, 7], 9)


@pytest.mark.skipif(WORLD.size != 2, reason="one rank that leaves the body out is enough")
def test_bodies_of_all_forms() -> None:
    """Other ranks than the first leave out the whole body, however it begins."""
    model, ran = kept_model("Llama"), []
    model.compile(sampler="greedy", jit_compile=False)

    def returns() -> str:
        with hf.serve(model, **SERVED):
            return "body"
        return "behind"

    with hf.serve(model, **SERVED) as server:
        try:
            ran.append(server.submit([1], max_new_tokens=2).tokens())
        finally:
            ran.append(1)
    with hf.serve(model, **SERVED) as server: ran.append(2)  # fmt: skip # noqa: E701
    for number in range(2):
        with hf.serve(model, **SERVED):
            if number == 0:
                ran.append(3)
                continue
            ran.append(4)
    assert len(ran) == (5 if WORLD.rank == 0 else 0)
    assert returns() == ("body" if WORLD.rank == 0 else "behind")


@pytest.mark.skipif(WORLD.size == 1, reason="a rank agrees with itself")
def test_ranks_that_ask_for_different_things() -> None:
    model, own = kept_model("Llama"), [[1 + WORLD.rank]]
    with pytest.raises(ValueError, match="All ranks must ask for the same.*different prompts"):
        hf.generate(model, padded(own, [9]), stop_token_ids=None)
    keras.utils.set_random_seed(WORLD.rank)
    other = keras_hub.models.LlamaCausalLM(
        backbone=keras_hub.models.LlamaBackbone(**SMALL, **GROUPED), preprocessor=None
    )
    with pytest.raises(ValueError, match="All ranks must ask for the same.*weights"):
        hf.generate(other, padded([[1]], [9]), stop_token_ids=None)
    wrong = {"max_batch": 0} if WORLD.rank == 0 else {}
    with pytest.raises(ValueError, match="`max_batch` must be a positive integer"):
        hf.generate(model, padded([[1]], [9]), stop_token_ids=None, **wrong)


@pytest.mark.skipif(WORLD.size == 1, reason="there are no shards")
def test_heads_that_shards_do_not_divide() -> None:
    keras.utils.set_random_seed(5)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=9,
        num_layers=1,
        hidden_dim=12,
        intermediate_dim=9,
        num_query_heads=3,
        num_key_value_heads=3,
    )
    model = keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=None)
    with pytest.raises(ValueError, match=r"`num_shards` must divide.*has 3 heads or columns"):
        hf.generate(model, padded([[1]], [4]), stop_token_ids=None, num_shards=WORLD.size)


@pytest.mark.skipif(WORLD.size != 2, reason="the ways to cut are tried on two ranks")
@pytest.mark.parametrize("ways", [{"num_partitions": 2}, {"num_shards": 2}])
def test_a_family_that_decodes_whole(ways: dict[str, int]) -> None:
    model = kept_model("Bloom")
    with pytest.raises(ValueError, match="in partitions or shards.*BloomCausalLM.*has none"):
        hf.generate(model, padded([[1]], [4]), stop_token_ids=None, **ways)


@pytest.mark.skipif(WORLD.size != 2, reason="two partitions are enough")
@pytest.mark.parametrize("ways", [{"num_partitions": 2}, {"num_shards": 2}])
def test_a_deferred_model(ways: dict[str, int]) -> None:
    """No rank holds the weights of others, and the tokens are the same."""
    keras.utils.set_random_seed(6)
    with hf.deferred():
        model = keras_hub.models.LlamaCausalLM(
            backbone=keras_hub.models.LlamaBackbone(**SMALL, **GROUPED), preprocessor=None
        )
    model.compile(sampler="greedy")
    found = hf.generate(model, padded([[1, 2]], [9]), stop_token_ids=None, **ways)
    absent = sum(is_absent(variable) for variable in model.variables)
    assert absent >= (7 if "num_partitions" in ways else 14)  # products of a block, or of both
    assert found["token_ids"][0, 2:].tolist() == alone(model, [1, 2], 7)


@pytest.mark.skipif(WORLD.size != 2, reason="shards of two ranks are enough")
def test_weights_that_are_trained_between_calls() -> None:
    model, given = language_model("GPT2"), padded([[1, 2, 3]], [12])
    model.compile(sampler="greedy")
    ways: dict[str, Any] = {"stop_token_ids": None, "num_shards": 2}
    before = hf.generate(model, given, **ways)["token_ids"].tolist()
    for weight in model.weights:
        weight.assign(-1.0 * weight)
    after = hf.generate(model, given, **ways)["token_ids"]
    assert after.tolist() != before
    assert after[0, 3:].tolist() == alone(model, [1, 2, 3], 9)


def test_numbers_that_do_not_fit_the_ranks() -> None:
    with pytest.raises(ValueError, match="num_partitions x num_replicas x num_shards"):
        hf.generate(kept_model("Llama"), padded([[1]], [4]), stop_token_ids=None, num_partitions=3)
