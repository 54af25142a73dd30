"""What ranks that share out experts are asked for, by generating and by serving."""

from __future__ import annotations

from typing import Any

import numpy as np
from contract import WORLD
from language_models import LENGTH, VOCABULARY

import hyparflow as hf
from hyparflow.model.experts.expert_layers import expert_layers
from hyparflow.model.keras_internals.layers import all_layers

__all__ = ["COUNTS", "generated", "mixed_up", "prompts", "require_served"]

COUNTS, NEWS = [5, 2, 9, 1, 7, 4, 3, 8], [6, 12, 1, 9, 3, 14, 7, 2]  # tokens, and new ones


def prompts(counts: list[int]) -> dict[str, Any]:
    """Prompts of so many tokens, with room for more."""
    draw = np.random.default_rng(5)
    ids = np.zeros((len(counts), LENGTH // 2), "int32")
    mask = np.zeros_like(ids)
    for row, count in enumerate(counts):
        ids[row, :count] = draw.integers(1, VOCABULARY, count)
        mask[row, :count] = 1
    return {"token_ids": ids, "padding_mask": mask}


def mixed_up(model: Any) -> hf.ExpertPlacement:
    """A placement with each rank's experts all over the layer."""
    layers = expert_layers(all_layers(model))
    return hf.ExpertPlacement.random(len(layers), layers[0].num_experts, WORLD.size, seed=3)


def generated(model: Any, given: Any, **options: Any) -> np.ndarray:
    """The tokens of prompts, with those that follow."""
    made = hf.generate(model, given, stop_token_ids=None, max_batch=4, **options)
    return np.asarray(made["token_ids"])


def require_served(model: Any, expected: np.ndarray, **options: Any) -> None:
    """Check that requests of all lengths, more than fit at once, get the tokens of `expected`.

    Args:
        model: what is served.
        expected: the tokens of prompts of `COUNTS` tokens, with those that follow.
        options: of `hyparflow.serve`.
    """
    given = prompts(COUNTS)["token_ids"]
    sizes = {"max_batch": 4, "max_length": LENGTH // 2, "warm_up": False}
    with hf.serve(model, **sizes, **options) as server:
        requests = [
            server.submit(given[row, :count].tolist(), max_new_tokens=new)
            for row, (count, new) in enumerate(zip(COUNTS, NEWS, strict=True))
        ]
        for row, request in enumerate(requests):
            right = expected[row, COUNTS[row] : COUNTS[row] + NEWS[row]]
            np.testing.assert_array_equal(request.tokens(), right)
    WORLD.barrier()
