"""Writes down which experts the tokens of a model visit, while the model is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.experts.trace import RoutingTrace
from hyparflow.model.experts.expert_banks import ExpertBank, is_bank
from hyparflow.model.experts.mixture_of_experts import MixtureOfExperts
from hyparflow.model.keras_internals.patched import patched

__all__ = ["RoutingRecorder", "names_of_layers", "routed_layers"]


def routed_layers(layers: Sequence[Any]) -> list[Any]:
    """Those of some layers that send tokens to experts in a way that is known."""
    return [layer for layer in layers if isinstance(layer, MixtureOfExperts) or is_bank(layer)]


def names_of_layers(layers: Sequence[Any]) -> list[str]:
    """Names that tell layers with experts apart, as short as they can be.

    They are beginnings of the layers' paths: further in, Keras numbers layers by how many of a
    class were made before, which differs for the same model made again.
    """
    parts = [layer.path.split("/") for layer in layers]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[:depth]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(number) for number in range(len(layers))]


@dataclass
class _Visit:
    """What one layer has done with the tokens of one call.

    Attributes:
        experts: (tokens, top_k), the one with the largest share first.
        counts: (tokens,): how many of them have a share.
        is_finite: (tokens,): whether all shares are numbers.
        mask: (tokens,): whether a token counts; None if all do.
    """

    experts: np.ndarray
    counts: np.ndarray
    is_finite: np.ndarray
    mask: np.ndarray | None = None


@dataclass
class RoutingRecorder:
    """Keeps the choices of the routers of a model, call by call.

    Args:
        layers: those with experts; see `routed_layers`.
        names: of the layers.

    While `observing` is open, call the model once, then `keep` what it has done. The order of the
    layers is that of their calls.
    """

    layers: Sequence[Any]
    names: Sequence[str]
    _visits: dict[int, _Visit] = field(default_factory=dict)
    _kept: list[np.ndarray] = field(default_factory=list)  # tokens x layers x top_k of each call
    _order: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """While open, calls of the layers are noted; KerasHub's compute few experts."""
        with contextlib.ExitStack() as stack:
            for number, layer in enumerate(self.layers):
                if is_bank(layer):
                    bank = ExpertBank(layer)
                    note = self._noting_shares(number, bank.whole)
                    stack.enter_context(bank.computed_by(note))
                else:
                    note = self._noting_calls(number, layer, layer.call)
                    stack.enter_context(patched(layer, call=note))
            yield

    def _noting_shares(self, number: int, mixed: Callable[..., Any]) -> Callable[..., Any]:
        """In place of `ExpertBank.whole`."""

        def noted(rows: Any, routing: Any, expert: Any) -> Any:
            shares = self._values(number, tf.cast(routing, tf.float32)).T
            is_finite = np.isfinite(shares).all(axis=1)
            counts = np.count_nonzero(shares, axis=1) * is_finite
            order = np.argsort(-shares, axis=1, kind="stable")[:, : max(1, counts.max(initial=0))]
            self._add(number, _Visit(order, counts, is_finite))
            return mixed(rows, routing, expert)

        return noted

    def _noting_calls(
        self, number: int, layer: MixtureOfExperts, call: Callable[..., Any]
    ) -> Callable[..., Any]:
        """In place of `MixtureOfExperts.call`."""

        def noted(inputs: Any, mask: Any = None, training: bool = False) -> Any:
            _, shares, chosen = layer.route(tf.reshape(inputs, [-1, inputs.shape[-1]]))
            experts = self._values(number, tf.argmax(chosen, axis=-1))
            finite = np.isfinite(self._values(number, shares)).all(axis=1)
            kept = None if mask is None else self._values(number, tf.reshape(mask, [-1]))
            counts = np.full(len(experts), layer.top_k)
            self._add(number, _Visit(experts, counts, finite, kept))
            return call(inputs, mask=mask, training=training)

        return noted

    def _values(self, number: int, tensor: Any) -> np.ndarray:
        if tf.is_symbolic_tensor(tensor):
            raise ValueError(
                "Routing is recorded where layers are called one after another, without a "
                f"`tf.function`. Received: layer '{self.names[number]}', which is called inside "
                "one. Leave the `tf.function` out of the model's own code."
            )
        return np.asarray(tensor)

    def _add(self, number: int, visit: _Visit) -> None:
        if number in self._visits:
            raise ValueError(
                "A layer with experts must be called once for a token. "
                f"Received: layer '{self.names[number]}', which the model calls several times."
            )
        self._visits[number] = visit

    def keep(self, padding_mask: Any = None) -> None:
        """Add the tokens of the call that was observed.

        Args:
            padding_mask: an array with one entry for each token, which is zero for those that do
                not count; None if the masks of layers tell all.

        Raises:
            ValueError: if layers differ in what they have seen, or something is no number.
        """
        visits, self._visits = self._visits, {}
        self._order = self._order or list(visits)
        if list(visits) != self._order or not visits:
            raise ValueError(
                "A model must call the same layers with experts for all tokens. Received: "
                f"{self._named(visits)}, and for other tokens {self._named(self._order)}."
            )
        is_token = self._is_token(visits, padding_mask)
        for number, visit in visits.items():
            self._check(number, visit, is_token)
        widths = {visit.experts.shape[1]: number for number, visit in visits.items()}
        if is_token.any():
            self._require_alike("experts of a token", widths)
            experts = [visit.experts[is_token] for visit in visits.values()]
            self._kept.append(np.stack(experts, axis=1).astype(np.uint16))

    def _is_token(self, visits: dict[int, _Visit], padding_mask: Any) -> np.ndarray:
        """Which rows of the layers are tokens that count."""
        sizes = {len(visit.experts): number for number, visit in visits.items()}
        self._require_alike("tokens in a call", sizes)
        (size,) = sizes
        masks = [visit.mask for visit in visits.values() if visit.mask is not None]
        if padding_mask is not None:
            given = np.asarray(padding_mask).reshape(-1)
            if len(given) != size:
                raise ValueError(
                    "The input `padding_mask` must have an entry for each token of a layer with "
                    f"experts. Received: {len(given)} entries for {size} tokens in layer "
                    f"'{self.names[next(iter(visits))]}'."
                )
            masks.append(given)
        return np.all([np.ones(size, bool), *(mask.astype(bool) for mask in masks)], axis=0)

    def _check(self, number: int, visit: _Visit, is_token: np.ndarray) -> None:
        done = sum(len(kept) for kept in self._kept)
        if (bad := is_token & ~visit.is_finite).any():
            raise ValueError(
                "The shares that a router gives to experts must be finite. Received: NaN or "
                f"infinity in layer '{self.names[number]}' for token "
                f"{done + int(is_token[: bad.argmax()].sum())}. Look at the model's weights and "
                "inputs: one of them is no number, or too large."
            )
        width = visit.experts.shape[1]
        if (few := is_token & (visit.counts != width)).any():
            raise ValueError(
                "A token must have equally many experts with a share above 0. Received: "
                f"{visit.counts[few.argmax()]} instead of {width} in layer '{self.names[number]}' "
                f"for token {done + int(is_token[: few.argmax()].sum())}. Use a dtype in which "
                "small shares are not rounded to 0."
            )

    def _require_alike(self, what: str, found: dict[int, int]) -> None:
        """Refuse layers that differ in a count."""
        if len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            raise ValueError(
                f"The layers with experts of a model must be alike to be traced, in {what}, too. "
                f"Received: {first} in layer '{self.names[one]}', {second} in layer "
                f"'{self.names[other]}'."
            )

    def _named(self, numbers: Any) -> str:
        return ", ".join(f"'{self.names[number]}'" for number in numbers) or "none"

    def trace(self, model: str) -> RoutingTrace:
        """All tokens that were kept.

        Args:
            model: the name of the model.

        Raises:
            ValueError: if there is none, or calls differ.
        """
        if not self._kept:
            raise ValueError(
                "A routing trace must have a token that no mask leaves out. Received: inputs "
                "without one. Pass tokens, or a mask that leaves some."
            )
        widths = {kept.shape[2]: self._order[0] for kept in self._kept}
        self._require_alike("experts of a token", widths)
        sizes = {self.layers[number].num_experts: number for number in self._order}
        self._require_alike("number of experts", sizes)
        names = tuple(self.names[number] for number in self._order)
        return RoutingTrace(np.concatenate(self._kept), next(iter(sizes)), model, names)
