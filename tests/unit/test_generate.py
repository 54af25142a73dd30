"""`hyparflow.generate` beside KerasHub's own: samplers, seeds, text, lengths, refusals."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from byte_text import END, byte_model
from language_models import VOCABULARY, alone, kept_model, padded

import hyparflow as hf
from hyparflow.serving.decoding.adapters import decoder_of
from hyparflow.serving.decoding.samplers import sampling_of
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.ranks.replicas import OneReplica
from hyparflow.serving.ranks.runner import LocalRunner
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request

LENGTH = 24


def forbidding(seed: int) -> Any:
    """A sampler of one's own, with a state and a generator of its own."""
    import keras_hub

    class Forbidding(keras_hub.samplers.Sampler):
        def __init__(self, forbidden: list[int], seed: int, **settings: Any) -> None:
            super().__init__(**settings)
            self.forbidden, self.generator = forbidden, keras.random.SeedGenerator(seed)

        def get_next_token(self, probabilities: Any) -> Any:
            kept = [float(n not in self.forbidden) for n in range(VOCABULARY)]
            logits = keras.ops.log(probabilities * keras.ops.array(kept))
            drawn = keras.random.categorical(logits, 1, seed=self.generator, dtype="int32")
            return keras.ops.squeeze(drawn, -1)

    return Forbidding([1, 2, 3], seed, temperature=2.0)


def samplers(seed: int) -> list[Any]:
    import keras_hub

    kinds = keras_hub.samplers
    return [
        kinds.TopKSampler(k=5, seed=seed),
        kinds.TopPSampler(p=0.8, temperature=1.3, seed=seed),
        kinds.TopPSampler(p=0.9, k=10, temperature=0.8, seed=seed),
        kinds.RandomSampler(temperature=0.7, seed=seed),
        kinds.GreedySampler(),
        forbidding(seed),
    ]


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_samplers_that_compute_together(jit: bool) -> None:
    """Each request has a sampler, a seed and a length of its own: the tokens it has alone."""
    model, random = kept_model("Llama"), np.random.default_rng(0)
    limits = Limits(4, LENGTH, window=4, piece=16, shortest=12, fewest=2)
    engine = ServingEngine(OneReplica(LocalRunner(decoder_of(model, jit))), limits)
    given: dict[int, list[int]] = {}
    right: dict[int, list[int]] = {}
    for number in range(9):
        prompt = random.integers(1, VOCABULARY, random.integers(1, 12)).tolist()
        seed, count = int(random.integers(2**31 - 1)), LENGTH - len(prompt)
        sampling = sampling_of(samplers(seed)[number % 6], seed)
        engine.submit(Request(number, tuple(prompt), count, sampling=sampling))
        model.compile(sampler=samplers(seed)[number % 6], jit_compile=jit)
        right[number] = alone(model, prompt, count)
        given[number] = []
    while not engine.is_idle:
        for progress in engine.advance():
            given[progress.number] += progress.tokens
    assert given == right
    assert len({tuple(tokens) for tokens in given.values()}) == 9


def test_text() -> None:
    model, texts = byte_model(), ["ab", "a longer prompt", "wörld"]
    for several in ({"max_length": 40}, {"max_length": 25, "strip_prompt": True}):
        assert hf.generate(model, texts, **several) == model.generate(texts, **several)
    one = hf.generate(model, "ab", max_length=30)
    assert isinstance(one, str)
    assert one == model.generate("ab", max_length=30)
    assert hf.generate(model, tf.constant("ab"), max_length=30) == one
    batches = tf.data.Dataset.from_tensor_slices(texts).batch(2)
    assert hf.generate(model, batches, max_length=40) == hf.generate(model, texts, max_length=40)


def test_stop_tokens() -> None:
    """The stop token is given out; the rest of the row is no part of the answer."""
    model, prompt = kept_model("GPT2"), [3, 1, 4]
    model.compile(sampler="greedy")
    free = alone(model, prompt, 20)
    stop = next(token for token in free[3:] if token not in free[:3])
    right = alone(model, prompt, 20, stop_token_ids=[stop])
    found = hf.generate(model, padded([prompt], [23]), stop_token_ids=[stop])
    mask = found["padding_mask"][0]
    assert found["token_ids"][0][mask].tolist() == prompt + right
    assert right == free[: free.index(stop) + 1]


def test_prompts_with_a_length_and_a_seed_each() -> None:
    model = byte_model()
    given = {"sampler": "random", "seed": [7, 7, 8]}
    found = hf.generate(model, ["ab"] * 3, max_length=[40, 12, 40], strip_prompt=True, **given)
    assert found[0].startswith(found[1].rstrip("\ufffd"))
    assert len(found[1]) < len(found[0])
    assert found[2] != found[0]
    again = hf.generate(model, "ab", max_length=40, strip_prompt=True, sampler="random", seed=8)
    assert again == found[2]


def test_prompts_without_room() -> None:
    """KerasHub cuts a prompt off, and returns it."""
    model = byte_model()
    assert hf.generate(model, ["a longer prompt", "ab"], max_length=6)[0] == "a lon"
    assert model.generate(["a longer prompt", "ab"], max_length=6)[0] == "a lon"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_length": 1000}, "128 positions that the model has learned.*max_length=1000"),
        ({"sampler": "beam"}, "logits of this row alone.*'BeamSampler'"),
        ({"seed": [1, 2]}, "one integer of each prompt.*2 seeds for 1 prompts"),
        ({"max_length": [9, 9]}, r"one of each prompt.*max_length=\[9, 9\] for 1 prompts"),
        ({"stop_token_ids": "end"}, "must be 'auto', None or a list of tokens"),
        ({"inputs": {"token_ids": [[1]]}}, "takes a string or several.*token_ids"),
        ({"inputs": [1, 2]}, r"takes a string or several.*\[1, 2\]"),
        ({"inputs": []}, r"takes a string or several.*\[\]"),
        ({"launch": 5}, "`launch` must be True, False, or a dict.*launch=5"),
        ({"num_partitions": 2}, "num_partitions x num_replicas x num_shards.*1 rank runs"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_length": 0}, "`max_length` must be a positive integer.*max_length=0"),
        ({"max_length": "9"}, "`max_length` must be a positive integer.*'9'"),
        ({"seed": "x"}, "`seed` must be an integer.*seed='x'"),
        ({"seed": [1.5]}, "`seed` must be an integer"),
        ({"strip_prompt": "no"}, "`strip_prompt` must be True or False"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hf.generate(byte_model(), **{"inputs": "ab"} | arguments)


def test_tokens_that_are_no_prompts() -> None:
    model = kept_model("GPT2")
    with pytest.raises(ValueError, match="must have a preprocessor for `stop_token_ids="):
        hf.generate(model, padded([[1]], [4]))
    gap = {"token_ids": np.ones((1, 4)), "padding_mask": np.array([[1, 0, 1, 0]])}
    with pytest.raises(ValueError, match="without gaps"):
        hf.generate(model, gap, stop_token_ids=None)
    with pytest.raises(ValueError, match="takes a dictionary of 'token_ids'"):
        hf.generate(model, "text", stop_token_ids=None)
    with pytest.raises(ValueError, match=r"must be a `keras_hub.models.CausalLM`.*Sequential"):
        hf.generate(keras.Sequential([keras.layers.Dense(1)]), padded([[1]], [4]), None, None)


def test_a_job_that_is_started_for_it() -> None:
    model = byte_model()
    launch = {"oversubscribe": True}
    found = hf.generate(model, ["ab", "cd"], max_length=20, num_partitions=2, launch=launch)
    assert found == model.generate(["ab", "cd"], max_length=20)
    with pytest.raises(ValueError, match="how many ranks to start"):
        hf.generate(model, "ab", launch=True)


def test_the_end_token_ends() -> None:
    assert END in decoder_end_tokens()


def decoder_end_tokens() -> frozenset[int]:
    from hyparflow.serving.requests.text import stop_tokens_of

    return stop_tokens_of(byte_model(), "auto")
