"""A language model of bytes on sequences that one process could not hold: 32,768 tokens each.

    python examples/long_context.py --data tinyshakespeare.txt --chunks 16        one process
    mpirun -n 2 python examples/long_context.py --data tinyshakespeare.txt        two share each
    mpirun -n 2 python examples/long_context.py --store disk --length 65536

Without --data the text is random numbers, which is enough to measure memory and speed. Each step
takes one sequence of the text. At the end the model goes on with the start of a line, byte by byte.
"""

import argparse
from pathlib import Path

import keras
import keras_hub
import numpy as np
from keras import layers

import hyparflow as hf

BYTES = 256


def build(blocks: int = 2, width: int = 64, heads: int = 2) -> keras.Model:
    """A decoder of Keras's own layers, for sequences of any length."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(BYTES, width)(tokens)
    x = layers.Add()([x, keras_hub.layers.SinePositionEncoding()(x)])
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=True)
        x = layers.Add()([x, y])
        y = layers.Dense(4 * width, "gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    return keras.Model(tokens, layers.Dense(BYTES)(layers.LayerNormalization()(x)))


def sequences(path: str | None, length: int, count: int) -> np.ndarray:
    """Pieces of a text as numbers, one more than `length` each."""
    random = np.random.default_rng(0)
    if path is None:
        return random.integers(0, BYTES, (count, length + 1)).astype("int32")
    text = np.frombuffer(Path(path).read_bytes(), np.uint8)
    starts = random.integers(0, len(text) - length, count)
    return np.stack([text[start : start + length + 1] for start in starts]).astype("int32")


def continued(model: keras.Model, start: bytes, count: int, divided: dict[str, object]) -> bytes:
    """What the model says after `start`, each time the likeliest byte."""
    text = list(start)
    for _ in range(count):
        logits = hf.predict(model, np.array([text], "int32"), verbose=0, **divided)
        text.append(int(logits[0, -1].argmax()))
    return bytes(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a text file")
    parser.add_argument("--length", type=int, default=32768, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=20, help="of one sequence each")
    parser.add_argument("--chunks", default=None, help="of a sequence: a number, or auto")
    parser.add_argument("--store", default="memory", help="memory, disk, or a folder")
    parser.add_argument("--plot", help="a picture of the loss; needs matplotlib")
    args = parser.parse_args()

    shards = hf.size()
    chunks = args.chunks or max(1, args.length // 2048)
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(
        keras.optimizers.Adam(3e-3, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    text = sequences(args.data, args.length, args.steps)
    losses: list[float] = []

    def note(step: int, logs: dict[str, float]) -> None:
        losses.append(logs["loss"])
        print(f"after {step + 1} sequences: mean loss {logs['loss']:.3f}", flush=True)

    history = hf.fit(
        model,
        text[:, :-1],
        text[:, 1:],
        batch_size=1,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=note)],  # of the leader
        num_sequence_shards=shards,
        num_sequence_chunks=chunks if chunks == "auto" else int(chunks),
        sequence_store=args.store,
    )
    said = continued(model, b"KING", 12, {"num_sequence_shards": shards})
    if hf.is_leader():
        steps = np.diff(np.arange(1, len(losses) + 1) * np.array(losses), prepend=0.0)
        print("loss of each sequence:", " ".join(f"{loss:.3f}" for loss in steps))
        print("mean:", f"{history.history['loss'][0]:.3f}; the text goes on:", said)
        if args.plot:
            draw(steps, args.plot)


def draw(losses: np.ndarray, path: str) -> None:
    """The loss over steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(np.arange(1, len(losses) + 1), losses, "o-")
    axes.set(xlabel="step, one sequence each", ylabel="loss of a byte")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
