"""What a rank surely needs in `fit` where replicas share out experts."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import hyparflow as hf
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.layout import cut_model
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.options import resolve
from hyparflow.training.memory_check import MemoryNeed, need_of


def mixture_model(is_built: bool = False) -> Any:
    tokens = keras.Input([6, 16])
    x = keras.layers.Dense(16)(tokens)
    x = hf.layers.MixtureOfExperts(8, 32, load_balancing=0.0)(x)
    model = keras.Model(tokens, keras.layers.Dense(4)(x))
    model.compile("adam", "mse", jit_compile=False)
    if is_built:
        model.optimizer.build(model.trainable_variables)
    return model


def need(model: Any, size: int, **options: Any) -> MemoryNeed:
    made = resolve(size, **options)
    return need_of(model, cut_model(model, made), made, 0)


def sizes(model: Any) -> tuple[int, int]:
    """Bytes of experts, and of all other weights."""
    experts = sum(bytes_of(v) for one in expert_layers(all_layers(model)) for v in one.weights)
    return experts, sum(map(bytes_of, model.weights)) - experts


def test_rows_take_the_place_of_experts() -> None:
    model = mixture_model()
    experts, _ = sizes(model)
    assert need(model, 4, num_replicas=4) == MemoryNeed()
    found = need(model, 4, num_replicas=4, expert_parallel=True)
    assert (found.weights, found.freed) == (experts // 4, experts)
    assert found.in_training == found.gradients + found.slots - experts * 3 // 4


def test_deferred_experts_need_memory_for_their_rows() -> None:
    with hf.deferred():
        model = mixture_model()
    experts, others = sizes(model)
    assert need(model, 4, num_replicas=4).weights == experts + others
    found = need(model, 4, num_replicas=4, expert_parallel=True)
    assert (found.weights, found.freed) == (experts // 4 + others, 0)
    assert found.at_end >= experts + others  # all of them come to all ranks
    apart = need(model, 4, num_replicas=4, expert_parallel=True, gather=False)
    assert apart.at_end == 0
    assert need(model, 1, expert_parallel=True).weights == experts + others


@pytest.mark.parametrize("is_built", [False, True])
def test_gradients_and_slots_of_experts_are_of_rows(is_built: bool) -> None:
    """Adam has two slots for each weight. The first of two partitions has the experts."""
    with hf.deferred():
        model = mixture_model(is_built)
    experts, _ = sizes(model)
    layout: dict[str, Any] = {"num_replicas": 4, "num_partitions": 2, "lpp": [2, 1]}
    whole = need(model, 8, **layout)
    shared = need(model, 8, **layout, expert_parallel=True)
    left = experts * 3 // 4
    assert whole.weights - shared.weights == left
    assert whole.gradients - shared.gradients == left
    assert whole.slots - shared.slots == 2 * left
    assert whole.at_end == shared.at_end > experts
