"""Trains a small language model with experts, and records its routing on the way.

    python benchmarks/experts/train.py --text tinyshakespeare.txt --top-k 1 --traces FOLDER

FOLDER then has for each step that is looked at three routing traces: of text that the model was not
trained on, to learn placements from (learn) and to judge them by (same), and of another kind of
text, Python's own programs (other). Besides tokens.npz, these texts, and steps.json, how well the
model tells their next bytes.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from byte_model import bits_per_byte, byte_model, python_text, rows_of, train

import hyparflow as hf

AT = (0, 50, 100, 200, 500, 1000, 2000, 4000)
HELD_OUT = 0.1  # of the text, at its end
ROWS = 256  # of each trace


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--traces", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--top-k", type=int, default=1)
    parser.add_argument("--at", type=int, nargs="+", default=AT, help="steps; the last is the end")
    parser.add_argument("--load-balancing", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.traces.mkdir(parents=True, exist_ok=True)
    text = args.text.read_bytes()
    held_out = text[-int(HELD_OUT * len(text)) :]
    half = len(held_out) // 2
    texts = {
        "learn": rows_of(held_out[:half], ROWS),
        "same": rows_of(held_out[half:], ROWS),
        "other": rows_of(python_text(half), ROWS),
    }
    np.savez(args.traces / "tokens.npz", **texts)
    model = byte_model(args.top_k, args.load_balancing, args.seed)
    steps = []

    def look(step: int) -> None:
        for name, rows in texts.items():
            hf.trace_experts(model, rows).save(args.traces / f"{step}-{name}.npz")
        bits = {name: bits_per_byte(model, rows) for name, rows in texts.items()}
        steps.append({"step": step, "bits": bits, "processor_seconds": time.process_time()})
        found = {name: getattr(args, name) for name in ("top_k", "load_balancing", "seed")}
        found["steps"] = steps
        (args.traces / "steps.json").write_text(json.dumps(found, indent=1) + "\n")
        print(step, bits, f"{time.process_time():.0f} s", flush=True)

    train(model, text[: -len(held_out)], args.at, look, args.seed)
    model.save(args.traces / "model.keras")


if __name__ == "__main__":
    main()
