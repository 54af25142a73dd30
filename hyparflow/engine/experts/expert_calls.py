"""What layers with experts compute while a stage is traced, beside what they compute alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.ordered_calls import OrderedCalls
from hyparflow.engine.experts.balance_sums import BalanceSums
from hyparflow.engine.experts.expert_shards import ExpertShards
from hyparflow.engine.experts.parallel_mixture import ParallelMixture
from hyparflow.engine.stages.stage_call import StageCall
from hyparflow.engine.weights.ownership import Ownership
from hyparflow.model.experts.balanced_layers import BalancedLayers
from hyparflow.model.experts.bank_proof import computes_alike
from hyparflow.model.experts.expert_banks import ExpertBank, is_bank
from hyparflow.model.experts.expert_layers import ExpertLayer, Mixture
from hyparflow.model.keras_internals.deferred_variables import is_absent
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.options import Options

__all__ = ["ExpertCalls", "exchanges_tokens"]


def exchanges_tokens(model: Any, options: Options) -> bool:
    """Whether replicas exchange tokens of experts, or counts of them, in the middle of a stage."""
    return options.expert_parallel or bool(BalancedLayers(all_layers(model)))


class ExpertCalls:
    """The layers with experts of a model, in calls of one rank's stages.

    Attributes:
        shards: which experts the rank has; None if it has all.
        aside: whether calls are trials, in which ranks exchange nothing.

    Args:
        model: the model.
        place: what this rank holds.
        order: calls exchanges in one order on all ranks.
        shards: see above.
        sparse: whether banks of experts compute those that were chosen, where they compute all.
    """

    def __init__(
        self,
        model: Any,
        place: Ownership,
        order: OrderedCalls,
        shards: ExpertShards | None,
        sparse: bool,
    ) -> None:
        self.shards, self.aside = shards, False
        self._peers = place.peers
        self._balanced = BalancedLayers(all_layers(model))
        self._sums = BalanceSums(place.peers, order)
        self._mixtures = [] if shards is None else self._parallel(shards, order)
        self._banks = proved_banks(model, place) if sparse and shards is None else []

    @property
    def exchanges(self) -> bool:
        """Whether replicas exchange something in the middle of a stage."""
        return self._peers.size > 1 and bool(self._balanced or self._mixtures)

    @property
    def num_sparse(self) -> int:
        """How many layers compute the experts that were chosen, in place of all."""
        return len(self._banks)

    @property
    def stand_ins(self) -> frozenset[str]:
        """The commands in which replicas without rows must take part in exchanges."""
        if self._peers.size == 1:
            return frozenset()
        always = {"test", "predict"} if self._mixtures else set[str]()
        return frozenset(always | ({"train"} if self.exchanges else set()))

    def local(self, variable: Any) -> Any:
        """What this rank has of a variable: rows of its experts, or the variable itself."""
        return variable if self.shards is None else self.shards.local(variable)

    def around(self, body: StageCall) -> StageCall:
        """`body`, with what its layers leave to this object."""
        if not self._balanced and not self._mixtures and not self._banks:
            return body

        def watched(values: Any, training: bool, share: Any) -> tuple[list[Any], list[Any]]:
            self._sums.share = share
            with self._installed():
                return body(values, training, share)

        return watched

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if not self.aside:
                stack.enter_context(self._balanced.computed_by(self._sums))
            for bank in self._banks:
                stack.enter_context(bank.sparse())
            for layer, mixture in self._mixtures:
                chosen = _nothing if self.aside else mixture
                stack.enter_context(layer.computed_by(chosen))
            yield

    def _parallel(
        self, shards: ExpertShards, order: OrderedCalls
    ) -> list[tuple[ExpertLayer, Mixture]]:
        found: list[tuple[ExpertLayer, Mixture]] = []
        for one in shards.layers:
            mine = [shards.local(weight) for weight in one.weights]
            weights = [functools.partial(tf.convert_to_tensor, weight) for weight in mine]
            rank_of = shards.rank_of[id(one.layer)]
            found.append((one, ParallelMixture(self._peers, rank_of, weights, order)))
        return found


def proved_banks(model: Any, place: Ownership) -> list[ExpertBank]:
    """A rank's banks of experts that compute the same by the experts that were chosen."""
    known = [ExpertBank(layer) for layer in all_layers(model) if is_bank(layer)]
    holders = [place.holders.get(id(bank.weights[0]), (0,)) for bank in known]
    banks = [b for b, who in zip(known, holders, strict=True) if place.partition in who]
    present = [bank for bank in banks if not any(map(is_absent, bank.weights))]
    kinds = {type(bank.layer): bank for bank in present}  # one of each class speaks for others
    proved = {kind for kind, bank in kinds.items() if computes_alike(bank)}
    return [bank for bank in banks if type(bank.layer) in proved]


def _nothing(rows: Any, routing: Any, expert: Any) -> Any:
    """In place of experts, in a trial."""
    return tf.zeros_like(rows) * tf.reduce_sum(routing)
