"""Train a language model of bytes, and serve it: prompts of any lengths, all at once.

    python examples/generate.py --data tinyshakespeare.txt                  one process
    mpirun -n 2 python examples/generate.py --data tinyshakespeare.txt      two replicas train
    mpirun -n 2 python examples/generate.py --partitions 2 --save shakespeare.keras
    hyparflow serve shakespeare.keras --port 8000                           then, for any client

Without --data the text is a rhyme. The model is a GPT-2 of KerasHub; its preprocessor makes each
byte a token, and needs no files.
"""

import argparse
import time
from pathlib import Path

import keras
import keras_hub
import numpy as np

import hyparflow as hf

END = 256  # the token that begins and ends a text
PROMPTS = ["ROMEO:", "JULIET:\nO, ", "To be", "KING RICHARD:\nMy lord,", "First Citizen:\n", "The "]
RHYME = b"ROMEO:\nThe rose is red, the violet blue,\nthe honey sweet, and so are you.\n\n" * 400


def byte_tokenizer() -> keras_hub.models.GPT2Tokenizer:
    """One token for each byte. GPT-2 writes bytes that are no printable characters as others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(n) for n in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    vocabulary = {character: n for n, character in enumerate(characters)}
    return keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary | {"<|endoftext|>": END}, merges=[])


def build(length: int, layers: int, width: int) -> keras_hub.models.GPT2CausalLM:
    """A GPT-2 without dropout."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=END + 1,
        num_layers=layers,
        num_heads=4,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=length,
        dropout=0.0,
    )
    return keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)


def samples(text: bytes, tokenizer: keras_hub.models.GPT2Tokenizer, length: int, count: int):
    """Pieces of the text, and of each the tokens that follow."""
    tokens = np.array(tokenizer.tokenize(text.decode()), "int32")
    starts = np.random.default_rng(0).integers(0, len(tokens) - length, count)
    pieces = np.stack([tokens[start : start + length] for start in starts])
    pieces = np.concatenate([np.full((count, 1), END, "int32"), pieces], 1)
    x = {"token_ids": pieces[:, :-1], "padding_mask": np.ones_like(pieces[:, :-1])}
    return x, pieces[:, 1:]


def train(model: keras.Model, x: dict, y: np.ndarray, batch_size: int) -> None:
    model.compile(
        keras.optimizers.Adam(2e-3, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        sampler=keras_hub.samplers.TopPSampler(p=0.9, temperature=0.8, seed=1),
    )
    history = hf.fit(model, x, y, batch_size=batch_size, epochs=1, shuffle=False, verbose=0)
    if hf.is_leader():
        last = {name: values[-1] for name, values in history.history.items()}
        print("trained:", ", ".join(f"{name} {value:.3f}" for name, value in last.items()))


def converse(model: keras.Model, partitions: int, length: int) -> None:
    """Ask for all prompts at once, and show one of the answers as it comes."""
    with hf.serve(
        model, max_batch=8, max_length=length, num_partitions=partitions, warm_up=False
    ) as server:
        began = time.perf_counter()
        requests = [server.submit(text, max_new_tokens=length // 2, seed=7) for text in PROMPTS]
        print(f"--- {PROMPTS[0]}", end="")
        for piece in requests[0]:
            print(piece, end="", flush=True)
        for text, request in zip(PROMPTS[1:], requests[1:], strict=True):
            print(f"\n--- {text}{request.text()}", end="")
        tokens, seconds = server.stats().tokens, time.perf_counter() - began
        print(f"\n--- {tokens} tokens of {len(requests)} requests in {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a text file")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--batch", type=int, default=32, help="pieces of text in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a piece")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--partitions", type=int, default=1, help="of the model that is served")
    parser.add_argument("--save", help="a file for the model, for `hyparflow serve`")
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    tokenizer = byte_tokenizer()
    text = Path(args.data).read_bytes() if args.data else RHYME
    model = build(args.length, args.layers, args.width)
    x, y = samples(text, tokenizer, args.length, args.steps * args.batch)
    train(model, x, y, args.batch)
    model.preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer=tokenizer, sequence_length=args.length
    )
    if args.save and hf.is_leader():
        model.save(args.save)
    converse(model, args.partitions, args.length)


if __name__ == "__main__":
    main()
