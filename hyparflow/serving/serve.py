"""`hyparflow.serve`: a server for requests that come at any time."""

from __future__ import annotations

from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.progress import progress
from hyparflow.comm.ranks import size, world
from hyparflow.formats.argument_checks import count_of
from hyparflow.serving.decoding.decoder import MOST_STEPS
from hyparflow.serving.decoding.samplers import sampling_of
from hyparflow.serving.expert_choice import given_cluster, with_chosen_mode
from hyparflow.serving.prepare import (
    learned_positions,
    prepared_replicas,
    require_language_model,
    require_length,
)
from hyparflow.serving.ranks.agreed import agreement
from hyparflow.serving.ranks.follower import Follower
from hyparflow.serving.ranks.following_rank import FollowingRank
from hyparflow.serving.ranks.replicas import Replicas
from hyparflow.serving.ranks.runner import warm_up_window
from hyparflow.serving.ranks.serving_grid import serving_grid
from hyparflow.serving.ranks.shared_experts import dealt_to, expert_mode, shared_experts
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.sampling import Sampling
from hyparflow.serving.server import Server

__all__ = ["serve"]

_LENGTHS = 4  # the longest cache over the shortest; there are three sizes
_SHORTEST = 64
_PIECES_WHILE_IDLE = 4
_PIECES_TOGETHER = (8, 4)


def serve(
    model: Any,
    *,
    max_batch: int = 32,
    max_length: int | None = None,
    window: int = 8,
    prompt_piece: int = 256,
    max_cached_tokens: int | None = None,
    warm_up: bool = True,
    num_partitions: int | None = None,
    num_replicas: int | None = None,
    num_shards: int | None = None,
    expert_parallel: bool | str = False,
    placement: Any = None,
    cluster: Any = None,
) -> Any:
    """Serve a language model of KerasHub to requests that come at any time.

    Requests join the batch that runs, and leave it when they are done (Flover: Yao et al.,
    arXiv 2305.13484). Use it as ``with hyparflow.serve(model) as server:``.

    Args:
        model: A `keras_hub.models.CausalLM`.
        max_batch: Integer. The most requests that compute at the same time; others wait.
        max_length: Integer or `None`. The most tokens of a prompt and what follows it. By default
            1024, or as many as the model has learned positions for if these are fewer.
        window: Integer, 1 to 16. The most tokens that a request is given until others may join.
        prompt_piece: Integer. The most tokens of prompts that are taken in until the requests that
            run are given tokens again; four times as many while none runs.
        max_cached_tokens: Integer or `None`. For how many tokens, of all requests, there is memory.
            If more are needed, the request that came last loses its place and is computed again
            later, with the same tokens.
        warm_up: Boolean. Whether to compile all that may be needed before the first request.
        num_partitions: Integer or `None`. The number of partitions of each replica.
        num_replicas: Integer or `None`. The number of replicas, among which requests are dealt out.
            By default as many as there are ranks for.
        num_shards: Integer or `None`. The number of ranks that share the heads of attention and the
            columns of feed-forward layers of each partition (tensor parallelism).
        expert_parallel: Boolean or string. Whether replicas share out the experts of a mixture of
            experts: they compute together, and tokens travel to the replica that has their expert.
            What the expert makes comes home (`True`, or "home"); or the token goes on there, with
            one exchange of each mixture in place of two, and every replica keeps what is needed
            of all tokens ("coherent"; "coherent-returning" for models whose tokens have several
            experts, with two exchanges). "auto" takes what latency and bandwidth say is faster.
        placement: A `hyparflow.ExpertPlacement`, the path of one, or `None`: which replica has
            which expert. By default the first has the first experts, and so on.
        cluster: A `hyparflow.Cluster`, the path of one, or `None`: the network that "auto" goes by.
            By default it is measured.

    Returns:
        On rank 0 a `hyparflow.serving.server.Server`: `submit`, `stream`, `stats` and `close`. The
        other ranks compute until it closes, and then go on after the ``with`` block.

    Raises:
        ValueError: If the model cannot be served, or an argument is not valid.
    """
    ranks = world()
    with agreement(ranks) as agreed:
        require_language_model(model)
        mode = expert_mode(expert_parallel)
        grid = serving_grid(size(), num_partitions, num_replicas, num_shards, mode is not None)
        experts = shared_experts(model, grid.num_shards, placement, mode)
        network = given_cluster(cluster, mode, size())
        limits = _limits(
            model=model,
            groups=dealt_to(grid, experts),
            max_batch=max_batch,
            max_length=max_length,
            window=window,
            prompt_piece=prompt_piece,
            max_cached_tokens=max_cached_tokens,
        )
        sampling = sampling_of(model.sampler)
        agreed.note((limits, grid, experts, network, sampling))
        if ranks is not None:
            agreed.note_weights(model)
    with abort.alike():
        experts = with_chosen_mode(model, grid, ranks, experts, limits.max_batch, network)
        replicas = prepared_replicas(model, grid, ranks, experts)
    if isinstance(replicas, FollowingRank):
        return Follower(replicas)
    if warm_up:
        _warm_up(replicas, limits, sampling)
    return Server(model, replicas, limits)


def _limits(
    model: Any,
    groups: int,
    max_batch: int,
    max_length: int | None,
    window: int,
    prompt_piece: int,
    max_cached_tokens: int | None,
) -> Limits:
    if max_length is None:
        max_length = min(1024, learned_positions(model) or 1024)
    max_length = count_of("max_length", max_length)
    require_length(model, max_length)
    if max_cached_tokens is not None:
        max_cached_tokens = count_of("max_cached_tokens", max_cached_tokens)
    if count_of("window", window) > MOST_STEPS:
        raise ValueError(f"`window` must be at most {MOST_STEPS}. Received: window={window}")
    limits = Limits(
        max_batch=count_of("max_batch", max_batch),
        max_length=max_length,
        window=window,
        piece=count_of("prompt_piece", prompt_piece),
        pieces_while_idle=_PIECES_WHILE_IDLE,
        cache=max_cached_tokens,
        shortest=max(_SHORTEST, -(-max_length // _LENGTHS)),
        fewest=groups,
        multiple=groups,
        together=_PIECES_TOGETHER,
    )
    least = limits.shape(1, max_length)
    if not limits.fits(least):
        raise ValueError(
            f"`max_cached_tokens` must be {least.size} or more, for a batch of {least.rows} and "
            f"max_length={max_length}. Received: max_cached_tokens={max_cached_tokens}"
        )
    return limits


def _warm_up(replicas: Replicas, limits: Limits, sampling: Sampling) -> None:
    """Compile all that may be needed."""
    shapes = limits.shapes
    with progress("compiling for requests") as shown:
        for number, shape in enumerate(shapes):
            shown.say(f"{number} of {len(shapes)} sizes of batches")
            replicas.warm_up(warm_up_window(limits, shape, sampling))
