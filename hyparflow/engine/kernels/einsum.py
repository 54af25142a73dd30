"""Einstein's sums of two tensors, by transposed tensors and a batched product.

Attention multiplies queries with keys, and what follows with values, in sums such as
"BTNH,BSNH->BNTS". TensorFlow's operation for them transposes and multiplies by slower kernels.

Proof: letters in both tensors and in the result count matrices; one that only the first tensor and
the result have counts the rows of a matrix, one of the second and the result its columns; the sum
is over the letter that the result lacks. That is a product of matrices, once these letters come
last.

Gain: see `hyparflow.engine.kernels.products`, which multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from hyparflow.engine.kernels.number_types import is_fast
from hyparflow.engine.kernels.products import batched_product
from hyparflow.engine.kernels.rewrite import Rewrite
from hyparflow.engine.kernels.traced import TracedOperations

__all__ = ["NAME", "find"]

NAME = "einsum"


class _Product(NamedTuple):
    """A sum as a batched product: the letters of both tensors and of the result, in this order."""

    given: tuple[str, str]
    first: str
    second: str
    made: str
    wanted: str
    adj_x: bool
    adj_y: bool


def find(traced: TracedOperations) -> Iterator[Rewrite]:
    """The sums that are products of matrices."""
    for operation in traced.operations:
        if operation.type == "Einsum" and is_fast(*operation.inputs):
            product = _product(operation.get_attr("equation").decode())
            if product is not None:
                yield _rewrite(operation, product)


def _product(equation: str) -> _Product | None:
    given, _, wanted = equation.partition("->")
    terms = given.split(",")
    if len(terms) != 2 or not all(_is_plain(term) for term in (*terms, wanted)):
        return None
    x, y = terms
    batch = "".join(c for c in wanted if c in x and c in y)
    summed = [c for c in x if c in y and c not in wanted]
    rows = [c for c in x if c not in y]
    columns = [c for c in y if c not in x]
    if not batch or [len(summed), len(rows), len(columns)] != [1, 1, 1]:
        return None
    if not (rows[0] in wanted and columns[0] in wanted):
        return None
    left, right, inner = rows[0], columns[0], summed[0]
    adj_x, adj_y = x == batch + inner + left, y != batch + inner + right
    return _Product(
        given=(x, y),
        first=x if adj_x else batch + left + inner,
        second=batch + right + inner if adj_y else y,
        made=batch + left + right,
        wanted=wanted,
        adj_x=adj_x,
        adj_y=adj_y,
    )


def _is_plain(term: str) -> bool:
    return term.isalpha() and len(set(term)) == len(term)


def _rewrite(operation: Any, product: _Product) -> Rewrite:
    def kernel(x: Any, y: Any) -> list[Any]:
        first = _transposed(x, product.given[0], product.first)
        second = _transposed(y, product.given[1], product.second)
        made = batched_product(first, second, product.adj_x, product.adj_y)
        return [_transposed(made, product.made, product.wanted)]

    sizes: dict[str, int] = {}
    return Rewrite(
        variant=(operation.inputs[0].dtype, product),
        inputs=list(operation.inputs),
        replaced=list(operation.outputs),
        kernel=kernel,
        operations=frozenset([operation]),
        trial=[
            [sizes.setdefault(letter, 3 + len(sizes)) for letter in term] for term in product.given
        ],
    )


def _transposed(tensor: Any, letters: str, wanted: str) -> Any:
    if letters == wanted:
        return tensor
    return tf.transpose(tensor, [letters.index(letter) for letter in wanted])
