"""A Transformer that tells from a speech who is speaking.

The text is a play: speeches under the names of their speakers, with empty lines between them, such
as the "tinyshakespeare" file. Without a file, a few made-up people talk about their work.

    python speakers_transformer_plain.py --text tinyshakespeare.txt
"""

import argparse
import collections
import json
import os
import random

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
from keras import layers, ops

import hyparflow as hf

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--text", help="the play; default: made-up speeches")
parser.add_argument("--speakers", type=int, default=4, help="those with the most speeches")
parser.add_argument("--speeches", type=int, help="use so many only")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--batch-size", type=int, default=32)
args = parser.parse_args()

WORDS = 4000  # in the vocabulary
LENGTH = 40  # words of a speech
WIDTH = 32  # of the vector of a word

keras.utils.set_random_seed(1)


def made_up_play():
    """Speeches of people whose words tell what they do."""
    trades = {
        "BAKER": "bread flour oven dough morning butter",
        "SAILOR": "sea wind mast harbour storm rope",
        "GARDENER": "roses soil spade rain seeds morning",
        "CLERK": "paper ink letter desk seal rain",
    }
    common = ["the", "a", "my", "your", "we", "want", "bring", "and", "with", "no", "more"]
    draw = random.Random(0)
    speeches = []
    for _ in range(600):
        name = draw.choice(list(trades))
        words = draw.choices(common, k=9) + draw.choices(trades[name].split(), k=3)
        draw.shuffle(words)
        speeches.append(f"{name}:\n{' '.join(words)}.")
    return "\n\n".join(speeches)


def read_speeches(text):
    """The most frequent speakers, and (speech, number of its speaker) for all of theirs."""
    pairs = [block.split(":\n", 1) for block in text.split("\n\n") if ":\n" in block]
    counts = collections.Counter(name for name, _ in pairs)
    names = [name for name, _ in counts.most_common(args.speakers)]
    return names, [(speech, names.index(name)) for name, speech in pairs if name in names]


class TokenAndPosition(layers.Layer):
    """The vector of each word plus the vector of its place."""

    def __init__(self, words, length, width, **kwargs):
        super().__init__(**kwargs)
        self.token = layers.Embedding(words, width, mask_zero=True)
        self.position = layers.Embedding(length, width)

    def call(self, tokens):
        return self.token(tokens) + self.position(ops.arange(ops.shape(tokens)[1]))

    def compute_mask(self, tokens, mask=None):
        return self.token.compute_mask(tokens)  # padding is not looked at


class TransformerBlock(layers.Layer):
    """Attention, then a dense network for each word; each adds to what came in."""

    def __init__(self, width, heads, hidden, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.first = layers.Dense(hidden, activation="gelu")
        self.second = layers.Dense(width)
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]

    def call(self, x):
        x = self.norms[0](x + self.attention(x, x))
        return self.norms[1](x + self.second(self.first(x)))


if args.text:
    with open(args.text) as file:
        play = file.read()
else:
    play = made_up_play()
names, speeches = read_speeches(play)
random.Random(0).shuffle(speeches)
speeches = speeches[: args.speeches]
print(f"{len(speeches)} speeches of {', '.join(names)}")

# Words become numbers before training; 0 is padding.
vectorize = layers.TextVectorization(WORDS, output_sequence_length=LENGTH)
vectorize.adapt([speech for speech, _ in speeches])
x = ops.convert_to_numpy(vectorize([speech for speech, _ in speeches]))
y = np.array([number for _, number in speeches])
held_out = len(x) // 5
x_train, y_train, x_test, y_test = x[held_out:], y[held_out:], x[:held_out], y[:held_out]

inputs = keras.Input((LENGTH,), dtype="int64")
hidden = TokenAndPosition(WORDS, LENGTH, WIDTH)(inputs)
for _ in range(2):
    hidden = TransformerBlock(WIDTH, heads=2, hidden=2 * WIDTH)(hidden)
hidden = layers.GlobalAveragePooling1D()(hidden)
hidden = layers.Dense(20, activation="relu")(hidden)
outputs = layers.Dense(len(names), activation="softmax")(hidden)
model = keras.Model(inputs, outputs)
optimizer = keras.optimizers.AdamW(1e-3, weight_decay=1e-4)
model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])

options = {
    "batch_size": args.batch_size,
    "epochs": args.epochs,
    "validation_data": (x_test, y_test),
    "verbose": 2,
}
history = hf.fit(model, x_train, y_train, **options, num_partitions=int(os.getenv("PARTITIONS", 1)))

guesses = model.predict(x_test[:3], verbose=0).argmax(axis=-1)
for (speech, speaker), guess in zip(speeches, guesses, strict=False):
    print(f"{names[speaker]}, taken for {names[guess]}: {speech.splitlines()[0]}")
scores = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
print(json.dumps({"history": history.history, "test": scores}))
