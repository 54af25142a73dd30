"""Generating by ranks that share out experts: the tokens of one process."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, on_leader
from expert_requests import COUNTS, generated, mixed_up, prompts, require_served
from language_models import EXPERTS, GROUPED, LENGTH, SMALL, VOCABULARY
from language_models import language_model as sampling_model

import hyparflow as hf
from hyparflow.comm.ledger import Collective
from hyparflow.comm.ranks import world
from hyparflow.engine.experts.row_exchange import FROM_EXPERTS, TO_EXPERTS
from hyparflow.engine.weights.groups import groups_of
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.ranks.build import built_share
from hyparflow.serving.ranks.shared_experts import ExpertMode, shared_experts

keras_hub = pytest.importorskip("keras_hub")
FAMILIES = ["Mixtral", *(pytest.param(n, marks=pytest.mark.slow) for n in ("QwenMoe", "Qwen3Moe"))]


def language_model(name: str) -> Any:
    """A model whose likeliest tokens are taken."""
    model = sampling_model(name)
    model.compile(sampler="greedy")
    return model


def plain(model: Any, given: Any) -> np.ndarray:
    """What KerasHub generates, on one rank."""
    return on_leader(lambda: np.asarray(model.generate(given, stop_token_ids=None)["token_ids"]))


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("placed", ["mixed up", pytest.param("in order", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_of_one_process(name: str, placed: str) -> None:
    """Of fewer prompts than ranks, and of more than fit at once, of several lengths."""
    model = language_model(name)
    placement = mixed_up(model) if placed == "mixed up" else None
    for counts in ([5], [3, 11, 1, 7, 2, 9, 4]):
        given = prompts(counts)
        expected = plain(model, given)
        found = generated(model, given, expert_parallel=True, placement=placement)
        np.testing.assert_array_equal(found, expected)
    # Trained since: each rank takes its experts anew.
    for weight in model.trainable_weights:
        weight.assign(0.8 * weight)
    expected = plain(model, given)
    found = generated(model, given, expert_parallel=True, placement=placement)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_logits_of_a_plain_call(name: str) -> None:
    """Token by token at unequal positions, of tokens that differ from rank to rank."""
    model = language_model(name)
    grid = Grid(1, 1, num_shards=WORLD.size)
    experts = shared_experts(model, WORLD.size, mixed_up(model), ExpertMode.HOME)
    decoder = built_share(model, grid, world(), False, experts).computes
    draw = np.random.default_rng(WORLD.rank)
    tokens = draw.integers(1, VOCABULARY, (4, 16)).astype("int32")
    counts = [7, 2, 11, 4]
    found = decoder.probe(tokens, counts, 2)
    whole = model({"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, training=False)
    expected = np.asarray(whole)
    for step, logits in enumerate(found):
        right = expected[np.arange(4), np.array(counts) + step]
        assert np.abs(logits - right).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.on_ranks(2)
def test_other_experts_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank lacks is NaN in the model that it has."""
    model = language_model("Mixtral")
    given = prompts([5, 3, 8])
    expected = plain(model, given)
    generated(model, given, expert_parallel=True)
    for one in expert_layers(all_layers(model)):
        owner = np.arange(one.num_experts) * WORLD.size // one.num_experts
        for weight in one.weights:
            value = weight.numpy()
            value[owner != WORLD.rank] = np.nan
            weight.assign(value)
    monkeypatch.setattr("hyparflow.serving.ranks.agreed.Agreed.note_weights", lambda *_: None)
    found = generated(model, given, expert_parallel=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.on_ranks(2)
def test_no_rank_has_all_experts() -> None:
    """Of a model that is loaded over ranks; the reference then takes them all."""
    arguments = {**SMALL, **GROUPED, **EXPERTS, "sliding_window": 9}
    keras.utils.set_random_seed(6)
    with hf.deferred():
        backbone = keras_hub.models.MixtralBackbone(**arguments)
        model = keras_hub.models.MixtralCausalLM(backbone=backbone, preprocessor=None)
    model.compile(sampler="greedy")
    found = generated(model, prompts([2, 5]), expert_parallel=True)
    layers = expert_layers(all_layers(model))
    assert layers and all(is_absent(weight) for one in layers for weight in one.weights)
    np.testing.assert_array_equal(found, plain(model, prompts([2, 5])))


@pytest.mark.on_ranks(2)
def test_exchanges_are_those_of_the_formula() -> None:
    """Two all-to-alls of each layer in each iteration, and a piece of prompts is one."""
    model = language_model("Mixtral")
    given = prompts([6] * 4)
    generated(model, given, expert_parallel=True)
    ledger = groups_of(Grid(1, 1, num_shards=WORLD.size), world()).shards.ledger
    ledger.clear()
    generated(model, given, expert_parallel=True)
    layers, new = 2, LENGTH // 2 - 6
    there = ledger.total(Collective.ALL_TO_ALL, TO_EXPERTS)
    back = ledger.total(Collective.ALL_TO_ALL, FROM_EXPERTS)
    pieces = 4 // WORLD.size  # of each rank's rows, which go in one by one
    assert there.calls == back.calls == layers * (new + pieces)
    heads = 4 * (4 - 4 // WORLD.size) * there.calls  # counts of the experts of other ranks
    tokens = 4 * 16  # a row of float32
    assert (there.off_rank - heads) % tokens == 0
    gone = WORLD.allreduce((there.off_rank - heads) // tokens)
    come = WORLD.allreduce(back.off_rank // tokens)
    assert gone == come > 0


@pytest.mark.on_ranks(2)
def test_a_server_whose_requests_come_and_go() -> None:
    model = language_model("Mixtral")
    expected = plain(model, prompts(COUNTS))
    require_served(model, expected, expert_parallel=True, placement=mixed_up(model))


@pytest.mark.on_ranks(2)
def test_refusals() -> None:
    given = prompts([4])
    dense, model = language_model("Llama"), language_model("Mixtral")

    def refused(model: Any, match: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            hf.generate(model, given, stop_token_ids=None, **options)

    refused(dense, "is for models with mixtures of experts", expert_parallel=True)
    refused(model, "without expert_parallel=True", placement=mixed_up(model))
    refused(
        model,
        "Experts are spread over replicas of the whole model",
        expert_parallel=True,
        num_partitions=2,
    )
    other = hf.ExpertPlacement.contiguous(3, 4, WORLD.size)
    refused(model, "of the model and the number of ranks", expert_parallel=True, placement=other)
    copies = hf.ExpertPlacement(
        (((0,), (0,), (0,), tuple(range(WORLD.size))),) * 2, num_ranks=WORLD.size
    )
    refused(model, "have each of them once", expert_parallel=True, placement=copies)
    refused(model, "must be a hyparflow.ExpertPlacement", expert_parallel=True, placement=7)
    keras.backend.clear_session()
