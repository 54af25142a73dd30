"""The vocabulary of schedules: computations, crossing tensors, and the steps of a lowered list."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

__all__ = [
    "BACKWARDS",
    "COMPUTATIONS",
    "NAMES",
    "RECEIVES",
    "SENDS",
    "Action",
    "Edge",
    "Kind",
    "Step",
]

_TEXT = re.compile(r"^(\d+)([A-Z]+)(\d+)$")


class Kind(str, Enum):
    """The kinds of a `Step`; an `Action` has one of the first four.

    Each equals its letters, which plans and traces use.
    """

    FORWARD = "F"
    BACKWARD = "B"
    INPUT_BACKWARD = "I"  # the part of a backward that gives the gradients of a stage's inputs
    WEIGHT_BACKWARD = "W"  # the rest of it: the gradients of the weights
    FUSED = "FB"  # forward and backward of the last stage as one call
    SEND_ACTIVATION = "SA"
    RECEIVE_ACTIVATION = "RA"
    SEND_GRADIENT = "SG"
    RECEIVE_GRADIENT = "RG"
    START_REDUCE = "START"  # begin to sum the gradients of a finished stage over replicas
    REDUCE = "REDUCE"  # sum gradients over replicas and over the holders of shared weights
    APPLY = "APPLY"  # the optimizer step

    __str__ = str.__str__
    __hash__ = str.__hash__  # type: ignore[assignment]


BACKWARDS = (Kind.BACKWARD, Kind.INPUT_BACKWARD)  # these take and give gradients of tensors
COMPUTATIONS = (Kind.FORWARD, *BACKWARDS, Kind.WEIGHT_BACKWARD, Kind.FUSED)
SENDS = (Kind.SEND_ACTIVATION, Kind.SEND_GRADIENT)
RECEIVES = (Kind.RECEIVE_ACTIVATION, Kind.RECEIVE_GRADIENT)

NAMES: dict[str, str] = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.INPUT_BACKWARD: "backward of inputs",
    Kind.WEIGHT_BACKWARD: "backward of weights",
    Kind.FUSED: "forward + backward",
    Kind.SEND_ACTIVATION: "send activation",
    Kind.RECEIVE_ACTIVATION: "receive activation",
    Kind.SEND_GRADIENT: "send gradient",
    Kind.RECEIVE_GRADIENT: "receive gradient",
    Kind.START_REDUCE: "begin allreduce",
    Kind.REDUCE: "allreduce",
    Kind.APPLY: "optimizer",
}


class Action(NamedTuple):
    """One computation: `kind` (such as "F" or "B") of micro-batch `microbatch` by stage `stage`."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> Action:
        """The action that `str` wrote: ``Action.parse("1F0") == Action(1, "F", 0)``."""
        match = _TEXT.match(text)
        if match is None:
            raise ValueError(
                "An action is written as stage, kind, micro-batch, for example '1F0'. "
                f"Received: {text!r}"
            )
        return cls(int(match[1]), Kind(match[2]), int(match[3]))


class Edge(NamedTuple):
    """One tensor that crosses from its producer stage to one consumer stage.

    A tensor with several consumers has one edge to each of them, straight from its producer.
    `carries_gradient` is false for integer tensors and where nothing upstream is trained.
    """

    tensor: int
    producer: int
    consumer: int
    carries_gradient: bool


class Step(NamedTuple):
    """One entry of a lowered list: a computation, a message, a reduction or the update.

    `stage` is a stage of this rank, or its partition in REDUCE and APPLY; `edge` (index in the edge
    table) and `peer` (the other stage) are set for messages only.
    """

    stage: int
    kind: Kind
    microbatch: int = 0
    edge: int = -1
    peer: int = -1

    def __str__(self) -> str:
        name = f"{self.stage}{self.kind}{self.microbatch}"
        return name if self.edge < 0 else f"{name}.{self.edge}@{self.peer}"

    @property
    def message(self) -> tuple[bool, int, int]:
        """What both ends of one message have in common: (is activation, edge, micro-batch)."""
        return (
            self.kind in (Kind.SEND_ACTIVATION, Kind.RECEIVE_ACTIVATION),
            self.edge,
            self.microbatch,
        )
