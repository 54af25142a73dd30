"""The axes of the products of layers, as letters of their equations."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["ProductLetters"]

_DENSE = "ab,bc->ac"  # the last axes of a Dense layer


class ProductLetters(NamedTuple):
    """The axes of inputs, kernel and outputs of a `Dense` or `EinsumDense` layer."""

    inputs: str
    kernel: str
    outputs: str

    @classmethod
    def of(cls, layer: Any) -> ProductLetters:
        """Those of a layer."""
        equation = getattr(layer, "equation", _DENSE)
        given, outputs = equation.replace("...", "").split("->")
        inputs, kernel = given.split(",")
        return cls(inputs, kernel, outputs)

    @property
    def summed_first(self) -> int | None:
        """How many axes of the kernel are summed over, if these are its first; else None."""
        summed = [letter not in self.outputs for letter in self.kernel]
        count = sum(summed)
        return count if all(summed[:count]) else None
