"""Training with experts that replicas share out: the numbers of plain Keras."""

from __future__ import annotations

import contextlib
import functools
import unittest.mock
from collections.abc import Iterator
from typing import Any

import keras
import language_models
import numpy as np
import pytest
from contract import WORLD, Outcome, State, float_type, on_leader, require_none

import hyparflow as hf
from hyparflow.engine.weights.holdings import bytes_here, is_elsewhere
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.optimizer import weights_of_slots

ROWS, LENGTH = 22, 6  # batches of 8, 8 and 6 rows
HUB = ["Mixtral", "QwenMoe", "Qwen3Moe"]
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in HUB]

several = pytest.mark.skipif(WORLD.size == 1, reason="one rank has all experts")


def own_model(load_balancing: float = 0.02, **options: Any) -> Any:
    """Two mixtures among other layers; one has masked tokens."""
    tokens = keras.Input([LENGTH], dtype="int32")
    x = keras.layers.Embedding(30, 12, mask_zero=True)(tokens)
    layer = functools.partial(hf.layers.MixtureOfExperts, 8, 10, load_balancing=load_balancing)
    x = keras.layers.Add()([x, layer(top_k=2, **options)(x)])
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Add()([x, layer(top_k=1, gated=True, **options)(x)])
    return keras.Model(tokens, keras.layers.Dense(30)(x))


def hub_model(name: str) -> Any:
    """A language model of KerasHub's, with its loss that balances experts."""
    return language_models.language_model(name)


def data(kind: str) -> dict[str, Any]:
    draw = np.random.default_rng(4)
    tokens = draw.integers(1, 30, (ROWS, LENGTH + 1))
    if kind == "own":
        tokens[:, LENGTH - 1] *= draw.integers(0, 2, ROWS)
        return {"x": tokens[:, :-1], "y": tokens[:, 1:]}
    ids = tokens[:, :-1].astype("int32")
    mask = np.ones_like(ids)
    mask[::3, -2:] = 0
    weights = mask.astype("float64")
    inputs = {"token_ids": ids, "padding_mask": mask}
    return {"x": inputs, "y": tokens[:, 1:], "sample_weight": weights}


def compiled(model: Any, **optimizer: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = {"weight_decay": 0.01, "global_clipnorm": 0.2} | optimizer
    model.compile(keras.optimizers.AdamW(0.01, **optimizer), loss, jit_compile=False)
    return model


def built(kind: str) -> Any:
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)
    model = own_model() if kind == "own" else hub_model(kind)
    compiled(model)
    model.optimizer.build(model.trainable_variables)
    return model


FIT = {"batch_size": 8, "epochs": 2, "shuffle": True, "verbose": 0}


@contextlib.contextmanager
def all_in_float64() -> Iterator[None]:
    """Also what KerasHub casts to float32 by name, whose rounding depends on the last digits."""

    def wide(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> Any:
            given = ("float64" if x == "float32" else x for x in args if isinstance(x, str))
            args = tuple(next(given) if isinstance(x, str) else x for x in args)
            if kwargs.get("dtype") == "float32":
                kwargs["dtype"] = "float64"
            return make(*args, **kwargs)

        return made

    with contextlib.ExitStack() as stack:
        stack.enter_context(float_type("float64"))
        for name in ("cast", "arange", "convert_to_tensor", "zeros", "ones"):
            function = wide(getattr(keras.ops, name))
            stack.enter_context(unittest.mock.patch.object(keras.ops, name, function))
        yield


@functools.cache
def plain(kind: str) -> Outcome:
    """What plain Keras leaves."""

    def train() -> Outcome:
        model, given = built(kind), data(kind)
        keras.utils.set_random_seed(11)
        history = model.fit(**given, **FIT, validation_data=validation(given))
        return Outcome(history.history, State.of(model))

    with all_in_float64():
        return on_leader(train)


def validation(given: dict[str, Any]) -> tuple[Any, ...]:
    """A row and a few more: some replicas have none."""
    first = keras.tree.map_structure(lambda x: x[:3], tuple(given.values()))
    return tuple(first)


def mixed_up(model: Any, replicas: int) -> hf.ExpertPlacement:
    """A placement with each replica's experts all over the layer."""
    layers = expert_layers(all_layers(model))
    return hf.ExpertPlacement.random(len(layers), layers[0].num_experts, replicas, seed=3)


@several
@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("kind", ["own", *SLOW])
def test_equals_plain_keras(kind: str, partitions: int) -> None:
    """Weights, optimizer, History; the last batch is short, and validation has three rows."""
    if WORLD.size // partitions < 2:
        pytest.skip("one replica has all experts")
    expected = plain(kind)
    with all_in_float64():
        model, given = built(kind), data(kind)
        keras.utils.set_random_seed(11)
        history = hf.fit(
            model,
            **given,
            **FIT,
            validation_data=validation(given),
            num_partitions=partitions,
            num_microbatches=1,
            expert_parallel=True,
            placement=mixed_up(model, WORLD.size // partitions),
        )
        outcome = Outcome(history.history, State.of(model))
    require_none(outcome.compare(expected, 1e-9), "with experts shared out")


@pytest.mark.on_ranks(4)
def test_each_rank_has_its_experts_alone() -> None:
    """Other experts have no memory: not in the layers' variables, nor in optimizer slots."""
    model = built("own")
    found: list[int] = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if not found:
                layers = expert_layers(all_layers(model))
                weights = [weight for one in layers for weight in one.weights]
                found.append(sum(bytes_here(weight) for weight in weights))

    whole = sum(
        w.value.shape.num_elements() * 4
        for one in expert_layers(all_layers(model))
        for w in one.weights
    )
    hf.fit(model, **data("own"), **FIT, callbacks=[Look()], expert_parallel=True)
    if WORLD.rank == 0:
        assert found == [whole // WORLD.size]


@pytest.mark.on_ranks(4)
@pytest.mark.parametrize("partitions", [1, 2])
def test_plans_tell_what_each_rank_holds(partitions: int) -> None:
    """Weights and slots, to the byte, of the first partition's ranks."""
    if WORLD.size // partitions < 2:
        pytest.skip("one replica has all experts")
    model = compiled(own_model(load_balancing=0.0))
    layout = {"num_partitions": partitions, "num_microbatches": 1, "expert_parallel": True}
    plan = hf.plan(model, batch_size=8, num_ranks=WORLD.size, costs="estimate", **layout)
    found: list[int] = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            slots = weights_of_slots(model.optimizer)
            found[:] = [
                sum(map(bytes_here, model.variables)),
                sum(bytes_here(v) for v in model.optimizer.variables if id(v) in slots),
            ]

    hf.fit(model, **data("own"), **FIT, callbacks=[Look()], plan=plan)
    if WORLD.rank == 0:
        memory = plan.partitions[0].memory
        assert found == [memory.weights, memory.slots]


class Interrupted(Exception):
    """What ends a training in the middle."""


class StopsAt(keras.callbacks.Callback):
    """Raises an error after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("later", [{"expert_parallel": True}, {"num_partitions": 2}])
def test_goes_on_from_a_checkpoint(later: dict[str, Any], tmp_path_factory: Any) -> None:
    """With experts shared out as before, and without, each in another process's place."""
    folder = WORLD.bcast(str(tmp_path_factory.mktemp("run")) if WORLD.rank == 0 else None)
    kept = hf.Checkpoint(folder, every_steps=1, every_minutes=None)
    expected = plain("own")
    given = data("own")
    fit = FIT | {"validation_data": validation(given), "checkpoint": kept, "num_microbatches": 1}
    with all_in_float64():
        model = built("own")
        keras.utils.set_random_seed(11)
        with pytest.raises(Interrupted):
            placed = {"expert_parallel": True, "placement": mixed_up(model, WORLD.size)}
            hf.fit(model, **given, **fit, callbacks=[StopsAt(4)], **placed)
        model = built("own")
        history = hf.fit(model, **given, **fit, **later)
        outcome = Outcome(history.history, State.of(model))
    require_none(outcome.compare(expected, 1e-9), f"gone on with {later}")


@pytest.mark.on_ranks(2)
def test_experts_stay_where_they_are() -> None:
    """After gather=False: what predicts, evaluates, trains and saves finds them."""
    given = data("own")
    expected = plain("own")
    with all_in_float64():
        model = built("own")
        keras.utils.set_random_seed(11)
        placement = mixed_up(model, WORLD.size)
        layout = {"expert_parallel": True, "num_microbatches": 1, "placement": placement}
        first = {**FIT, **layout, "epochs": 1, "validation_data": validation(given)}
        histories = [hf.fit(model, **given, **first, gather=False).history]
        layers = expert_layers(all_layers(model))
        assert all(is_elsewhere(weight) for one in layers for weight in one.weights)
        again = hf.evaluate(model, *validation(given), batch_size=8, verbose=0, **layout)
        np.testing.assert_allclose(again, histories[0]["val_loss"][0], rtol=1e-12)
        second = first | {"epochs": 2, "initial_epoch": 1}
        histories.append(hf.fit(model, **given, **second).history)
        joined = {key: values + histories[1][key] for key, values in histories[0].items()}
        outcome = Outcome(joined, State.of(model))
        whole = on_leader(lambda: model.predict(given["x"], verbose=0))
        shared = hf.predict(model, given["x"], batch_size=7, verbose=0, **layout)
    require_none(outcome.compare(expected, 1e-9), "after gather=False")
    np.testing.assert_allclose(shared, whole, rtol=0, atol=1e-12)


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("kind", [*SLOW[:2], "own", HUB[2]])
def test_all_experts_on_each_rank(kind: str, partitions: int) -> None:
    """Those that were chosen compute, and the loss of balance is of all tokens of the batch."""
    if WORLD.size % partitions:
        pytest.skip("one rank is no two partitions")
    expected = plain(kind)
    with all_in_float64():
        model, given = built(kind), data(kind)
        keras.utils.set_random_seed(11)
        parallel = hf.parallelize(model, num_partitions=partitions, num_microbatches=1)
        history = parallel.fit(**given, **FIT, validation_data=validation(given))
        assert kind == "own" or WORLD.size == 1 or "sparse experts (" in str(parallel)
        outcome = Outcome(history.history, State.of(model))
    require_none(outcome.compare(expected, 1e-9), "with all experts on each rank")


@pytest.mark.on_ranks(2)
def test_refusals() -> None:
    given = data("own")

    def fit(model: Any, **options: Any) -> None:
        hf.fit(model, **given, **FIT, **({"expert_parallel": True} | options))

    dense = compiled(keras.Sequential([keras.Input([LENGTH]), keras.layers.Dense(30)]))
    with pytest.raises(ValueError, match="is for models with mixtures of experts"):
        fit(dense)
    odd = compiled(keras.Sequential([keras.Input([LENGTH, 3]), hf.layers.MixtureOfExperts(7, 5)]))
    with pytest.raises(ValueError, match="must be a multiple of the number of replicas"):
        hf.fit(odd, np.zeros([8, LENGTH, 3]), np.zeros([8, LENGTH]), expert_parallel=True)
    model = built("own")
    with pytest.raises(ValueError, match="of the model and the number of ranks"):
        fit(model, placement=mixed_up(model, 2 if WORLD.size == 4 else 4))
    of_rank = hf.ExpertPlacement.random(2, 4, WORLD.size, seed=WORLD.rank)
    with pytest.raises(ValueError, match="the same argument `placement`"):
        fit(model, placement=of_rank)
    with pytest.raises(ValueError, match="without expert_parallel=True"):
        fit(model, placement=mixed_up(model, WORLD.size), expert_parallel=False)
    with pytest.raises(ValueError, match="must be a hyparflow.ExpertPlacement"):
        fit(model, placement=7)
    with pytest.raises(ValueError, match="shard_optimizer=True"):
        fit(model, shard_optimizer=True)
    with pytest.raises(ValueError, match="Use num_microbatches=1"):
        fit(model, num_microbatches=2)
    clipped = compiled(own_model(), clipnorm=1.0, global_clipnorm=None)
    with pytest.raises(ValueError, match="without `clipnorm`"):
        fit(clipped)
