"""hyparflow's engine beside KerasHub's `generate`, in turns within one process."""

from typing import Any

from workers import Worker

__all__ = ["KINDS", "RANKS", "against_keras", "cold", "on_ranks"]

KINDS = ("gpt2", "llama")
COMPILED = {"plain": "jit_compile=False", "jit": "jit_compile=True"}
ROWS = (1, 4, 8, 16, 32)
# Name -> ranks, and options of `hyparflow.generate`.
RANKS: dict[str, tuple[int, dict[str, int]]] = {
    "1 rank": (1, {}),
    "2 replicas": (2, {"num_replicas": 2}),
    "2 partitions": (2, {"num_partitions": 2}),
    "2 shards": (2, {"num_shards": 2}),
    "4 replicas": (4, {"num_replicas": 4}),
    "4 partitions": (4, {"num_partitions": 4}),
    "2 partitions of 2 shards": (4, {"num_partitions": 2, "num_shards": 2}),
}


def against_keras(
    kind: str, compiled: str, rounds: int, parts: int, threads: int = 1
) -> dict[str, Any]:
    """Turns of the engine, the server, and KerasHub's three ways.

    Args:
        kind, compiled: the model, and whether KerasHub compiles by XLA; see `case.py`.
        rounds: how many.
        parts: KerasHub computes one of so many parts of the requests in a turn, for it is slow;
            `share` says how much that is. Of `padded` half of it.
        threads: of TensorFlow.
    """
    worker = Worker(kind, "case.py", kind, compiled, threads=threads)
    found: dict[str, Any] = {name: [] for name in ("engine", "serve", "exact", "padded", "static")}

    def turn(do: str, keep: bool = True, **rest: Any) -> None:
        (took,) = worker.ask(do, **rest)
        if keep:
            found[do].append(took)
        print(f"{kind} {compiled} {do}: {took}"[:150], flush=True)

    turn("engine", keep=False)
    turn("serve", keep=False)
    (found["compile"],) = worker.ask("compile")
    turn("static", keep=False) if compiled == "jit" else None  # compiles
    for number in range(rounds):
        turn("engine")
        turn("serve")
        turn("exact", part=number, parts=parts)
        turn("engine")
        turn("padded", part=number, parts=2 * parts)
        if number % 2 == 0:
            turn("static")
    turn("engine")
    lengths: dict[str, Any] = {}
    if compiled == "plain":
        for length in (128, 256):
            for rows in ROWS:
                worker.ask("step", rows=rows, length=length)  # compiles
            turns = [
                {rows: worker.ask("step", rows=rows, length=length)[0] for rows in ROWS}
                for _ in range(3)
            ]
            lengths[str(length)] = {str(rows): [x[rows] for x in turns] for rows in ROWS}
        found["step"] = lengths
    worker.end()
    return found


def cold(kind: str) -> dict[str, Any]:
    """The first call of a process that has nothing compiled, and the next."""
    found = {}
    for do in ("generate", "static"):
        worker = Worker(kind, "case.py", kind, "plain")
        found[do] = [worker.ask(do)[0] for _ in range(2 if do == "generate" else 1)]
        worker.end()
    print(found, flush=True)
    return found


def on_ranks(kind: str, names: list[str], rounds: int, mpirun: str) -> dict[str, Any]:
    """Turns of `hyparflow.generate` over ranks, one thread each."""
    workers = {
        name: Worker(name, "case.py", kind, "plain", ranks=RANKS[name][0], mpirun=mpirun)
        for name in names
    }
    found: dict[str, Any] = {name: [] for name in names} | {"first calls": {}}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            took = worker.ask("generate", **RANKS[name][1])
            if not number:  # it compiles
                found["first calls"][name] = took
            else:
                found[name].append(took)
                speed = took[0]["tokens"] / max(rank["wall"] for rank in took)
                print(f"{kind} {name}: {speed:.0f} tok/s", flush=True)
    for worker in workers.values():
        worker.end()
    return found
