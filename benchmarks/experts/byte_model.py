"""A language model of bytes whose blocks have experts, and the texts that it learns."""

import math
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

import hyparflow as hf

__all__ = ["bits_per_byte", "byte_model", "python_text", "rows_of", "train"]

WIDTH, HEADS, LENGTH, BATCH = 64, 4, 128, 16
LAYERS, EXPERTS, HIDDEN = 8, 16, 128
LEARNING_RATE, WARM_UP, LEAST = 2e-3, 100, 0.05  # least: of the rate, at the end
# Of Python's standard library: programs, and the words in them.
FILES = ("argparse", "ast", "calendar", "csv", "datetime", "difflib", "heapq", "inspect")
FILES += (
    "logging/__init__",
    "mailbox",
    "optparse",
    "pdb",
    "smtplib",
    "tarfile",
    "textwrap",
    "uuid",
)


def byte_model(top_k: int, load_balancing: float, seed: int = 0) -> keras.Model:
    """A transformer before whose second halves stand routers: each byte of a row tells the next."""
    keras.utils.set_random_seed(seed)
    tokens = keras.Input([LENGTH], dtype="int32", name="tokens")
    places = keras.ops.arange(LENGTH)
    x = keras.layers.Embedding(256, WIDTH)(tokens)
    x = x + keras.layers.Embedding(LENGTH, WIDTH, name="places")(places)
    for number in range(LAYERS):
        y = keras.layers.LayerNormalization(epsilon=1e-5)(x)
        attention = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
        x = x + attention(y, y, use_causal_mask=True)
        y = keras.layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + hf.layers.MixtureOfExperts(
            num_experts=EXPERTS,
            hidden_dim=HIDDEN,
            top_k=top_k,
            load_balancing=load_balancing,
            name=f"experts_{number}",
        )(y)
    x = keras.layers.LayerNormalization(epsilon=1e-5)(x)
    return keras.Model(tokens, keras.layers.Dense(256)(x), name="bytes")


def rows_of(text: bytes, count: int) -> np.ndarray:
    """So many rows of bytes, from places that are evenly apart."""
    values = np.frombuffer(text, np.uint8)
    starts = np.linspace(0, len(values) - LENGTH - 1, count).astype(int)
    return np.stack([values[start : start + LENGTH] for start in starts]).astype("int32")


def python_text(count: int) -> bytes:
    """Python's own programs: of each file so many bytes, behind what it is for."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [(folder / f"{name}.py").read_bytes() for name in FILES]
    return b"".join(text[2000 : 2000 + count // len(FILES)] for text in texts)


def train(
    model: keras.Model, text: bytes, at: Sequence[int], look: Callable[[int], None], seed: int = 0
) -> None:
    """Train a model on places of a text drawn at random, and look at it after these steps."""
    values, random = np.frombuffer(text, np.uint8), np.random.default_rng(seed)
    _compile(model, at[-1])
    done = 0
    for stop in at:
        if stop > done:
            starts = random.integers(0, len(values) - LENGTH - 1, (stop - done) * BATCH)
            rows = np.stack([values[start : start + LENGTH + 1] for start in starts])
            rows = rows.astype("int32")
            model.fit(rows[:, :-1], rows[:, 1:], BATCH, shuffle=False, verbose=0)
            done = stop
        look(done)


def _compile(model: keras.Model, steps: int) -> None:
    """With an optimizer whose rate rises, then falls like a cosine."""
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE / WARM_UP, steps - WARM_UP, LEAST,
        warmup_target=LEARNING_RATE, warmup_steps=WARM_UP,
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), loss)


def bits_per_byte(model: keras.Model, rows: np.ndarray) -> float:
    """How well a model tells the next byte."""
    logits = model.predict(rows[:, :LENGTH], batch_size=BATCH, verbose=0)[:, :-1]
    losses = keras.ops.sparse_categorical_crossentropy(rows[:, 1:LENGTH], logits, from_logits=True)
    return float(np.mean(losses)) / math.log(2)
