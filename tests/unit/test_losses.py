"""The parts of a batch's loss add up to the whole, for every reduction, mask and weight."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from hyparflow.engine.batch import microbatch_rows, slice_rows  # noqa: E402
from hyparflow.engine.loss.terms import LossTerms  # noqa: E402
from hyparflow.model.keras_internals.compiled import build_compiled, compile_loss, symbolic_batch  # noqa: E402
from hyparflow.model.keras_internals.layers import set_mask  # noqa: E402
from hyparflow.pipeline.grid import Grid  # noqa: E402
from hyparflow.training.data.array_source import specs  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")

ROWS, STEPS, CLASSES = 7, 4, 3
SPLITS = [(1, 3), (2, 2), (9, 1)]  # (replicas, micro-batches)


class OwnMask(keras.losses.Loss):  # type: ignore[misc, name-defined]
    """A user's class that masks where the label is negative."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        values = keras.ops.mean(keras.ops.square(y_pred - y_true), axis=-1)
        set_mask(values, keras.ops.all(y_true >= -0.5, axis=-1))
        return values


def own_function(y_true: Any, y_pred: Any) -> Any:
    """A user's function."""
    return keras.ops.mean(keras.ops.abs(y_pred - y_true) ** 1.5, axis=-1)


def model_for(loss: Any, **compile_arguments: Any) -> Any:
    """A model with outputs (STEPS, CLASSES), compiled with `loss`."""
    inputs = keras.Input((STEPS, 2))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, name="a")(inputs))
    model.compile("sgd", loss, **compile_arguments)
    return model


def terms_of(model: Any, x: Any, y: Any, sample_weight: Any, masked: bool = False) -> LossTerms:
    """The additive losses, built as `hyparflow.engine.assembly` does it."""
    symbolic = symbolic_batch(model, specs((x, y, sample_weight)))
    build_compiled(model, symbolic)
    return LossTerms(model, masked, symbolic)


def parts(rows: int, replicas: int, microbatches: int) -> list[tuple[int, int]]:
    """The micro-batches of all replicas, as rows of a global batch of `rows` rows."""
    grid = Grid(1, replicas)
    return [
        part
        for replica in range(replicas)
        for part in microbatch_rows(rows, grid, replica, microbatches)
    ]


def outputs(y_pred: Any, mask: Any, start: int, stop: int) -> Any:
    """Rows of the model's outputs, with their mask."""

    def rows(x: Any) -> Any:
        tensor = keras.ops.convert_to_tensor(x[start:stop])
        if mask is not None:
            set_mask(tensor, keras.ops.convert_to_tensor(mask[start:stop]))
        return tensor

    return keras.tree.map_structure(rows, y_pred)


def sum_of_parts(
    terms: LossTerms, split: tuple[int, int], y: Any, y_pred: Any, sample_weight: Any, mask: Any
) -> float:
    """The loss as the last partitions of all replicas add it up."""
    whole = None
    rows = len(keras.tree.flatten(y_pred)[0])
    if terms.need_weights:
        whole = np.asarray(terms.weights(y, outputs(y_pred, mask, 0, rows), sample_weight))
    total = 0.0
    for start, stop in parts(rows, *split):
        batch = (
            slice_rows(y, start, stop),
            outputs(y_pred, mask, start, stop),
            slice_rows(sample_weight, start, stop),
        )
        part = np.asarray(terms.weights(*batch)) if terms.need_weights else None
        share = (stop - start) / rows
        factors = terms.factors(stop - start, rows, part, whole)
        scale = [keras.ops.convert_to_tensor(value, "float64") for value in (share, factors)]
        total += share * float(terms.value(*batch, *scale))
    return total


REDUCTIONS = ("sum", "sum_over_batch_size", "mean_with_sample_weight")
LOSSES: dict[str, Callable[[str], Any]] = {
    "mse": lambda reduction: keras.losses.MeanSquaredError(reduction=reduction),
    "own class": lambda reduction: OwnMask(reduction=reduction),
    "crossentropy": lambda reduction: keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    ),
    "ignore_class": lambda reduction: keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=0, reduction=reduction
    ),
}


def arrays(seed: int, sparse: bool) -> tuple[Any, Any, Any]:
    """(x, y, y_pred)"""
    rng = np.random.default_rng(seed)
    x, y_pred = rng.normal(size=(ROWS, STEPS, 2)), rng.normal(size=(ROWS, STEPS, CLASSES))
    y = rng.integers(0, CLASSES, (ROWS, STEPS)) if sparse else rng.normal(size=y_pred.shape)
    return x, y, y_pred


def weights_of(kind: str) -> Any:
    """Sample weights: one per row, one per step, or none."""
    rng = np.random.default_rng(5)
    if kind == "rows":
        return rng.random((ROWS, 1))
    return rng.random((ROWS, STEPS)) if kind == "steps" else None


def step_mask() -> Any:
    """A mask with whole rows and single steps left out."""
    mask = np.random.default_rng(6).random((ROWS, STEPS)) < 0.6
    mask[[0, 1, 5]] = False
    return mask


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("weights", ["none", "rows", "steps"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_parts_add_up(name: str, reduction: str, weights: str, masked: bool) -> None:
    model = model_for(LOSSES[name](reduction))
    x, y, y_pred = arrays(1, sparse=name in ("crossentropy", "ignore_class"))
    sample_weight, mask = weights_of(weights), step_mask() if masked else None
    terms = terms_of(model, x, y, sample_weight, masked)
    whole = outputs(y_pred, mask, 0, ROWS)
    expected = float(model.compute_loss(x=None, y=y, y_pred=whole, sample_weight=sample_weight))
    for split in SPLITS:
        actual = sum_of_parts(terms, split, y, y_pred, sample_weight, mask)
        assert actual == pytest.approx(expected, rel=1e-12), split


@pytest.mark.parametrize("loss", ["mse", "mae", own_function], ids=["mse", "mae", "function"])
@pytest.mark.parametrize("weights", ["none", "rows"])
def test_losses_by_name_and_functions(loss: Any, weights: str) -> None:
    model = model_for(loss)
    x, y, y_pred = arrays(2, sparse=False)
    sample_weight = weights_of(weights)
    terms = terms_of(model, x, y, sample_weight)
    expected = float(model.compute_loss(x=None, y=y, y_pred=y_pred, sample_weight=sample_weight))
    for split in SPLITS:
        actual = sum_of_parts(terms, split, y, y_pred, sample_weight, None)
        assert actual == pytest.approx(expected, rel=1e-12), split


def ignoring_function(y_true: Any, y_pred: Any) -> Any:
    """A user's function that masks what it returns."""
    return keras.losses.sparse_categorical_crossentropy(
        y_true, y_pred, from_logits=True, ignore_class=0
    )


@pytest.mark.parametrize(
    "loss",
    [
        ignoring_function,
        functools.partial(
            keras.losses.sparse_categorical_crossentropy, from_logits=True, ignore_class=0
        ),
    ],
    ids=["function", "partial"],
)
def test_functions_that_mask(loss: Any) -> None:
    model = model_for(loss)
    x, y, y_pred = arrays(1, sparse=True)
    terms = terms_of(model, x, y, None)
    expected = float(model.compute_loss(x=None, y=y, y_pred=y_pred))
    for split in SPLITS:
        actual = sum_of_parts(terms, split, y, y_pred, None, None)
        assert actual == pytest.approx(expected, rel=1e-12), split


def test_nothing_counts() -> None:
    """All labels ignored: the loss is 0, not NaN."""
    model = model_for(LOSSES["ignore_class"]("mean"))
    x, y, y_pred = arrays(1, sparse=True)
    y = np.zeros_like(y)
    terms = terms_of(model, x, y, None)
    for split in SPLITS:
        assert sum_of_parts(terms, split, y, y_pred, None, None) == 0.0


def test_when_weights_are_needed() -> None:
    """The usual loss costs nothing; a mask makes even it depend on the data."""
    x, y, _ = arrays(1, sparse=True)
    by_name = terms_of(model_for("sparse_categorical_crossentropy"), x, y, None)
    assert not by_name.need_weights
    cases = {
        ("crossentropy", "mean", False): False,
        ("crossentropy", "mean", True): True,
        ("crossentropy", "sum", False): False,
        ("crossentropy", "sum", True): False,
        ("crossentropy", "mean_with_sample_weight", False): True,
        ("ignore_class", "mean", False): True,
    }
    for (name, reduction, masked), expected in cases.items():
        terms = terms_of(model_for(LOSSES[name](reduction)), x, y, None, masked)
        assert terms.need_weights == expected, (name, reduction, masked)


def test_losses_that_are_no_number_are_named() -> None:
    x, y, _ = arrays(1, sparse=True)
    for reduction, expected in (("none", 1), (None, 1), ("mean", 0), ("sum", 0)):
        loss = LOSSES["crossentropy"](reduction)  # type: ignore[arg-type]
        assert len(terms_of(model_for(loss), x, y, None).unreduced) == expected


# --- several outputs ---


def many_outputs() -> Any:
    """Three outputs with three reductions and three weights."""
    inputs = keras.Input((2,))
    model = keras.Model(
        inputs,
        {name: keras.layers.Dense(size, name=name)(inputs) for name, size in SIZES.items()},
    )
    model.compile(
        "sgd",
        {
            "first": keras.losses.MeanSquaredError(),
            "second": keras.losses.MeanAbsoluteError(reduction="sum"),
            "third": keras.losses.Huber(reduction="mean_with_sample_weight"),
        },
        loss_weights={"first": 0.7, "second": 0.1, "third": 3.0},
    )
    return model


SIZES = {"first": 3, "second": 1, "third": 2}


def many_arrays() -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(3)
    y, y_pred = ({k: rng.normal(size=(ROWS, n)) for k, n in SIZES.items()} for _ in range(2))
    return rng.normal(size=(ROWS, 2)), y, y_pred, {name: rng.random(ROWS) for name in SIZES}


def test_several_outputs() -> None:
    model = many_outputs()
    x, y, y_pred, sample_weight = many_arrays()
    terms = terms_of(model, x, y, sample_weight)
    expected = float(model.compute_loss(x=None, y=y, y_pred=y_pred, sample_weight=sample_weight))
    for split in SPLITS:
        actual = sum_of_parts(terms, split, y, y_pred, sample_weight, None)
        assert actual == pytest.approx(expected, rel=1e-12), split


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_each_output_s_loss_metric(split: tuple[int, int]) -> None:
    """After two batches the metrics "first_loss" and so on show what plain Keras shows.

    Keras weights a batch by its number of rows only where that is known while the step is traced,
    and then all batches have as many. So a smaller last batch counts as much as the others.
    """
    tf = pytest.importorskip("tensorflow")

    def results(model: Any) -> dict[str, float]:
        return {m.name: float(m.result()) for m in compile_loss(model).metrics}

    plain, model = many_outputs(), many_outputs()
    x, y, y_pred, sample_weight = many_arrays()
    symbolic = symbolic_batch(plain, specs((x, y, sample_weight)))
    build_compiled(plain, symbolic)
    terms = terms_of(model, x, y, sample_weight)
    for compiled in (plain, model):
        compiled.reset_metrics()
    step = tf.function(
        lambda y, y_pred, weights: plain.compute_loss(None, y, y_pred, weights),
        input_signature=keras.tree.map_structure(
            lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), (y, y_pred, sample_weight)
        ),
    )
    for rows in (ROWS, ROWS - 4):
        y, y_pred, sample_weight = slice_rows((y, y_pred, sample_weight), 0, rows)
        step(y, y_pred, sample_weight)
        sum_of_parts(terms, split, y, y_pred, sample_weight, None)
    expected = results(plain)
    assert len(expected) == 3 and all(expected.values())
    assert results(model) == pytest.approx(expected, rel=1e-12)
