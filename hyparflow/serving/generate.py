"""`hyparflow.generate`: all prompts at once, as many together as there is room for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.ranks import size, world
from hyparflow.formats.argument_checks import count_of, flag
from hyparflow.serving.decoding.samplers import sampling_of
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.expert_choice import given_cluster, with_chosen_mode
from hyparflow.serving.generate_on_ranks import generated_on_ranks
from hyparflow.serving.prepare import prepared_replicas, require_language_model, require_length
from hyparflow.serving.ranks.agreed import agreement
from hyparflow.serving.ranks.following_rank import FollowingRank
from hyparflow.serving.ranks.replicas import Replicas
from hyparflow.serving.ranks.serving_grid import serving_grid
from hyparflow.serving.ranks.shared_experts import dealt_to, expert_mode, shared_experts
from hyparflow.serving.requests.given import integer_of, integers_of
from hyparflow.serving.requests.prompts import Prompts, prompts_of
from hyparflow.serving.requests.text import preprocessor_of, stop_tokens_of
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request
from hyparflow.serving.scheduling.sampling import Sampling

__all__ = ["generate"]

_PIECE = 1024  # tokens of prompts in a window: nobody waits for the first token of another


def generate(
    model: Any,
    inputs: Any,
    max_length: int | Sequence[int] | None = None,
    stop_token_ids: Any = "auto",
    strip_prompt: bool = False,
    *,
    sampler: Any = None,
    seed: int | Sequence[int] | None = None,
    max_batch: int = 32,
    num_partitions: int | None = None,
    num_replicas: int | None = None,
    num_shards: int | None = None,
    expert_parallel: bool | str = False,
    placement: Any = None,
    cluster: Any = None,
    launch: bool | Mapping[str, Any] = False,
) -> Any:
    """Generate what follows prompts, as KerasHub's ``causal_lm.generate`` does.

    Prompts of any lengths compute together. As soon as one is done the next takes its place, so
    that no row computes in vain (Flover: Yao et al., arXiv 2305.13484).

    Args:
        model: A `keras_hub.models.CausalLM`.
        inputs: A string, several strings, or a `tf.data.Dataset` of them. For a model without a
            preprocessor a dictionary of ``token_ids`` and ``padding_mask``, both of shape
            ``(prompts, length)``, with room for what follows.
        max_length: Integer, or one of each prompt. The most tokens of a prompt and what follows it.
            By default the ``sequence_length`` of the preprocessor.
        stop_token_ids: "auto", `None` or a list of tokens, after which nothing follows.
        strip_prompt: Boolean. Whether to leave out the prompts.
        sampler: A name, a `keras_hub.samplers.Sampler`, or `None` for the one that the model is
            compiled with. Samplers that run a loop of their own (beam search, contrastive search,
            speculative decoding) are refused.
        seed: Integer or `None`, or one integer of each prompt. The n-th token is drawn with the
            seed ``[seed, n]``, as by a sampler with this seed that generates for this prompt
            alone; the next prompt has the next seed. By default the sampler's.
        max_batch: Integer. The most prompts that compute at the same time, on each replica.
        num_partitions: Integer or `None`. The number of partitions of each replica.
        num_replicas: Integer or `None`. The number of replicas, among which prompts are dealt out.
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
        launch: Boolean, or a dictionary of keyword arguments of `hyparflow.launch`. Whether to
            start ranks for it: as many as the numbers above say.

    Returns:
        As ``causal_lm.generate``: text for text, or a dictionary of ``token_ids`` and
        ``padding_mask``, NumPy arrays of the shape of the inputs. The same on every rank.

    Raises:
        ValueError: If the model cannot be served, or an argument is not valid.
    """
    if launch:
        given = {name: value for name, value in locals().items() if name != "launch"}
        return generated_on_ranks(generate, given, launch)
    ranks = world()
    with agreement(ranks) as agreed:
        require_language_model(model)
        mode = expert_mode(expert_parallel)
        grid = serving_grid(size(), num_partitions, num_replicas, num_shards, mode is not None)
        experts = shared_experts(model, grid.num_shards, placement, mode)
        network = given_cluster(cluster, mode, size())
        strip_prompt = flag("strip_prompt", strip_prompt)
        prompts, lengths = _asked(model, inputs, max_length)
        require_length(model, max(lengths))
        requests = _requests(model, prompts, lengths, stop_token_ids, sampler, seed)
        limits = _limits(max_batch, max(lengths), len(requests), dealt_to(grid, experts))
        agreed.note([replace(x, sampling=replace(x.sampling, seed=0)) for x in requests])
        agreed.note((limits, grid, experts, network, strip_prompt))
        if ranks is not None:
            agreed.note_weights(model)
    with abort.alike():
        experts = with_chosen_mode(model, grid, ranks, experts, limits.max_batch, network)
        replicas = prepared_replicas(model, grid, ranks, experts)
    if isinstance(replicas, FollowingRank):
        replicas.follow()
        answers = dict[int, tuple[int, ...]]()
    else:
        answers = _answered(replicas, limits, requests)
    if ranks is not None:
        answers = ranks.broadcast_object(answers, LEADER, "answers")
    rows = [answers.get(row, ()) for row in range(len(lengths))]
    return _returned(model, prompts, prompts.answered(rows, strip_prompt))


def _requests(
    model: Any,
    prompts: Prompts,
    lengths: Sequence[int],
    stop_token_ids: Any,
    sampler: Any,
    seed: int | Sequence[int] | None,
) -> list[Request]:
    sampler = model.sampler if sampler is None else sampler
    seeds = _seeds(sampler, seed, len(lengths))
    stops = stop_tokens_of(model, stop_token_ids)
    return [
        Request(
            number=row,
            prompt=prompts.tokens(row),
            max_new_tokens=length - filled,
            stop_tokens=stops,
            sampling=sampling_of(sampler, seeds[row]),
        )
        for row, (filled, length) in enumerate(zip(prompts.sizes, lengths, strict=True))
        if length > filled
    ]


def _limits(max_batch: int, length: int, count: int, groups: int) -> Limits:
    """Few sizes, for what is compiled now may never be used again."""
    return Limits(
        max_batch=count_of("max_batch", max_batch),
        max_length=length,
        piece=_PIECE,
        fewest=groups if count <= groups else 4 * groups,
        factor=4,
        multiple=groups,
    )


def _asked(
    model: Any, inputs: Any, max_length: int | Sequence[int] | None
) -> tuple[Prompts, list[int]]:
    """The prompts, and the length that each may reach with what follows."""
    if not isinstance(max_length, Sequence) or isinstance(max_length, str):
        if max_length is not None:
            max_length = count_of("max_length", max_length)
        prompts = prompts_of(model, inputs, max_length)
        return prompts, [prompts.token_ids.shape[1]] * len(prompts.token_ids)
    max_length = [count_of("max_length", length) for length in max_length]
    longest = max(max_length, default=1)
    prompts = prompts_of(model, inputs, longest)
    count, width = prompts.token_ids.shape
    if len(max_length) != count or longest > width:
        raise ValueError(
            "`max_length` must be an integer, or one of each prompt, none larger than the rows of "
            f"tokens. Received: max_length={list(max_length)} for {count} prompts in rows of "
            f"{width} tokens."
        )
    return prompts.shortened(max_length), [int(length) for length in max_length]


def _seeds(sampler: Any, seed: int | Sequence[int] | None, count: int) -> list[int]:
    """A seed of each prompt."""
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise ValueError(
                "`seed` must be an integer, None, or one integer of each prompt. Received: "
                f"{len(seed)} seeds for {count} prompts."
            )
        return integers_of("seed", seed)
    if seed is None and not isinstance(sampler, Sampling):
        seed = getattr(sampler, "seed", None)
    if seed is None:
        return [random.randint(1, 10**9) for _ in range(count)]  # as Keras draws default seeds
    return [integer_of("seed", seed) + number for number in range(count)]


def _answered(
    replicas: Replicas, limits: Limits, requests: Sequence[Request]
) -> dict[int, tuple[int, ...]]:
    """Number of a request -> the tokens that follow."""
    found = dict[int, tuple[int, ...]]()
    engine = ServingEngine(replicas, limits)
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        for progress in engine.advance():
            found[progress.number] = found.get(progress.number, ()) + progress.tokens
    replicas.close()
    return found


def _returned(model: Any, prompts: Prompts, answered: dict[str, Any]) -> Any:
    if getattr(model, "preprocessor", None) is None:
        return answered
    texts = preprocessor_of(model).generate_postprocess(answered)
    return texts[0] if prompts.is_single else list(texts)
