"""The layers of a model that are mixtures of experts, hyparflow's own and other libraries'."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from hyparflow.model.experts.expert_banks import ExpertBank, is_bank
from hyparflow.model.experts.mixture_of_experts import MixtureOfExperts
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.keras_internals.patched import patched

__all__ = ["ExpertLayer", "Mixture", "expert_layers", "experts_of_token"]

# What layers that choose experts call the number of these.
_TOP_K = ("top_k", "num_experts_per_token", "num_experts_per_tok")

# (rows (tokens, width), routing (experts, tokens), what one expert computes) -> rows. See
# `hyparflow.model.experts.sparse_mixture.mixed`, which takes the experts' weights as well.
Mixture = Callable[[Any, Any, Any], Any]


class ExpertLayer(Protocol):
    """A layer whose weights are those of several experts.

    Attributes:
        layer: the layer.
        num_experts: how many experts it has.
        weights: its variables whose first axis counts experts, in the order in which an expert
            takes them.
    """

    @property
    def layer(self) -> Any: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def weights(self) -> Sequence[Any]: ...

    def computed_by(self, mixture: Mixture) -> contextlib.AbstractContextManager[None]:
        """While open, calls of the layer leave its experts to `mixture`."""


class OwnExperts:
    """A `MixtureOfExperts` as an `ExpertLayer`.

    Args:
        layer: built.
    """

    def __init__(self, layer: MixtureOfExperts) -> None:
        self.layer = layer

    @property
    def num_experts(self) -> int:
        """See `ExpertLayer`."""
        return self.layer.num_experts

    @property
    def weights(self) -> Sequence[Any]:
        """See `ExpertLayer`."""
        return list(self.layer.expert_weights)

    @contextlib.contextmanager
    def computed_by(self, mixture: Mixture) -> Iterator[None]:
        """See `ExpertLayer`."""
        with patched(self.layer, _mixed=mixture):
            yield


def expert_layers(layers: Sequence[Any]) -> list[ExpertLayer]:
    """Those of some layers that are mixtures of experts.

    Args:
        layers: built, also those inside others.
    """
    found: list[ExpertLayer] = []
    for layer in layers:
        if isinstance(layer, MixtureOfExperts):
            found.append(OwnExperts(layer))
        elif is_bank(layer):
            found.append(ExpertBank(layer))
    return found


def experts_of_token(one: ExpertLayer, layers: Sequence[Any]) -> int:
    """To how many experts of a layer a token goes, at most; all, if nothing says so.

    Args:
        one: the layer.
        layers: of its model, built, also those inside others.
    """
    around = [x for x in layers if any(y is one.layer for y in all_layers(x))]
    found = [getattr(x, name) for x in around for name in _TOP_K if hasattr(x, name)]
    counts = [count for count in found if isinstance(count, int)]
    return min([one.num_experts, *counts])
