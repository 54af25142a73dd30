"""Hundreds of random requests of each family: tokens of one-by-one `generate`."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from language_models import language_model
from many_requests import LENGTH, ManyRequests, random_limits

from hyparflow.serving.decoding.adapters import decoder_of
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.ranks.replicas import OneReplica
from hyparflow.serving.ranks.runner import LocalRunner

FAMILIES = ("GPT2", "OPT", "Llama", "Mistral", "Qwen", "Qwen3", "Gemma")
BY_ROWS = ("Mixtral", "QwenMoe", "Phi3", "SmolLM3")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", FAMILIES + BY_ROWS)
def test_many_requests(name: str) -> None:
    model = language_model(name, LENGTH)
    model.compile(sampler="greedy", jit_compile=False)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    decoder, preemptions, rebuilds = decoder_of(model), 0, 0
    for _ in range(2):
        many = ManyRequests.random(random, 25)
        engine = ServingEngine(OneReplica(LocalRunner(decoder)), random_limits(random))
        many.run(engine)
        assert many.faults(model) == []
        counts = engine.schedulers[0].counts
        preemptions += counts.preemptions
        rebuilds += counts.rebuilds
    assert preemptions > 0
    assert rebuilds > 2
