"""Layers of other libraries that compute all experts for all tokens, made to compute few.

KerasHub's mixtures of experts keep the weights of all experts in one layer, a bank, which computes
every expert for every token; what they make is then multiplied by shares that are mostly zero. A
bank is known by its weights: the first axis of each counts experts. Its own code computes here,
too, for one expert at a time and for the tokens whose share of it is not zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from hyparflow.model.experts.expert_loop import Expert
from hyparflow.model.experts.sparse_mixture import mixed
from hyparflow.model.keras_internals.patched import patched

__all__ = ["ExpertBank", "ExpertBanks", "is_bank"]


class ExpertBanks:
    """The banks among some layers.

    Args:
        layers: built, also those inside others.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._banks = [ExpertBank(layer) for layer in layers if is_bank(layer)]

    def __len__(self) -> int:
        return len(self._banks)

    @contextlib.contextmanager
    def sparse(self) -> Iterator[None]:
        """While open, calls compute the experts alone that tokens were routed to."""
        with contextlib.ExitStack() as stack:
            for bank in self._banks:
                stack.enter_context(bank.sparse())
            yield


class ExpertBank:
    """One layer with the weights of all experts; see `ExpertLayer`.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._call = type(layer).call.__get__(layer)
        held = {id(v): name for name, v in vars(layer).items() if isinstance(v, keras.Variable)}
        self._names = [held[id(weight)] for weight in layer.weights]

    @property
    def num_experts(self) -> int:
        """See `ExpertLayer`."""
        return int(self.layer.num_experts)

    @property
    def weights(self) -> Sequence[Any]:
        """See `ExpertLayer`."""
        return list(self.layer.weights)

    def sparse(self) -> contextlib.AbstractContextManager[None]:
        """See `ExpertBanks.sparse`."""
        return self.computed_by(self.whole)

    def whole(self, rows: Any, routing: Any, expert: Expert) -> Any:
        """The mixture of all experts, by those that were chosen; see `ExpertLayer.computed_by`."""
        return mixed(rows, routing, list(map(tf.convert_to_tensor, self.weights)), expert)

    def computed_by(self, mixture: Any) -> contextlib.AbstractContextManager[None]:
        """See `ExpertLayer`."""

        def call(rows: Any, shares: Any = None) -> Any:
            """In place of the layer's own.

            Args:
                rows: tensor (tokens, width).
                shares: tensor (tokens, experts); None if what this returns is multiplied by them.
            """
            if shares is None:
                return _ToBeShared(lambda routing: mixture(rows, routing, self._expert(False)))
            return mixture(rows, tf.transpose(shares), self._expert(True))

        return patched(self.layer, call=call)

    def _expert(self, takes_shares: bool) -> Expert:
        """What one expert computes: the layer's own code, with its weights alone.

        Args:
            takes_shares: whether the layer's own call takes shares as well.
        """

        def expert(rows: Any, *own: Any) -> Any:
            ones = [tf.ones([tf.shape(rows)[0], 1], rows.dtype)] if takes_shares else []
            alone = dict(zip(self._names, own, strict=True))
            with patched(self.layer, num_experts=1, **alone), patched(keras.ops, einsum=_einsum):
                made = self._call(rows, *ones)
            return made if takes_shares else made[0]

        return expert


class _ToBeShared:
    """What a bank has made, to be multiplied by shares, (experts, tokens, 1), and added up."""

    def __init__(self, mixed: Callable[[Any], Any]) -> None:
        self._mixed = mixed

    def __mul__(self, shares: Any) -> Any:
        """The sum over experts; the axis of experts has one entry then."""
        return self._mixed(shares[..., 0])[None]


_EINSUM = keras.ops.einsum


def _einsum(equation: str, *operands: Any, **kwargs: Any) -> Any:
    """Keras's, of tensors of one expert: without the axis of experts.

    With it TensorFlow copies the weights of the expert into another order.
    """
    left, _, made = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    letter = parts[-1][:1]
    if not letter or made[:1] != letter or any(letter in part[1:] for part in parts):
        return _EINSUM(equation, *operands, **kwargs)
    one = [x[0] if part.startswith(letter) else x for part, x in zip(parts, operands, strict=True)]
    found = _EINSUM(
        f"{','.join(part.lstrip(letter) for part in parts)}->{made[1:]}", *one, **kwargs
    )
    return found[None]


def is_bank(layer: Any) -> bool:
    """Whether the first axis of each of a layer's own weights counts experts."""
    count = getattr(layer, "num_experts", None)
    weights = layer.weights if isinstance(layer, keras.Layer) else []
    kernels = [weight for weight in weights if len(weight.shape) == 3]
    own = {id(v) for v in vars(layer).values() if isinstance(v, keras.Variable)}
    return (
        isinstance(count, int)
        and len(kernels) > 1
        and all(id(weight) in own and tuple(weight.shape[:1]) == (count,) for weight in weights)
    )
