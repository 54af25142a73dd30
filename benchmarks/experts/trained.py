"""How many tokens of a trained model change rank between layers, and how that came about.

    python benchmarks/experts/trained.py FOLDER ...

Each FOLDER is one that train.py has written; without any, table and picture are made anew.
Placements are learnt from one part of a text that the model was not trained on, and judged by
another part, and by a text of another kind. The limit of the load is that of contiguous experts, or
1.1 times the mean if they are more even than that.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import described, machine

from hyparflow.experts.affinity import foreseen
from hyparflow.experts.place import place_experts
from hyparflow.experts.placement import ExpertPlacement
from hyparflow.experts.trace import RoutingTrace
from hyparflow.formats.text import aligned

HERE = Path(__file__).resolve().parent
RANKS = (2, 4, 8)
SEEDS = 5  # placements at random
MOST_LOAD = 1.1  # where contiguous experts have less
HELD_OUT = 0.1  # of what is learnt from: place_experts wants some, and other tokens judge here
Traces = dict[str, RoutingTrace]


def study(folder: Path, seconds: float) -> dict[str, Any]:
    """What the traces of one model tell."""
    found = json.loads((folder / "steps.json").read_text())
    tokens = np.load(folder / "tokens.npz")
    for step in found["steps"]:
        paths = {n: folder / f"{step['step']}-{n}.npz" for n in ("learn", "same", "other")}
        traces = {name: RoutingTrace.load(path) for name, path in paths.items()}
        step |= affinity_of(traces["learn"], traces["same"])
        step["by_byte"] = by_byte(tokens, traces["learn"], traces["same"])
        step["ranks"] = {str(ranks): of_ranks(traces, ranks, seconds) for ranks in RANKS}
        print(found["top_k"], step["step"], row_of_step(step), flush=True)
    return found


def named(run: dict[str, Any]) -> tuple[int, int]:
    """What tells models apart."""
    return run["top_k"], run["seed"]


def affinity_of(learn: RoutingTrace, same: RoutingTrace) -> dict[str, Any]:
    """How far an expert tells the next one, and how even experts are."""
    known, blind = foreseen(learn, same)
    busiest = same.visits().max(axis=1) * same.num_experts / (same.num_tokens * same.top_k)
    return {
        "foreseen": float(known.mean()),
        "without": float(blind.mean()),
        "foreseen_by_layer": known.tolist(),
        "busiest": float(busiest.mean()),
        "busiest_by_layer": busiest.tolist(),
    }


def by_byte(tokens: Any, learn: RoutingTrace, same: RoutingTrace) -> float:
    """The share of tokens that have the expert that most tokens of the same byte have."""
    known, judged = (tokens[name].reshape(-1) for name in ("learn", "same"))
    shares = []
    for layer in range(learn.num_layers):
        counts = np.zeros((256, learn.num_experts), int)
        np.add.at(counts, (known, learn.experts[:, layer, 0]), 1)
        expected = counts.argmax(axis=1)[judged]
        shares.append((same.experts[:, layer] == expected[:, np.newaxis]).any(axis=1).mean())
    return float(np.mean(shares))


def of_ranks(traces: Traces, ranks: int, seconds: float) -> dict[str, Any]:
    """The share of tokens that change rank, and the fullest rank, of all placements."""
    learn, same, other = (traces[name] for name in ("learn", "same", "other"))
    shape = same.num_layers, same.num_experts, ranks
    names = {"model": same.model, "layers": same.layers}
    contiguous = ExpertPlacement.contiguous(*shape, **names)
    random = [ExpertPlacement.random(*shape, seed, **names) for seed in range(SEEDS)]
    placed = learnt_from(learn, ranks, seconds)
    free = learnt_from(learn, ranks, seconds, is_limited=False)
    control = learnt_from(learn.shuffled(), ranks, seconds)
    halves = [replace(other, experts=part) for part in np.array_split(other.experts, 2)]
    by_other = learnt_from(halves[0], ranks, seconds)
    changes = [one.score(same).rank_changes for one in random]
    training = placed.score(learn.split(HELD_OUT)[0])
    scores = {
        "contiguous": contiguous.score(same),
        "placed": placed.score(same),
        "without_limit": free.score(same),
        "other_contiguous": contiguous.score(other),
        "other_placed": placed.score(other),
        "other_half_placed": placed.score(halves[1]),
        "other_half_placed_by_it": by_other.score(halves[1]),
        "control": control.score(same.shuffled(1)),
    }
    found = {name: score.rank_changes for name, score in scores.items()}
    found |= {f"load_{name}": score.largest_load for name, score in scores.items()}
    return found | {
        "random": float(np.mean(changes)),
        "random_deviation": float(np.std(changes, ddof=1)),
        "training": training.rank_changes,
        "load_training": training.largest_load,
        "rounds": 0 if placed.report is None else placed.report.rounds,
        "by_layer": list(scores["placed"].by_layer),
    }


def learnt_from(
    trace: RoutingTrace, ranks: int, seconds: float, is_limited: bool = True
) -> ExpertPlacement:
    """A placement, without more load than contiguous experts have on what it is learnt from."""
    training, _ = trace.split(HELD_OUT)
    shape = trace.num_layers, trace.num_experts, ranks
    names = {"model": trace.model, "layers": trace.layers}
    load = ExpertPlacement.contiguous(*shape, **names).score(training).largest_load
    limit = max(MOST_LOAD, load) if is_limited else None
    return place_experts(trace, ranks, max_load=limit, held_out=HELD_OUT, seconds=seconds)


def percent(share: float) -> str:
    return f"{share:.1%}"


ROW = ("top", "seed", "ranks", "contiguous", "random", "placed", "training", "control")
ROW += ("load: placed, contiguous", "without limit", "its load")
OTHER = ("top", "seed", "ranks", "contiguous", "placed by Shakespeare")
OTHER += ("half: by Shakespeare", "by Python", "load: placed by Shakespeare, contiguous")
STEPS = ("top", "seed", "step", "bits per byte", "by byte", "foreseen", "without", "busiest expert")
STEPS += tuple(f"{ranks} ranks: stay, control" for ranks in RANKS)


def row_of_step(step: dict[str, Any]) -> list[str]:
    """How well the model does, and how much affinity it has."""
    found = [step["ranks"][str(ranks)] for ranks in RANKS]
    stays = [f"{percent(1 - one['placed'])}, {percent(1 - one['control'])}" for one in found]
    return [
        *(str(step["step"]), f"{step['bits']['same']:.2f}", percent(step["by_byte"])),
        *(percent(step["foreseen"]), percent(step["without"]), f"{step['busiest']:.2f}", *stays),
    ]


def rows_of_ranks(run: dict[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """The lines of a trained model, of the text that it is of, and of another."""
    own, other = [], []
    for ranks, found in run["steps"][-1]["ranks"].items():
        first = [str(run["top_k"]), str(run["seed"]), ranks]
        random = f"{percent(found['random'])} ({percent(found['random_deviation'])})"
        shares = (percent(found[name]) for name in ("placed", "training", "control"))
        loads = f"{found['load_placed']:.2f}, {found['load_contiguous']:.2f}"
        free = percent(found["without_limit"]), f"{found['load_without_limit']:.2f}"
        own.append([*first, percent(found["contiguous"]), random, *shares, loads, *free])
        names = ("contiguous", "placed", "half_placed", "half_placed_by_it")
        loads = f"{found['load_other_placed']:.2f}, {found['load_other_contiguous']:.2f}"
        other.append([*first, *(percent(found[f"other_{name}"]) for name in names), loads])
    return own, other


def report(results: dict[str, Any]) -> str:
    """The tables as text."""
    own: list[list[str]] = []
    other: list[list[str]] = []
    growth: list[list[str]] = []
    for run in results["runs"]:
        of_own, of_other = rows_of_ranks(run)
        own, other = own + of_own, other + of_other
        first = [str(run["top_k"]), str(run["seed"])]
        growth += [[*first, *row_of_step(step)] for step in run["steps"]]
    tables = ["\n".join(aligned([ROW, *own])), "\n".join(aligned([OTHER, *other]))]
    tables.append("\n".join(aligned([STEPS, *growth])))
    heads = (
        "Tokens of Shakespeare that change rank:",
        "Tokens of Python's programs that change rank:",
        "On the way there:",
    )
    parts = [f"{head}\n\n{table}" for head, table in zip(heads, tables, strict=True)]
    return "\n\n".join([described(results["machine"]), *parts])


def draw(results: dict[str, Any], path: Path) -> None:
    """How affinity grows, for each model a row of panels."""
    from matplotlib.figure import Figure

    runs = results["runs"]
    figure = Figure(figsize=(16, 3.9 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), 4, squeeze=False)
    panels = (draw_placements, draw_ranks, draw_foreseen, draw_model)
    for run, row in zip(runs, grid, strict=True):
        for axes, panel in zip(row, panels, strict=True):
            panel(axes, run["steps"])
            axes.set_xticks(range(len(run["steps"])), [str(step["step"]) for step in run["steps"]])
            axes.tick_params(axis="x", labelsize=8)
            axes.set_xlabel(f"training steps, top {run['top_k']}, seed {run['seed']}")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def draw_placements(axes: Any, steps: list[dict[str, Any]]) -> None:
    lines = (
        ("placed", "placed by affinity", "#0072b2", "o-"),
        ("other_placed", "the same, of Python's programs", "#56b4e9", "s--"),
        ("contiguous", "contiguous", "#e69f00", "o-"),
        ("random", f"random, mean of {SEEDS}", "#999999", "o-"),
        ("control", "control: placed, tokens shuffled", "#d55e00", "x:"),
    )
    for name, label, colour, style in lines:
        stays = [100 * (1 - step["ranks"]["4"][name]) for step in steps]
        axes.plot(stays, style, ms=4, color=colour, label=label)
    axes.axhline(25, color="black", linewidth=0.8, linestyle=":")
    axes.set(title="4 ranks (dotted: a quarter)", ylim=(0, 110))
    axes.set_ylabel("tokens that stay on their rank (%)")


def draw_ranks(axes: Any, steps: list[dict[str, Any]]) -> None:
    for ranks, colour in zip(RANKS, ("#009e73", "#0072b2", "#cc79a7"), strict=True):
        gains = [step["ranks"][str(ranks)] for step in steps]
        gains = [100 * (found["control"] - found["placed"]) for found in gains]
        axes.plot(gains, "o-", ms=4, color=colour, label=f"{ranks} ranks")
    axes.set(title="affinity: placed less control", ylim=(0, 50))
    axes.set_ylabel("more tokens stay on their rank (points)")


def draw_foreseen(axes: Any, steps: list[dict[str, Any]]) -> None:
    lines = (
        ("by_byte", "the byte", "#009e73"),
        ("foreseen", "the expert before", "#0072b2"),
        ("without", "nothing", "#999999"),
    )
    for name, label, colour in lines:
        shares = [100 * step[name] for step in steps]
        axes.plot(shares, "o-", ms=4, color=colour, label=label)
    axes.set(title="what tells the expert", ylim=(0, 100))
    axes.set_ylabel("tokens with the likeliest expert (%)")


def draw_model(axes: Any, steps: list[dict[str, Any]]) -> None:
    lines = (
        ([step["bits"]["same"] for step in steps], "bits per byte", "black"),
        ([step["busiest"] for step in steps], "busiest expert, by the mean", "#d55e00"),
    )
    for values, label, colour in lines:
        axes.plot(values, "o-", ms=4, color=colour, label=label)
    axes.set(title="the model, on text held out", ylim=(0, None))


def write(results: dict[str, Any], path: Path) -> None:
    """The results, the table and the picture made of them."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    lines = [f"    {line}".rstrip() for line in report(results).splitlines()]
    path.with_suffix(".rst").write_text("\n".join(["::", "", *lines]) + "\n")
    draw(results, path.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a search")
    parser.add_argument("--results", type=Path, default=HERE / "trained.json")
    args = parser.parse_args()

    there = args.results.exists()
    results = json.loads(args.results.read_text()) if there else {"runs": []}
    for folder in args.folders:
        found = study(folder, args.seconds)
        results["machine"] = machine()
        kept = [run for run in results["runs"] if named(run) != named(found)]
        results["runs"] = sorted([*kept, found], key=named)
        write(results, args.results)
    write(results, args.results)
    print(report(results))


if __name__ == "__main__":
    main()
