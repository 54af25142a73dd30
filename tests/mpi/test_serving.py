"""Generation over ranks: tokens, counts of messages, refusals."""

from __future__ import annotations

import functools
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
from hyparflow.serving.prepare import prepared_runner
from hyparflow.serving.ranks.ranks_runner import RanksRunner
from hyparflow.serving.ranks.serving_grid import serving_grid
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request

LENGTH = 40  # of prompts and what follows
SEED = 3
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
    runner = prepared_runner(model, grid, world())
    assert isinstance(runner, RanksRunner)
    before = runner.traffic.messages.copy(), runner.traffic.bytes.copy()
    rows = 2 * partitions
    counts = None
    if WORLD.rank == 0:
        engine = ServingEngine(
            runner, Limits(rows * grid.num_replicas, 32, window=4, fewest=rows, multiple=partitions)
        )
        for number in range(rows * grid.num_replicas):
            engine.submit(Request(number, (1 + number,), 11))
        while not engine.is_idle:
            engine.advance()
        assert {scheduler.counts.windows for scheduler in engine.schedulers} == {3}
        counts = [scheduler.counts.iterations for scheduler in engine.schedulers]
        runner.close()
    else:
        runner.follow()
    counts = WORLD.bcast(counts)
    sent = {kind: n - before[0][kind] for kind, n in runner.traffic.messages.items()}
    size = {kind: n - before[1][kind] for kind, n in runner.traffic.bytes.items()}
    steps = counts[grid.replica(WORLD.rank)]
    assert steps == 11
    assert sent.get("records", 0) == (4 if WORLD.rank == 0 else 0)  # 3 windows, and the end
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
    runner = prepared_runner(model, serving_grid(WORLD.size, partitions, None, shards), world())
    many = ManyRequests.random(random, 16)
    if WORLD.rank == 0:
        many.run(ServingEngine(runner, random_limits(random, partitions)))
        runner.close()
        assert many.faults(model) == []
    elif isinstance(runner, RanksRunner):
        runner.follow()


def test_a_server_on_the_leader() -> None:
    model = kept_model("Llama")
    model.compile(sampler="greedy", jit_compile=False)
    partitions = 2 if WORLD.size % 2 == 0 else 1
    bodies = 0
    with hf.serve(
        model, max_batch=4, max_length=LENGTH, warm_up=False, num_partitions=partitions
    ) as server:
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


@pytest.mark.skipif(WORLD.size != 2, reason="one rank that leaves the body out is enough")
def test_bodies_of_all_forms() -> None:
    """Other ranks than the first leave out the whole body, however it begins."""
    model, ran = kept_model("Llama"), []
    model.compile(sampler="greedy", jit_compile=False)
    given: dict[str, Any] = {"max_batch": 4, "max_length": LENGTH, "warm_up": False}

    def returns() -> str:
        with hf.serve(model, **given):
            return "body"
        return "behind"

    with hf.serve(model, **given) as server:
        try:
            ran.append(server.submit([1], max_new_tokens=2).tokens())
        finally:
            ran.append(1)
    with hf.serve(model, **given) as server: ran.append(2)  # fmt: skip # noqa: E701
    for number in range(2):
        with hf.serve(model, **given):
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
