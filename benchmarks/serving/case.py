"""A job of the benchmark: hyparflow and KerasHub in one process, or ranks of hyparflow.

    python case.py FOLDER {gpt2,llama} {plain,jit}      (or by mpirun)

See `workers.obey`: it does what files of the folder ask for, and answers with seconds.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from language_models import build, padded_inputs, prompts_of, requests
from workers import obey, timed

import hyparflow as hf
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.prepare import prepared_replicas
from hyparflow.serving.ranks.replicas import OneReplica
from hyparflow.serving.ranks.runner import Runner
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request
from hyparflow.serving.scheduling.sampling import GREEDY
from hyparflow.serving.scheduling.window import EMPTY, Piece, Shape, Window

COUNT, PADDED = 32, 256
# As `hyparflow.serve` has them.
LIMITS = Limits(COUNT, PADDED, pieces_while_idle=4, shortest=64, together=(8, 4))


class Case:
    """What can be asked for.

    Args:
        kind: of the model.
        jit: whether KerasHub compiles by XLA.
    """

    def __init__(self, kind: str, jit: bool) -> None:
        self._model = build(kind, jit)
        self._prompts, self._totals = requests(COUNT)
        pairs = zip(self._prompts, self._totals, strict=True)
        self._counts = [total - len(prompt) for prompt, total in pairs]
        self._made: dict[int, list[int]] = {}
        self._bare: Any = None

    def engine(self) -> dict[str, Any]:
        """All requests by the engine of hyparflow."""
        asked = [
            Request(n, tuple(p), c)
            for n, (p, c) in enumerate(zip(self._prompts, self._counts, strict=True))
        ]
        took, (made, engine) = timed(lambda: self._run(asked, LIMITS))
        self._made, counts = made, engine.schedulers[0].counts
        return took | {
            "tokens": sum(self._counts),
            "iterations": counts.iterations,
            "useful": counts.useful / counts.issued,
            "distinct": float(np.mean([len(set(x)) / len(x) for x in made.values()])),
        }

    def batch(self, rows: int, prompt: int, new: int, piece: int) -> dict[str, Any]:
        """So many requests of one size, at once, as rivals compute them.

        As by `hyparflow.serve(model, max_batch=rows, max_length=prompt + new, prompt_piece=piece)`.
        """
        prompts = prompts_of([prompt] * rows, seed=7)
        asked = [Request(n, tuple(p), new) for n, p in enumerate(prompts)]
        limits = replace(LIMITS, max_batch=rows, max_length=prompt + new, piece=piece)
        took, (made, _) = timed(lambda: self._run(asked, limits))
        return took | {"made": [made[n] for n in range(rows)], "prompts": prompts}

    def checkpoint(self, folder: str) -> None:
        """Write GPT-2's weights under Hugging Face's names, for rivals."""
        from keras_hub.src.utils.transformers.export import gpt2

        named = gpt2.get_gpt2_weights_map(self._model.backbone)
        values = {name: np.asarray(value) for name, value in named.items()}
        np.savez(Path(folder, "weights.npz"), **values)
        config = gpt2.get_gpt2_config(self._model.backbone)
        config |= {"bos_token_id": 0, "eos_token_id": 0}  # the vocabulary has no 50256
        Path(folder, "config.json").write_text(json.dumps(config))

    def step(self, rows: int, length: int, repeats: int = 5) -> dict[str, float]:
        """One token for each row, of windows of eight."""
        shape = Shape(rows, length)
        every = range(rows)
        first, again = (window_of(shape, every, new) for new in (True, False))
        self._runner.run(first)
        took, _ = timed(lambda: [self._runner.run(again) for _ in range(repeats)])
        self._runner.close()
        return {key: value / repeats / again.steps for key, value in took.items()}

    def piece(self, tokens: int, length: int, rows: int = 8, repeats: int = 5) -> dict[str, float]:
        """A piece of a prompt."""
        shape = Shape(rows, length)
        pieces = (Piece(0, 0, tuple(range(tokens)), LIMITS.piece_sizes(tokens)[-1]),)
        first = window_of(shape, range(0), True)
        again = window_of(shape, range(0), False, pieces)
        self._runner.run(first)
        self._runner.run(again)
        took, _ = timed(lambda: [self._runner.run(again) for _ in range(repeats)])
        self._runner.close()
        return {key: value / repeats for key, value in took.items()}

    def serve(self) -> dict[str, Any]:
        """All requests through `hyparflow.serve`, which has been started before."""
        with hf.serve(self._model, max_batch=COUNT, max_length=PADDED, warm_up=False) as server:

            def all_of_them() -> None:
                asked = [
                    server.submit(p, max_new_tokens=c)
                    for p, c in zip(self._prompts, self._counts, strict=True)
                ]
                for request in asked:
                    request.tokens()

            took, _ = timed(all_of_them)
        return took

    def generate(self, **options: Any) -> dict[str, Any]:
        """All requests through `hyparflow.generate`: whatever is not compiled, is compiled."""
        given = padded_inputs(self._prompts, max(self._totals))
        took, _ = timed(
            lambda: hf.generate(
                self._model, given, self._totals, stop_token_ids=None, max_batch=COUNT, **options
            )
        )
        return took | {"tokens": sum(self._counts)}

    def compile(self) -> dict[str, float]:
        """All that KerasHub compiles for `exact`, `padded` and `static`."""
        lengths = {*self._totals, PADDED}
        took, _ = timed(lambda: [self._alone(0, length) for length in lengths])
        return took

    def exact(self, part: int, parts: int) -> dict[str, Any]:
        """A part of the requests one by one, each in a buffer of the length that it reaches."""
        taken = self._part(part, parts)
        took, made = timed(lambda: [self._alone(n, self._totals[n]) for n in taken])
        pairs = zip(taken, made, strict=True)
        same = sum(row[len(self._prompts[n]) :].tolist() == self._made.get(n) for n, row in pairs)
        return took | self._share(taken) | {"same": same, "requests": len(taken)}

    def padded(self, part: int, parts: int) -> dict[str, Any]:
        """As `exact`, in buffers of one length, of which KerasHub computes all."""
        taken = self._part(part, parts)
        took, _ = timed(lambda: [self._alone(n, PADDED) for n in taken])
        # It makes more tokens than were asked for; they are all counted as its time.
        return took | self._share(taken)

    def static(self) -> dict[str, float]:
        """All requests as one batch, to the length of the longest."""
        given = padded_inputs(self._prompts, max(self._totals))
        took, _ = timed(lambda: self._model.generate(given, stop_token_ids=None))
        return took

    @property
    def _replica(self) -> OneReplica:
        if self._bare is None:
            self._bare = prepared_replicas(self._model, Grid(1, 1), None)
        found: OneReplica = self._bare
        return found

    @property
    def _runner(self) -> Runner:
        return self._replica.runner

    def _run(self, asked: list[Request], limits: Limits) -> tuple[dict[int, list[int]], Any]:
        engine = ServingEngine(self._replica, limits)
        made: dict[int, list[int]] = {request.number: [] for request in asked}
        for request in asked:
            engine.submit(request)
        while not engine.is_idle:
            for progress in engine.advance():
                made[progress.number] += progress.tokens
        self._replica.close()  # gives the caches back
        return made, engine

    def _alone(self, number: int, length: int) -> Any:
        given = padded_inputs([self._prompts[number]], length)
        return self._model.generate(given, stop_token_ids=None)["token_ids"][0]

    def _part(self, part: int, parts: int) -> list[int]:
        """Every so many requests by length, so that parts are alike."""
        return sorted(range(COUNT), key=lambda n: self._totals[n])[part % parts :: parts]

    def _share(self, taken: list[int]) -> dict[str, float]:
        """How much of all tokens that are asked for is in a part."""
        return {"share": sum(self._counts[n] for n in taken) / sum(self._counts)}


def window_of(shape: Shape, live: range, new: bool, pieces: tuple[Piece, ...] = ()) -> Window:
    """A window of eight iterations in the middle of caches."""
    return Window(
        shape=shape,
        sources=(EMPTY,) * shape.rows if new else None,
        pieces=pieces,
        live=tuple(live),
        numbers=tuple(live),
        tokens=(1,) * len(live),
        positions=(shape.length // 2,) * len(live),
        given=(0,) * len(live),
        sampling=(GREEDY,) * len(live),
        steps=8 if live else 0,
    )


def main() -> None:
    folder, kind, compiled = sys.argv[1:4]
    case = Case(kind, compiled == "jit")
    names = ("engine", "batch", "checkpoint", "step", "piece", "serve", "generate")
    names += ("compile", "exact", "padded", "static")
    obey(Path(folder), {name: getattr(case, name) for name in names}, hf.rank())


if __name__ == "__main__":
    main()
