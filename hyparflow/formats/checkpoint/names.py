"""What files and folders of a checkpoint are called; nothing else is ever removed."""

from __future__ import annotations

import re

from hyparflow.formats.writing import final_name

__all__ = [
    "INDEX",
    "PARTIAL_INDEX",
    "is_own_file",
    "is_shard_file",
    "is_state_file",
    "shard_name",
    "state_name",
    "step_name",
    "step_of",
]

INDEX = "index.json"
PARTIAL_INDEX = "index.json.partial"
_STEP = re.compile(r"step-(\d{10,16})", re.ASCII)
_SHARDS = re.compile(r"rank-\d{5,9}\.safetensors", re.ASCII)
_STATE = re.compile(r"state-[a-z0-9][a-z0-9_-]{0,63}\.json", re.ASCII)


def step_name(step: int) -> str:
    """The name of the folder of a step."""
    return f"step-{step:010d}"


def step_of(name: str) -> int | None:
    """The step whose folder has this name; None if no step's has."""
    match = _STEP.fullmatch(name)
    step = int(match[1]) if match else None
    return step if step is not None and step_name(step) == name else None


def shard_name(rank: int) -> str:
    """The name of the file of what a rank owns."""
    return f"rank-{rank:05d}.safetensors"


def state_name(what: str) -> str:
    """The name of a small JSON file beside the shards: "state-callbacks.json" for "callbacks"."""
    return f"state-{what}.json"


def is_shard_file(name: str) -> bool:
    """Whether a file of this name holds shards."""
    return _SHARDS.fullmatch(name) is not None


def is_state_file(name: str) -> bool:
    """Whether a file of this name holds a JSON state."""
    return _STATE.fullmatch(name) is not None


def is_own_file(name: str) -> bool:
    """Whether a file of this name in the folder of a step is one of hyparflow's, or was to be."""
    name = final_name(name)
    return name in (INDEX, PARTIAL_INDEX) or is_shard_file(name) or is_state_file(name)
