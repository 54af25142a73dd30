"""How long a mixture of experts takes that computes the experts alone that tokens were routed to.

    python benchmarks/experts/sparse.py
    python benchmarks/experts/sparse.py --report

KerasHub's block of Mixtral computes all experts for every token: by TensorFlow, and by XLA. Beside
it stand the same layer with `ExpertBanks.sparse`, and `hyparflow.layers.MixtureOfExperts` of the
same sizes. Calls take turns; the figures are of the processor's time on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras_hub.src.models.mixtral.mixtral_decoder import MixtralSparseMoeBlock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import described, machine

import hyparflow as hf
from hyparflow.formats.text import aligned
from hyparflow.model.experts.expert_banks import ExpertBanks

HERE = Path(__file__).resolve().parent
# Experts, experts of a token, width, hidden width.
CASES = [(8, 2, 512, 1024), (64, 4, 512, 256)]
TOKENS = (1, 4, 32, 256)
TURNS, CALLS = 9, 4
NAMES = ("KerasHub", "KerasHub, XLA", "sparse", "own layer")


def blocks(case: tuple[int, int, int, int]) -> dict[str, Callable[[Any], Any]]:
    """What is compared, each a compiled function of tokens (tokens, 1, width)."""
    experts, top_k, width, hidden = case
    random = np.random.default_rng(0)
    block = MixtralSparseMoeBlock(
        hidden_dim=width, intermediate_dim=hidden, num_experts=experts, top_k=top_k
    )
    block.build((None, None, width))
    own = hf.layers.MixtureOfExperts(
        experts, hidden, top_k, activation="silu", gated=True, use_bias=False
    )
    own.build((None, None, width))
    for layer in (block, own):
        for weight in layer.weights:
            scale = weight.shape[-2] ** -0.5
            weight.assign(random.normal(0, scale, weight.shape).astype("float32"))
    banks = ExpertBanks([block.expert_bank])

    def dense(tokens: Any) -> Any:
        return block(tokens)[0]

    def sparse(tokens: Any) -> Any:
        with banks.sparse():
            return block(tokens)[0]

    plain = {"autograph": False, "jit_compile": False}
    return {
        "KerasHub": tf.function(dense, **plain),
        "KerasHub, XLA": tf.function(dense, autograph=False, jit_compile=True),
        "sparse": tf.function(sparse, **plain),
        "own layer": tf.function(own, **plain),
    }


def measured(case: tuple[int, int, int, int], tokens: int) -> dict[str, Any]:
    """Milliseconds of a call of each, and how far the sparse one is from KerasHub's."""
    random = np.random.default_rng(tokens)
    given = tf.constant(random.normal(size=(tokens, 1, case[2])).astype("float32"))
    functions = blocks(case)
    outputs = {name: function(given).numpy() for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(TURNS):
        for name in NAMES:
            begun = time.process_time()
            for _ in range(CALLS):
                functions[name](given).numpy()
            times[name].append((time.process_time() - begun) / CALLS * 1e3)
    expected = outputs["KerasHub"]
    difference = np.abs(outputs["sparse"] - expected).max() / np.abs(expected).max()
    return {
        "case": case,
        "tokens": tokens,
        "milliseconds": {name: statistics.median(given) for name, given in times.items()},
        "difference": float(difference),
    }


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    titles = ("experts", "of a token", "width", "hidden", "tokens", *NAMES)
    rows = [(*titles, "KerasHub / sparse", "XLA / sparse", "difference")]
    for found in results["blocks"]:
        taken = found["milliseconds"]
        rows.append(
            (
                *map(str, found["case"]),
                str(found["tokens"]),
                *(f"{taken[name]:.2f} ms" for name in NAMES),
                *(f"{taken[name] / taken['sparse']:.1f}" for name in NAMES[:2]),
                f"{found['difference']:.0e}",
            )
        )
    return "\n".join([described(results["machine"]), "", *aligned(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="only write the table anew")
    args = parser.parse_args()
    path = HERE / "sparse.json"
    if not args.report:
        found = [measured(case, tokens) for case in CASES for tokens in TOKENS]
        path.write_text(json.dumps({"machine": machine(), "blocks": found}, indent=1) + "\n")
    text = report(json.loads(path.read_text()))
    lines = [f"    {line}".rstrip() for line in text.splitlines()]
    (HERE / "sparse.rst").write_text("\n".join(["::", "", *lines]) + "\n")
    print(text)


if __name__ == "__main__":
    main()
