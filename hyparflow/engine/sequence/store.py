"""Where tensors lie between their forward and their backward: in memory, rounded, or on disk.

Tensors are put under keys, and taken back once. A store in memory copies them into arrays of its
own, but for the first of a step: many long-lived tensors would keep TensorFlow's pool from giving
back what lies between them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.shared_memory import aligned_copy, as_tensor

__all__ = ["DeviceStore", "MemoryStore", "RoundedStore", "Store", "StoreCounts"]

Tensors = tuple[Any, ...]
_FEW = 1 << 25  # bytes that are kept as they are


@dataclass
class StoreCounts:
    """What a store did.

    Attributes:
        bytes_in, bytes_out: that were put and got.
        stalls: seconds that somebody waited for a disk.
        now, peak: bytes that are kept, and the most there were.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    stalls: float = 0.0
    now: int = 0
    peak: int = 0

    def put(self, size: int) -> None:
        """Count tensors that are put."""
        self.bytes_in += size
        self.now += size
        self.peak = max(self.peak, self.now)

    def got(self, size: int) -> None:
        """Count tensors that are got."""
        self.bytes_out += size

    def dropped(self, size: int) -> None:
        """Count tensors that are dropped."""
        self.now -= size


class Store(ABC):
    """Keeps tensors by keys.

    Attributes:
        counts: what it did so far.
    """

    def __init__(self) -> None:
        self.counts = StoreCounts()

    @abstractmethod
    def put(self, key: Hashable, tensors: Sequence[Any]) -> None:
        """Keep tensors under a key that holds nothing."""

    @abstractmethod
    def get(self, key: Hashable) -> Tensors:
        """The tensors under a key, which keeps them."""

    @abstractmethod
    def drop(self, key: Hashable) -> None:
        """Keep the tensors under a key no longer."""

    @abstractmethod
    def has(self, key: Hashable) -> bool:
        """Whether a key holds tensors."""

    def take(self, key: Hashable) -> Tensors:
        """The tensors under a key, which then holds nothing."""
        tensors = self.get(key)
        self.drop(key)
        return tensors

    def prefetch(self, *keys: Hashable) -> None:  # noqa: B027 - most stores need not know
        """Tell that these keys are asked for next, if they hold anything."""

    @abstractmethod
    def clear(self) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Give back what the store holds."""
        self.clear()


class MemoryStore(Store):
    """Keeps tensors in the memory of this process: on a GPU's host."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[Hashable, list[Any]] = {}

    def _own(self, tensor: Any) -> Any:
        """What is kept of a tensor."""
        is_tensor = isinstance(tensor, tf.Tensor)
        return tensor if is_tensor and self.counts.now < _FEW else aligned_copy(tensor)

    @staticmethod
    def _given(kept: Any) -> Any:
        """The tensor of what is kept."""
        return as_tensor(kept) if isinstance(kept, np.ndarray) else kept

    def put(self, key: Hashable, tensors: Sequence[Any]) -> None:
        """See `Store.put`."""
        self._kept[key] = [self._own(x) for x in tensors]
        self.counts.put(_size(self._kept[key]))

    def get(self, key: Hashable) -> Tensors:
        """See `Store.get`."""
        self.counts.got(_size(self._kept[key]))
        return tuple(map(self._given, self._kept[key]))

    def drop(self, key: Hashable) -> None:
        """See `Store.drop`."""
        self.counts.dropped(_size(self._kept.pop(key)))

    def has(self, key: Hashable) -> bool:
        """See `Store.has`."""
        return key in self._kept

    def clear(self) -> None:
        """See `Store.clear`."""
        self._kept.clear()
        self.counts.now = 0


class DeviceStore(MemoryStore):
    """Keeps tensors where they are: in the memory of a GPU."""

    def _own(self, tensor: Any) -> Any:
        return tf.convert_to_tensor(tensor)


class RoundedStore(MemoryStore):
    """Keeps floating-point tensors rounded to bfloat16: half of the memory, and other numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._types: dict[Hashable, list[Any]] = {}

    def put(self, key: Hashable, tensors: Sequence[Any]) -> None:
        """See `Store.put`."""
        tensors = [tf.convert_to_tensor(x) for x in tensors]
        self._types[key] = [x.dtype for x in tensors]
        super().put(key, [tf.cast(x, tf.bfloat16) if x.dtype.is_floating else x for x in tensors])

    def get(self, key: Hashable) -> Tensors:
        """See `Store.get`."""
        kept = zip(super().get(key), self._types[key], strict=True)
        return tuple(tf.cast(x, dtype) for x, dtype in kept)


def _size(kept: Sequence[Any]) -> int:
    """Bytes of arrays or tensors."""
    return sum(math.prod(x.shape) * tf.as_dtype(x.dtype).size for x in kept)
