"""Checks that layers can be called with parts of a batch; errors are the same on every rank."""

from __future__ import annotations

from hyparflow.engine.trials.row_findings import RowFindings

__all__ = ["require_means", "require_rows", "require_sums"]


def require_sums(names: list[str], found: RowFindings) -> None:
    """Check that what layers add to the loss, and their metrics, add up over parts of a batch.

    Args:
        names: layers that are not Keras's.
        found: what they do.

    Raises:
        ValueError: if something does not add up.
    """
    if found.added:
        raise ValueError(
            "What a layer adds by `add_loss` must be a mean or a sum over the rows of a batch, or "
            "one value per row, so that it adds up over the parts of a batch. Received: another "
            f"number, from the layers {found.added}. Let no row's value depend on other rows, or "
            "train with one replica and num_microbatches=1 (strategy='model')."
        )
    if found.metrics:
        raise ValueError(
            "A metric of a layer must keep sums and counts of rows, or be a Mean, so that it adds "
            f"up over the parts of a batch. Received: metrics {found.metrics}, from among {names}. "
            "Change them so, or train with one replica and num_microbatches=1 (strategy='model')."
        )


def require_rows(names: list[str], found: RowFindings, rows: int | None, parts: str) -> None:
    """Check that the model can be called with a part of the rows of a batch.

    Args:
        names: layers that are not Keras's.
        found: what they do.
        rows: of a global batch.
        parts: how the batch is parted, in words.

    Raises:
        ValueError: naming the layer that cannot be called so.
    """
    if found.fixed is None:
        return
    layer = f"layer '{found.failed}'" if found.failed else f"a layer or operation, among {names},"
    raise ValueError(
        "A layer must take any number of rows, for each part of a batch has some of them. "
        f"Received: {layer} that takes {rows} rows of a batch, but not {found.fixed} of these "
        f"{rows}, which a part has ({parts}): {found.error}. Let its shapes follow the rows (-1 in "
        "a reshape, `ops.shape(x)[0]`), or train with one replica and num_microbatches=1 "
        "(strategy='model')."
    )


def require_means(found: RowFindings, layers: list[str]) -> None:
    """Check that no layer adds a sum over rows to a loss that the model's own code adds up.

    Args:
        found: what layers do.
        layers: the names of all layers, by number.

    Raises:
        ValueError: if one does.
    """
    if found.sums:
        names = list(dict.fromkeys(layers[number] for number, _ in found.sums))
        raise ValueError(
            "Where a model has its own `train_step`, `test_step` or `compute_loss`, what a layer "
            "adds by `add_loss` must be a mean over the rows of a batch. Received: a sum, or one "
            f"value per row, of the layers {names}. Take the mean, or train with one replica and "
            "num_microbatches=1 (strategy='model')."
        )
