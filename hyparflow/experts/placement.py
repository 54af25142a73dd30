"""A placement of experts: which ranks hold each expert of each layer."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from hyparflow.experts.page import placement_page
from hyparflow.experts.placement_files import read_placement, write_placement
from hyparflow.experts.score import PlacementReport, PlacementScore, score_of
from hyparflow.experts.trace import RoutingTrace
from hyparflow.formats.argument_checks import count_of
from hyparflow.formats.records import Count, Number
from hyparflow.formats.text import Page, counted, shortened

__all__ = ["ExpertPlacement", "require_divisible"]

_Holders = Annotated[tuple[Number, ...], Meta(min_length=1)]
_Experts = Annotated[tuple[_Holders, ...], Meta(min_length=1)]


@dataclass(frozen=True, repr=False)
class ExpertPlacement:
    """Which ranks hold each expert of each layer.

    Made by `hyparflow.place_experts`; any other placement can be made by hand. It prints as a table
    of its scores.

    Args:
        ranks: Tuple of tuples of tuples of integers: for each layer and expert the ranks that hold
            it, in ascending order.
        num_ranks: Integer. The number of ranks.
        nodes: Integer. The number of nodes that they are on, as many on each.
        model: String. The name of the model.
        layers: Tuple of strings. The names of the layers; `"0"`, `"1"` and so on if not given.
        report: What `hyparflow.place_experts` found out about it, or `None`.

    Raises:
        ValueError: If ranks or layers do not fit each other.
    """

    ranks: Annotated[tuple[_Experts, ...], Meta(min_length=1)]
    num_ranks: Count
    nodes: Count = 1
    model: str = ""
    layers: tuple[str, ...] = ()
    report: PlacementReport | None = None

    def __post_init__(self) -> None:
        count_of("num_ranks", self.num_ranks)
        count_of("nodes", self.nodes)
        if not self.layers:
            object.__setattr__(self, "layers", tuple(map(str, range(len(self.ranks)))))
        if self.num_ranks % self.nodes:
            raise ValueError(
                "The ranks must be the same on every node. "
                f"Received: {self.num_ranks} ranks on {self.nodes} nodes"
            )
        _check_holders(self.ranks, self.num_ranks, self.layers)

    @classmethod
    def contiguous(
        cls, num_layers: int, num_experts: int, num_ranks: int, **names: Any
    ) -> ExpertPlacement:
        """The placement that needs no trace: experts in their order, as many on each rank.

        Args:
            num_layers: Integer. The number of layers with experts.
            num_experts: Integer. The number of experts of a layer, divisible by the ranks.
            num_ranks: Integer. The number of ranks.
            names: `nodes`, `model` and `layers` of the placement.
        """
        require_divisible(num_experts, num_ranks)
        ranks = np.repeat(np.arange(num_ranks), num_experts // num_ranks)
        return cls.of_array(np.tile(ranks, (num_layers, 1)), num_ranks, **names)

    @classmethod
    def random(
        cls, num_layers: int, num_experts: int, num_ranks: int, seed: int = 0, **names: Any
    ) -> ExpertPlacement:
        """Experts at random, as many on each rank. The arguments are those of `contiguous`."""
        require_divisible(num_experts, num_ranks)
        ranks = np.repeat(np.arange(num_ranks), num_experts // num_ranks)
        each = np.tile(ranks, (num_layers, 1))
        return cls.of_array(np.random.default_rng(seed).permuted(each, axis=1), num_ranks, **names)

    @classmethod
    def of_array(cls, ranks: np.ndarray, num_ranks: int, **names: Any) -> ExpertPlacement:
        """A placement that holds each expert once, from an array of ranks: layers x experts."""
        holders = tuple(tuple((rank,) for rank in row) for row in ranks.tolist())
        return cls(holders, num_ranks, **names)

    def as_contiguous(self) -> ExpertPlacement:
        """The contiguous placement of the same model on the same ranks."""
        return type(self).contiguous(
            *(self.num_layers, self.num_experts, self.num_ranks),
            nodes=self.nodes,
            model=self.model,
            layers=self.layers,
        )

    @property
    def num_layers(self) -> int:
        """Integer. The number of layers with experts."""
        return len(self.ranks)

    @property
    def num_experts(self) -> int:
        """Integer. The number of experts of a layer."""
        return len(self.ranks[0])

    @property
    def destinations(self) -> np.ndarray:
        """Array of integers, layers x experts x ranks: where a token on a rank goes for an expert.

        That is the rank itself if it holds the expert, else one of its node that does, else any.
        Where there are several, ranks choose different ones.
        """
        found = np.empty((self.num_layers, self.num_experts, self.num_ranks), np.int64)
        for layer, experts in enumerate(self.ranks):
            for expert, holders in enumerate(experts):
                found[layer, expert] = holders if len(holders) == 1 else self._nearest(holders)
        return found

    def _nearest(self, holders: tuple[int, ...]) -> list[int]:
        """For each rank the one of several holders that its tokens go to."""
        per_node = self.num_ranks // self.nodes
        found = []
        for rank in range(self.num_ranks):
            near = [holder for holder in holders if holder // per_node == rank // per_node]
            several = [rank] if rank in holders else near or holders
            found.append(several[rank % len(several)])
        return found

    def score(self, trace: RoutingTrace) -> PlacementScore:
        """What the tokens of a trace do under this placement: share of changes, loads, traffic.

        Args:
            trace: A `hyparflow.RoutingTrace` of the same model, of tokens that the placement was
                not learnt from.

        Raises:
            ValueError: If the trace is of another model.
        """
        self.require_fits(trace.num_layers, trace.num_experts, trace.model, trace.layers)
        return score_of(self.destinations, self.nodes, trace)

    def require_fits(
        self,
        num_layers: int,
        num_experts: int,
        model: str = "",
        layers: Sequence[str] = (),
        num_ranks: int | None = None,
    ) -> None:
        """Refuse the placement for a model or a number of ranks that it was not made for.

        Args:
            num_layers: Integer. The number of the model's layers with experts.
            num_experts: Integer. The number of experts of a layer.
            model: String. The name of the model; not compared if one of the two has none.
            layers: Sequence of strings. The names of the layers; not compared if there are none.
            num_ranks: Integer. The number of ranks, if it matters.

        Raises:
            ValueError: If any of them differs; it names both.
        """
        mine = (self.num_layers, self.num_experts, self.num_ranks)
        theirs = (num_layers, num_experts, self.num_ranks if num_ranks is None else num_ranks)
        other_name = bool(model and self.model and model != self.model)
        other_layers = bool(layers) and tuple(layers) != self.layers
        if mine == theirs and not other_name and not other_layers:
            return
        names = [_shape_text(self.model, *mine), _shape_text(model, *theirs)]
        if mine == theirs and other_layers:
            differing = next(
                pair for pair in zip(self.layers, layers, strict=True) if pair[0] != pair[1]
            )
            names = [
                f"{name}, with a layer {of!r}" for name, of in zip(names, differing, strict=True)
            ]
        raise ValueError(
            "A placement must be of the model and the number of ranks that it is used with. "
            f"Received: a placement for {names[0]}; it is to be used for {names[1]}. "
            "Make one by hyparflow.place_experts."
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the placement to a file, complete or not at all.

        Args:
            path: String or path. The file: a table of layers, experts and ranks, without the
                report, if it ends with `.csv`, else JSON.
        """
        write_placement(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExpertPlacement:
        """Read the placement that `save` wrote.

        Raises:
            ValueError: If the file holds no placement. The message names the field that is wrong.
        """
        return read_placement(path, cls)

    def page(self) -> Page:
        """The text of the placement: a head and a table of its scores."""
        return placement_page(self)

    def __str__(self) -> str:
        return self.page().plain()

    def __repr__(self) -> str:
        shape = self.num_layers, self.num_experts, self.num_ranks
        return f"<ExpertPlacement for {_shape_text(self.model, *shape)}>"

    def _repr_html_(self) -> str:
        """For notebooks, which would break the lines of the table."""
        return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(str(self))}</pre>'


def require_divisible(num_experts: int, num_ranks: int) -> None:
    """Refuse a number of ranks that cannot hold equally many experts.

    Raises:
        ValueError: if it is one; it names the nearest that can.
    """
    count_of("num_ranks", num_ranks)
    if num_experts % num_ranks:
        fits = max(n for n in range(1, num_ranks) if num_experts % n == 0)
        raise ValueError(
            "The experts of a layer must be divisible by the ranks. Received: "
            f"num_experts={num_experts} on num_ranks={num_ranks}. Use num_ranks={fits}."
        )


def _shape_text(model: str, num_layers: int, num_experts: int, num_ranks: int) -> str:
    """ "mixtral (32 layers of 8 experts) on 4 ranks"."""
    layers = counted(num_layers, "layer", "layers")
    experts = counted(num_experts, "expert", "experts")
    ranks = counted(num_ranks, "rank", "ranks")
    return f"{shortened(model)[1:-1] or 'a model'} ({layers} of {experts}) on {ranks}"


def _check_holders(
    ranks: tuple[tuple[tuple[int, ...], ...], ...], num_ranks: int, layers: tuple[str, ...]
) -> None:
    """Refuse holders that are no ranks, and layers that differ in their number of experts."""
    if not ranks or len(set(layers)) != len(ranks):
        raise ValueError(
            "A placement must have a layer, and a different name for each. Received: "
            f"{shortened(layers)} for {counted(len(ranks), 'layer', 'layers')}"
        )
    for name, experts in zip(layers, ranks, strict=True):
        if len(experts) != len(ranks[0]) or not experts:
            raise ValueError(
                "The layers of a placement must have equally many experts. Received: "
                f"{len(experts)} in layer {name!r}, {len(ranks[0])} in layer {layers[0]!r}"
            )
        for expert, holders in enumerate(experts):
            is_ascending = list(holders) == sorted(set(holders))
            if not holders or not is_ascending or holders[0] < 0 or holders[-1] >= num_ranks:
                raise ValueError(
                    f"An expert must be on ranks from 0 to {num_ranks - 1}, in ascending order. "
                    f"Received: {shortened(holders)} for expert {expert} of layer {name!r}"
                )
