"""Training with sequences that are divided over ranks and into chunks: the contract."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest
from contract import WORLD, Outcome, State, differences, float_type, on_leader, require_none
from transformers import MODELS, PARTLY_FLOAT32, VOCABULARY, heads, own

import hyparflow as hf
from hyparflow.tracing.summary import describe
from hyparflow.tracing.trace import Trace

ROWS, LENGTH = 4, 22  # no number of pieces divides it


def layouts(size: int) -> list[tuple[int, int, int]]:
    """All (replicas, sequence shards, partitions) of `size` ranks that have a use of sequences."""
    numbers = [n for n in range(1, size + 1) if size % n == 0]
    triples = itertools.product(numbers, repeat=3)
    return [t for t in triples if np.prod(t) == size and (t[1] > 1 or size == 1)]


def data(model: Any, seed: int = 0) -> tuple[Any, Any]:
    """Tokens, with padding at the end where the model takes a mask, and the next tokens."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, VOCABULARY, (ROWS, LENGTH + 1)).astype("int32")
    x, y = tokens[:, :-1], tokens[:, 1:]
    names = [tensor.name for tensor in model.inputs]
    if names == ["padding_mask", "token_ids"] or "token_ids" in names:
        return {"token_ids": x, "padding_mask": np.ones_like(x)}, y
    return x, y


def compiled(build: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = build(LENGTH)
    random = np.random.default_rng(1)
    for variable in model.trainable_variables:  # none is zero
        variable.assign(variable + 0.1 * random.standard_normal(variable.shape))
    model.compile(
        keras.optimizers.Adam(1e-2, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def outcome(
    fit: Any, build: Any, x: Any, y: Any, validates: bool = True, **arguments: Any
) -> Outcome:
    model = compiled(build)
    more = {"epochs": 2, "validation_data": (x, y)} if validates else {}
    history = fit(model, x, y, batch_size=2, shuffle=False, verbose=0, **more, **arguments)
    return Outcome(history.history, State.of(model))


def arguments_of(layout: tuple[int, int, int], chunks: int) -> dict[str, Any]:
    replicas, shards, partitions = layout
    return {
        "num_replicas": replicas,
        "num_sequence_shards": shards,
        "num_partitions": partitions,
        "num_sequence_chunks": chunks,
    }


def cases() -> list[Any]:
    """Each model with each layout and number of chunks; in most runs each model once."""
    found = []
    for n, name in enumerate(MODELS):
        every = [
            (layout, chunks)
            for layout in layouts(WORLD.size)
            for chunks in (1, 2, 4)
            if chunks > 1 or layout[1] > 1
        ]
        for number, (layout, chunks) in enumerate(every):
            marks = () if number == n % len(every) else (pytest.mark.slow,)
            label = f"{name}-{layout}-{chunks}"
            found.append(pytest.param(name, layout, chunks, marks=marks, id=label))
    return found


@pytest.mark.parametrize(("name", "layout", "chunks"), cases())
def test_numbers_are_plain_keras_s(name: str, layout: tuple[int, int, int], chunks: int) -> None:
    with float_type("float64"):
        x, y = data(MODELS[name](LENGTH))
        if name == "masked":
            x = np.where(np.arange(LENGTH) < [[22], [9], [13], [2]], x, 0)
        expected = on_leader(lambda: outcome(keras.Model.fit, MODELS[name], x, y))
        found = outcome(hf.fit, MODELS[name], x, y, **arguments_of(layout, chunks))
        require_none(found.compare(expected, 1e-9), f"{name}, {layout}, {chunks} chunks")


def _widened(argument: Any) -> Any:
    return "float64" if isinstance(argument, str) and argument == "float32" else argument


def all_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have KerasHub's layers compute in float64 what they ask float32 for."""
    real = {name: getattr(keras.ops, name) for name in ("cast", "arange")}

    def as_float64(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            names = {k: _widened(x) for k, x in kwargs.items()}
            return real[name](*map(_widened, args), **names)

        return call

    for name in real:
        monkeypatch.setattr(keras.ops, name, as_float64(name))
    softmax = keras.layers.Softmax.__init__
    monkeypatch.setattr(
        keras.layers.Softmax, "__init__", lambda self, dtype=None, **more: softmax(self, **more)
    )


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize(
    "name", [n if n == "llama" else pytest.param(n, marks=pytest.mark.slow) for n in PARTLY_FLOAT32]
)
def test_models_that_compute_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the type of the model; here that is sent to float64, too."""
    all_in_float64(monkeypatch)
    layout = layouts(WORLD.size)[-1]
    with float_type("float64"):
        x, y = data(PARTLY_FLOAT32[name](LENGTH))
        expected = on_leader(lambda: outcome(keras.Model.fit, PARTLY_FLOAT32[name], x, y))
        found = outcome(hf.fit, PARTLY_FLOAT32[name], x, y, **arguments_of(layout, 3))
        require_none(found.compare(expected, 1e-9), name)


def test_predictions() -> None:
    layout = layouts(WORLD.size)[0]
    with float_type("float64"):
        model = compiled(MODELS["grouped"])
        x, y = data(model)
        expected = on_leader(lambda: model.predict(x, verbose=0))
        found = hf.predict(model, x, batch_size=4, verbose=0, **arguments_of(layout, 3))
        require_none(differences("predictions", found, expected, 1e-9), str(layout))


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_exchanges_are_counted(chunks: int) -> None:
    """As many as the design says, and as many bytes, whatever the number of chunks."""
    if WORLD.size == 1:
        pytest.skip("one rank exchanges nothing with others")
    shards, rows, length, layers = WORLD.size, 2, 16, 2
    with float_type("float32"):
        model = compiled(MODELS["grouped"])
        x = np.ones((rows, length), "int32")
        arguments = arguments_of((1, shards, 1), chunks)
        parallel = hf.parallelize(model, **arguments)
        parallel.fit(x, x, batch_size=rows, verbose=0)
        counts = parallel.sequence_counts
    heads, key_heads, size, width = 4, max(2, shards), 4, 4  # width: bytes of a number
    own = rows * length // shards * heads * size * width
    delta = rows * length // shards * heads * width
    moved = layers * (2 * (2 + 2 * key_heads / heads) * own + delta) * (shards - 1) / shards
    assert (counts.exchanges, counts.bytes_sent) == (4 * chunks * layers, moved)


@pytest.mark.on_ranks(2)
def test_dropout_is_the_same_in_all_layouts() -> None:
    """By position, within attention and without; not that of plain Keras."""
    build = own(lambda: heads(dropout=0.3), after=lambda: keras.layers.Dropout(0.2))
    kinds = [((1, WORLD.size, 1), 1), ((1, WORLD.size, 1), 4), ((1, 1, WORLD.size), 2)]
    with float_type("float64"):
        x, y = data(build(LENGTH))
        first, *others = [
            outcome(hf.fit, build, x, y, False, num_microbatches=1, **arguments_of(layout, chunks))
            for layout, chunks in kinds
            if layout[1] > 1 or chunks > 1
        ]
        for found in others:
            require_none(found.compare(first, 1e-9), "dropout")
        plain = on_leader(lambda: outcome(keras.Model.fit, own(heads), x, y, False))
        assert first.compare(plain, 1e-3), "nothing was dropped"


@pytest.mark.filterwarnings("error:`recompute` saves nothing")
@pytest.mark.on_ranks(1)
def test_forwards_that_are_kept_or_computed_again() -> None:
    layout = layouts(WORLD.size)[0]
    with float_type("float64"):
        x, y = data(MODELS["heads"](LENGTH))
        arguments = arguments_of(layout, 4)
        kept, again = (
            outcome(hf.fit, MODELS["heads"], x, y, False, recompute=how, **arguments)
            for how in (None, "block")
        )
        require_none(again.compare(kept, 1e-12), str(layout))


@pytest.mark.on_ranks(2)
def test_lengths_that_vary() -> None:
    """More of them than kernels are compiled for."""
    layout = layouts(WORLD.size)[0]

    def batches() -> Any:
        random = np.random.default_rng(5)
        for length in (12, 17, 22, 9, 20, 21, 12):
            tokens = random.integers(1, VOCABULARY, (2, length + 1)).astype("int32")
            yield tokens[:, :-1], tokens[:, 1:]

    def train(fit: Any, **arguments: Any) -> Outcome:
        model = compiled(MODELS["heads"])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = fit(model, batches(), steps_per_epoch=7, verbose=0, **arguments)
        return Outcome(history.history, State.of(model))

    with float_type("float32"):
        expected = on_leader(lambda: train(keras.Model.fit))
        found = train(hf.fit, **arguments_of(layout, 2))
        require_none(found.compare(expected, 1e-4), str(layout))


@pytest.mark.on_ranks(1)
def test_stores(tmp_path: Any) -> None:
    layout = layouts(WORLD.size)[0]
    with float_type("float32"):
        x, y = data(MODELS["grouped"](LENGTH))

        def train(store: str) -> Outcome:
            arguments = arguments_of(layout, 4) | {"sequence_store": store}
            return outcome(hf.fit, MODELS["grouped"], x, y, False, **arguments)

        stores = ("memory", "host", str(tmp_path), "bf16")
        memory, host, folder, rounded = (train(store) for store in stores)
        require_none(host.compare(memory, 0), "beside a GPU")
        require_none(folder.compare(memory, 0), "on disk")
        assert memory.compare(rounded, 1e-6), "nothing was rounded"
        assert np.allclose(memory.history["loss"], rounded.history["loss"], rtol=0.02)


@pytest.mark.on_ranks(1)
def test_chunks_that_are_chosen() -> None:
    """As few as fit: here one, and the notice and predictions go by it."""
    layout = layouts(WORLD.size)[0]
    with float_type("float64"):
        x, y = data(MODELS["heads"](LENGTH))
        arguments = arguments_of(layout, 1) | {"num_sequence_chunks": "auto"}
        found = outcome(hf.fit, MODELS["heads"], x, y, **arguments)
        expected = on_leader(lambda: outcome(keras.Model.fit, MODELS["heads"], x, y))
        require_none(found.compare(expected, 1e-9), "auto")
        model = compiled(MODELS["heads"])
        predicted = hf.predict(model, x, verbose=0, **arguments)
        plain = on_leader(lambda: model.predict(x, verbose=0))
        require_none(differences("predictions", predicted, plain, 1e-9), "auto")


@pytest.mark.on_ranks(2)
def test_a_trace_of_shards(tmp_path: Any) -> None:
    if WORLD.size == 1:
        pytest.skip("one rank has no trace")
    path = WORLD.bcast(str(tmp_path / "trace.json"))
    with float_type("float32"):
        model = compiled(MODELS["heads"])
        x, y = data(model)
        layout = (1, WORLD.size, 1)
        hf.fit(model, x, y, batch_size=2, verbose=0, trace=path, **arguments_of(layout, 2))
    if WORLD.rank == 0:
        trace = Trace.load(path)
        assert [rank.name[-17:] for rank in trace.ranks] == [
            f"sequence shard {shard})" for shard in range(WORLD.size)
        ]
        assert trace.has_sums
        assert "sum" in str(describe(trace))
        # For each of two batches and chunks, in each attention layer.
        exchanges = [rank.sequences.exchanges for rank in trace.ranks]
        assert exchanges == [4 * 2 * 2 * ROWS // 2] * WORLD.size
        assert all(rank.sequences.bytes_sent > 0 for rank in trace.ranks)
        assert "to others; " in str(describe(trace))
