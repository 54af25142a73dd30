"""Trains the language model whose experts `network.py` spreads over two hosts.

    mpirun -n 2 python benchmarks/experts/network_model.py --text tinyshakespeare.txt --save FOLDER

FOLDER then has model.keras, KerasHub's Qwen3 MoE over bytes, one of 16 experts a token in each of 8
layers; trace.npz, where its routers send text that it was not trained on, to place experts by; and
prompts.npy, other text of that kind.
"""

import argparse
import math
from pathlib import Path

import keras
import keras_hub
import numpy as np

import hyparflow as hf

LAYERS, EXPERTS, WIDTH, HIDDEN, HEADS = 8, 16, 128, 256, 4
LENGTH, BATCH, RATE, WARM_UP = 128, 16, 1e-3, 50
ROWS = 256  # of the trace
PROMPTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--save", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    text = np.frombuffer(args.text.read_bytes(), np.uint8)
    trained, learnt, asked = np.split(text, [len(text) * 9 // 10, len(text) * 19 // 20])
    model = expert_model()
    history = hf.fit(model, *batches_of(trained, args.steps), batch_size=BATCH, shuffle=False)
    if not hf.is_leader():
        return
    args.save.mkdir(parents=True, exist_ok=True)
    print(f"{history.history['loss'][-1] / math.log(2):.2f} bits a byte on what it was trained on")
    model.save(args.save / "model.keras")
    hf.trace_experts(model, inputs_of(rows_of(learnt, ROWS))).save(args.save / "trace.npz")
    np.save(args.save / "prompts.npy", rows_of(asked, PROMPTS))


def expert_model() -> keras.Model:
    """Small enough for minutes of training; attention and experts are those of Qwen3 MoE."""
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.Qwen3MoeBackbone(
        vocabulary_size=256,
        num_layers=LAYERS,
        num_query_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        hidden_dim=WIDTH,
        intermediate_dim=HIDDEN,
        moe_intermediate_dim=HIDDEN,
        num_experts=EXPERTS,
        top_k=1,
        norm_top_k_prob=False,
        router_aux_loss_coefficient=0.01,
    )
    model = keras_hub.models.Qwen3MoeCausalLM(backbone=backbone, preprocessor=None)
    rate = keras.optimizers.schedules.CosineDecay(
        RATE / WARM_UP, 10 * WARM_UP, 0.1, warmup_target=RATE, warmup_steps=WARM_UP
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), loss, sampler="greedy")
    return model


def batches_of(text: np.ndarray, steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rows from places drawn at random, and the byte that follows each."""
    draw = np.random.default_rng(0)
    starts = draw.integers(0, len(text) - LENGTH - 1, steps * BATCH)
    rows = np.stack([text[start : start + LENGTH + 1] for start in starts]).astype("int32")
    return inputs_of(rows[:, :-1]), rows[:, 1:]


def rows_of(text: np.ndarray, count: int) -> np.ndarray:
    """So many rows, from places that are evenly apart."""
    starts = np.linspace(0, len(text) - LENGTH - 1, count).astype(int)
    return np.stack([text[start : start + LENGTH] for start in starts]).astype("int32")


def inputs_of(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What KerasHub's models take."""
    return {"token_ids": rows, "padding_mask": np.ones_like(rows)}


if __name__ == "__main__":
    main()
