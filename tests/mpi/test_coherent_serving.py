"""Generating while tokens stay at the ranks of their experts: the tokens of one process."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, on_leader
from expert_requests import COUNTS, generated, mixed_up, prompts, require_served
from language_models import BY_ROWS, LENGTH, VOCABULARY
from language_models import language_model as sampling_model
from own_language_model import own_language_model

import hyparflow as hf
from hyparflow.comm.ledger import Collective
from hyparflow.comm.ranks import world
from hyparflow.engine.experts.row_exchange import FROM_EXPERTS, TO_EXPERTS
from hyparflow.engine.experts.row_travel import FOLLOWING, STAYING
from hyparflow.engine.weights.groups import groups_of
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.coherent.row_gather import TO_ALL
from hyparflow.serving.expert_choice import with_chosen_mode
from hyparflow.serving.ranks.build import built_share
from hyparflow.serving.ranks.shared_experts import ExpertMode, shared_experts

keras_hub = pytest.importorskip("keras_hub")
FAMILIES = ["own", "Mixtral", "QwenMoe", "Qwen3Moe", "GptOss"]
MODES = {1: "coherent", 2: "coherent-returning"}  # by how many experts a token has


def language_model(name: str, top_k: int) -> Any:
    """A model whose likeliest tokens are taken."""
    if name == "own":
        return own_language_model(top_k)
    BY_ROWS[f"{name}:top"] = BY_ROWS[name] | {
        key: top_k for key in BY_ROWS[name] if key in ("top_k", "num_experts_per_token")
    }
    model = sampling_model(f"{name}:top")
    model.compile(sampler="greedy")
    return model


@pytest.mark.on_ranks(2, 4)
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_logits_of_a_plain_call(name: str, top_k: int) -> None:
    """Token by token at unequal positions; weights of other ranks' experts are not read."""
    model = language_model(name, top_k)
    draw = np.random.default_rng(7)
    tokens = draw.integers(1, VOCABULARY, (4, 16)).astype("int32")
    counts = [7, 2, 11, 4]
    whole = model({"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, training=False)
    expected = np.asarray(whole)
    grid = Grid(1, 1, num_shards=WORLD.size)
    mode = ExpertMode(MODES[top_k])
    experts = shared_experts(model, WORLD.size, mixed_up(model), mode)
    decoder = built_share(model, grid, world(), False, experts).computes
    for one in expert_layers(all_layers(model)):
        for weight in one.weights:
            weight.assign(np.full(weight.shape, np.nan))
    found = decoder.probe(tokens, counts, 2)
    for step, logits in enumerate(found):
        right = expected[np.arange(4), np.array(counts) + step]
        assert np.abs(logits - right).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("name,top_k", [("Mixtral", 1), ("Mixtral", 2), ("own", 1)])
def test_the_tokens_of_one_process(name: str, top_k: int) -> None:
    """Of more prompts than fit at once, greedily and drawn."""
    model = language_model(name, top_k)
    options = {"expert_parallel": MODES[top_k], "placement": mixed_up(model)}
    given = prompts([3, 11, 1, 7, 2, 9, 4])
    for drawn in ({}, {"sampler": "top_k", "seed": 3}):
        expected = generated(model, given, expert_parallel="home", **drawn)
        np.testing.assert_array_equal(generated(model, given, **options, **drawn), expected)
    if name == "Mixtral":  # KerasHub decodes no model of one's own
        alone = on_leader(lambda: model.generate(given, stop_token_ids=None)["token_ids"])
        np.testing.assert_array_equal(generated(model, given, **options), alone)


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("top_k", [1, 2])
def test_exchanges_are_those_of_the_formula(top_k: int) -> None:
    """In each iteration L or 2 L all-to-alls and one all-gather; bytes are those of the rows."""
    model = language_model("Mixtral", top_k)
    given, options = prompts([6] * 4), {"expert_parallel": MODES[top_k]}
    generated(model, given, **options)
    ledger = groups_of(Grid(1, 1, num_shards=WORLD.size), world()).shards.ledger
    ledger.clear()
    generated(model, given, **options)
    there, back = (ledger.total(Collective.ALL_TO_ALL, x) for x in (TO_EXPERTS, FROM_EXPERTS))
    stayed, followed = (ledger.total(Collective.ALL_TO_ALL, x) for x in (STAYING, FOLLOWING))
    told = ledger.total(Collective.ALL_GATHER, TO_ALL)
    layers, new, pieces, width = 2, LENGTH // 2 - 6, 4 // WORLD.size, 16
    assert there.calls == back.calls == layers * pieces  # pieces of prompts come home
    assert stayed.calls == layers * new
    assert followed.calls == (layers * new if top_k == 2 else 0)
    assert told.calls == new + pieces
    # Of all rows, of which caches have at least 4 for each rank: the new token, its row, and in
    # each layer its row, and keys and values of 2 heads of 4. Of a piece: those of all tokens but
    # the last, which the first iteration takes.
    row = 4 * (1 + 1 + layers * (1 + 2 * 2 * 4))
    lengths = 4 * (2 + 3 * layers)
    piece = layers * 2 * (4 + 5 * 2 * 4 * 4)
    sent = WORLD.allreduce(told.payload)
    assert sent == new * (4 * WORLD.size * row + WORLD.size * lengths) + pieces * WORLD.size * piece
    assert told.off_rank == told.payload * (WORLD.size - 1)
    if top_k == 1:
        lengths = 4 * 8 * (WORLD.size - 1) * stayed.calls
        # Its number, expert, place and share; what the expert reads, and what it adds to.
        travelled = 4 * 4 + 2 * 4 * width
        assert stayed.off_rank > lengths and (stayed.off_rank - lengths) % travelled == 0


@pytest.mark.on_ranks(2)
def test_a_server_whose_requests_come_and_go() -> None:
    model = language_model("Mixtral", 1)
    expected = generated(model, prompts(COUNTS))
    require_served(model, expected, expert_parallel="coherent", placement=mixed_up(model))


@pytest.mark.on_ranks(2)
def test_refusals() -> None:
    def refused(name: str, top_k: int, mode: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            generated(language_model(name, top_k), prompts([4]), expert_parallel=mode)

    refused("Mixtral", 2, "coherent", "a token has up to 2.*coherent-returning")
    refused("Gemma4:experts", 1, "coherent", "add what their experts make.*expert_parallel='home'")
    with pytest.raises(ValueError, match="several mixtures of experts in one layer"):
        twice = own_language_model(1, again=True)
        generated(twice, prompts([4]), expert_parallel="coherent")
    refused("Mixtral", 1, "paper", "one of 'home', 'coherent', 'coherent-returning'")
    keras.backend.clear_session()


@pytest.mark.on_ranks(2)
def test_the_faster_mode_is_chosen() -> None:
    """By latency and bandwidth: keys and values cost more where bytes are slow."""
    model, grid = language_model("Mixtral", 1), Grid(1, 1, num_shards=WORLD.size)
    slow, far = (hf.Cluster(1, WORLD.size, hf.Link(*link)) for link in ((0.0, 1e5), (1e-2, 1e9)))

    def chosen(model: Any, cluster: hf.Cluster | None) -> ExpertMode:
        experts = shared_experts(model, WORLD.size, None, ExpertMode.AUTO)
        found = with_chosen_mode(model, grid, world(), experts, rows=4, cluster=cluster)
        assert found is not None
        return found.mode

    assert chosen(model, slow) is ExpertMode.HOME
    assert chosen(model, None) in (ExpertMode.HOME, ExpertMode.COHERENT)
    given = prompts([3, 5])
    expected = generated(model, given, expert_parallel="home")
    found = generated(model, given, expert_parallel="auto", cluster=far)
    np.testing.assert_array_equal(found, expected)
    assert chosen(model, far) is ExpertMode.COHERENT
    assert chosen(language_model("Gemma4:experts", 1), far) is ExpertMode.HOME
    with pytest.raises(ValueError, match="as many ranks as run"):
        generated(model, given, expert_parallel="auto", cluster=hf.Cluster(1, 3))
    with pytest.raises(ValueError, match="without expert_parallel='auto'"):
        generated(model, given, expert_parallel=True, cluster=far)
