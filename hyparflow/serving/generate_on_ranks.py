"""`generate(..., launch=True)`: starts ranks, and generates on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hyparflow.formats.argument_checks import count_of
from hyparflow.formats.text import shortened
from hyparflow.launching.function import launch as launched
from hyparflow.serving.decoding.samplers import sampling_of

__all__ = ["generated_on_ranks"]

_COUNTS = ("num_partitions", "num_replicas", "num_shards")


def generated_on_ranks(
    generate: Callable[..., Any], given: Mapping[str, Any], launch: bool | Mapping[str, Any]
) -> Any:
    """What `generate` returns on rank 0 of ranks that are started for it.

    Args:
        generate: `hyparflow.generate`.
        given: its arguments.
        launch: True, or keyword arguments of `hyparflow.launch`.

    Raises:
        ValueError: if the number of ranks is not known, or something cannot be sent.
    """
    import tensorflow as tf

    if isinstance(given["inputs"], tf.data.Dataset):
        raise ValueError(
            "Data go to the ranks as arrays, or as what can be pickled. Received: a "
            f"{type(given['inputs']).__name__}. Make it on the ranks, in a function for "
            "hyparflow.launch."
        )
    if launch is not True and not isinstance(launch, Mapping):
        raise ValueError(
            "`launch` must be True, False, or a dict of hyparflow.launch's arguments. "
            f"Received: launch={shortened(launch)}"
        )
    options = dict(launch) if isinstance(launch, Mapping) else {}
    if "num_ranks" not in options:
        counts = [count_of(name, given[name]) for name in _COUNTS if given[name] is not None]
        if not counts:
            raise ValueError(
                "`launch` must know how many ranks to start. Received: no number of them. Pass "
                "num_partitions, num_replicas or num_shards, or launch={'num_ranks': 2}."
            )
        options["num_ranks"] = 1
        for count in counts:
            options["num_ranks"] *= count
    model, sampler = given["model"], given["sampler"]
    sampler = model.sampler if sampler is None else sampler
    seed = getattr(sampler, "seed", None) if given["seed"] is None else given["seed"]
    sent = {**given, "sampler": sampling_of(sampler), "seed": seed}
    return launched(_generate, (generate, sent, bool(model.jit_compile)), **options)


def _generate(generate: Callable[..., Any], given: dict[str, Any], jit: bool) -> Any:
    """On a rank: Keras does not restore how a CausalLM was compiled."""
    given["model"].jit_compile = jit
    return generate(**given)
