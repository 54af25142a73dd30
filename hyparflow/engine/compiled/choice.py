"""Which compiler this process uses: chosen when the first one is needed, alike on all ranks.

`HYPARFLOW_COMPILED=plain` asks for `hyparflow.engine.compiled.plain`. Without it a self-test
decides: `hyparflow.engine.compiled.surgery` if all that it relies on works, on every rank.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from hyparflow.comm import abort
from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.comm.log import users_stack_level
from hyparflow.engine.compiled import self_test
from hyparflow.engine.compiled.compiler import Compiler
from hyparflow.engine.compiled.plain import Plain
from hyparflow.engine.compiled.surgery import Surgery

__all__ = ["Choice", "agree", "compiler"]

_VARIABLE = "HYPARFLOW_COMPILED"
_PLAIN = "plain"


@dataclass
class Choice:
    """The state of the choice.

    Attributes:
        compiler: the compiler that this process uses.
        faults: of the self-test, once it has run.
        agreed: whether all ranks know the faults of all.
    """

    compiler: Compiler | None = None
    faults: list[str] | None = None
    agreed: bool = False


_choice = Choice()


def compiler() -> Compiler:
    """The compiler of this process; before ranks agree, the one that it would choose alone.

    Raises:
        ValueError: if the environment asks for an unknown compiler.
    """
    if _choice.compiler is None:
        wanted = _wanted()
        if problem := _problem([wanted]):
            raise ValueError(problem)
        _choice.compiler = _made(wanted, _faults(wanted))
    return _choice.compiler


def agree(world: Communicator) -> Compiler:
    """Choose the compiler of all ranks. Collective.

    Args:
        world: all ranks.

    Raises:
        ValueError: on all ranks, if the environment of one asks for an unknown compiler, or if
            ranks ask for different ones.
    """
    if not _choice.agreed:
        wanted = _wanted()
        everyone = world.all_gather_objects((wanted, _faults(wanted)), "how stages are compiled")
        if problem := _problem([text for text, _ in everyone]):
            raise abort.mark_collective(ValueError(problem))
        broken = {rank: faults for rank, (_, faults) in enumerate(everyone) if faults}
        if broken and world.rank == LEADER:
            _announce(broken)
        _choice.compiler = _made(wanted, [fault for faults in broken.values() for fault in faults])
        _choice.agreed = True
    return compiler()


def _wanted(environ: Mapping[str, str] = os.environ) -> str:
    return environ.get(_VARIABLE, "").strip()


def _faults(wanted: str) -> list[str]:
    """The faults that the self-test found; it runs only if the choice depends on it."""
    if wanted:
        return []
    if _choice.faults is None:
        _choice.faults = self_test.faults()
    return _choice.faults


def _made(wanted: str, faults: Sequence[str]) -> Compiler:
    return Plain() if wanted == _PLAIN or faults else Surgery()


def _problem(texts: Sequence[str]) -> str | None:
    """What is wrong with the environment variable, from its values on all ranks; or None."""
    for text in texts:
        if text not in ("", _PLAIN):
            return (
                f"{_VARIABLE} takes {_PLAIN}. Received: {_VARIABLE}={text!r}. Unset it, or export "
                "HYPARFLOW_COMPILED=plain to train by TensorFlow's public API alone."
            )
    odd = [rank for rank, text in enumerate(texts) if text != texts[0]]
    if odd:
        return (
            f"{_VARIABLE} must be the same on all ranks. Received: {texts[0] or 'nothing'} on rank "
            f"0, and {texts[odd[0]] or 'nothing'} on {_ranks(odd)}. Export it to all of them."
        )
    return None


def _announce(broken: Mapping[int, Sequence[str]]) -> None:
    faults = list(dict.fromkeys(fault for found in broken.values() for fault in found))
    warnings.warn(
        f"TensorFlow {tf.__version__} does not do all that hyparflow's compiled stages rely on. "
        f"Received on {_ranks(list(broken))}: {'; '.join(faults)}. Stages are compiled by its "
        "public API instead: the numbers are the same, and steps take longer. Remedy: another "
        "version of TensorFlow, or HYPARFLOW_COMPILED=plain, which keeps this from being said.",
        stacklevel=users_stack_level(),
    )


def _ranks(numbers: Sequence[int]) -> str:
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(map(str, numbers))}"
