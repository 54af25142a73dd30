"""How many tokens change rank between layers with experts that hf.place_experts places.

    python benchmarks/experts/run.py
    python benchmarks/experts/run.py --cases 16,4,12 --highs 10
    python benchmarks/experts/run.py --report

Each case is a made-up router of so many experts, ranks and layers. Its tokens are halved: one half
is learnt from, all shares are of the other unless it says "training". HiGHS has the same tokens to
learn from, the same limit of the load, and more time. The control has the same choices in each
layer, dealt to tokens anew: there is nothing to gain.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exact import exact_placement, most_that_may_stay
from machine import described, machine
from synthetic import made_up_traces

from hyparflow.experts.place import place_experts
from hyparflow.experts.placement import ExpertPlacement
from hyparflow.experts.trace import RoutingTrace
from hyparflow.formats.text import aligned

HERE = Path(__file__).resolve().parent
# Experts, ranks, layers. Few experts with few tokens each are harder to deal evenly.
CASES = {(8, 2, 6): 1.1, (16, 4, 12): 1.2, (64, 4, 24): 1.1, (64, 8, 24): 1.1}  # most load
TOKENS = 4000  # to learn from, and as many to judge by
HALF = 0.5
MAX_LOAD = 1.1  # of other cases


def study(case: tuple[int, int, int], args: argparse.Namespace) -> dict[str, Any]:
    """What one case gives."""
    num_experts, num_ranks, num_layers = case
    parts = made_up_traces(num_experts, num_layers, TOKENS, num_experts + num_ranks)
    trace = RoutingTrace(np.concatenate([part.experts for part in parts]), num_experts)
    most = CASES.get(case, MAX_LOAD)
    wanted: dict[str, Any] = {"held_out": HALF, "seconds": args.seconds, "seed": args.seed}
    begun = time.perf_counter(), time.process_time()
    placed = place_experts(trace, num_ranks, max_load=most, **wanted)
    taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
    free = place_experts(trace, num_ranks, max_load=None, **wanted)
    control = place_experts(trace.shuffled(), num_ranks, max_load=most, **wanted)
    report = placed.report
    found = {
        "experts": num_experts,
        "ranks": num_ranks,
        "layers": num_layers,
        "seconds": taken[0],
        "processor_seconds": taken[1],
        "rounds": report.rounds,
        "max_load": most,
        "contiguous": report.contiguous.rank_changes,
        "random": report.random.rank_changes,
        "held_out": report.held_out.rank_changes,
        "training": report.training.rank_changes,
        "load": report.training.largest_load,
        "load_held_out": report.held_out.largest_load,
        "load_contiguous": report.contiguous.largest_load,
        "without_limit": free.report.held_out.rank_changes,
        "load_without_limit": free.report.training.largest_load,
        "control": control.report.held_out.rank_changes,
        "control_training": control.report.training.rank_changes,
    }
    return found | (compared(trace, num_ranks, most, args) if args.highs else {})


def compared(
    trace: RoutingTrace, num_ranks: int, most: float, args: argparse.Namespace
) -> dict[str, Any]:
    """What HiGHS finds with the tokens that the search has learnt from."""
    training, judged = trace.split(HALF, args.seed)
    affinity, visits = training.affinity(), training.visits()
    limit = most * training.num_tokens / num_ranks
    begun = time.perf_counter()
    exact = exact_placement(affinity, visits, num_ranks, limit, args.highs)
    total = affinity.sum()
    found = {
        "highs_seconds": time.perf_counter() - begun,
        "highs_is_best": exact.is_best,
        "highs_training": None,
        "highs_held_out": None,
        "least": 1 - most_that_may_stay(affinity, num_ranks) / total,
    }
    if exact.ranks is not None:
        placement = ExpertPlacement.of_array(exact.ranks, num_ranks)
        found["highs_training"] = placement.score(training).rank_changes
        found["highs_held_out"] = placement.score(judged).rank_changes
    return found


def row(case: dict[str, Any]) -> list[str]:
    """The line of a case in the table."""
    highs = [percent(case.get(name)) for name in ("highs_training", "highs_held_out")]
    best = " (proved)" if case.get("highs_is_best") else ""
    return [
        *(str(case[name]) for name in ("experts", "ranks", "layers")),
        percent(case["contiguous"]),
        percent(case["random"]),
        percent(case["held_out"]),
        percent(case["training"]),
        highs[0] + best,
        highs[1],
        percent(case.get("least")),
        f"{case['load']:.2f}, {case['load_held_out']:.2f}, {case['load_contiguous']:.2f}",
        percent(case["control"]),
        percent(case["control_training"]),
    ]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


TITLES = (
    *("experts", "ranks", "layers", "contiguous", "random", "placed", "training"),
    *("HiGHS, training", "HiGHS", "at least", "load: training, placed, contiguous"),
    *("control", "control, training"),
)


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    rows = aligned([TITLES, *map(row, results["synthetic"])])
    return "\n".join([described(results["machine"]), "", *rows])


def write(results: dict[str, Any], path: Path) -> None:
    """The results, and the table made of them."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    lines = [f"    {line}".rstrip() for line in report(results).splitlines()]
    path.with_name("table.rst").write_text("\n".join(["::", "", *lines]) + "\n")


def case_of(text: str) -> tuple[int, int, int]:
    experts, ranks, layers = map(int, text.split(","))
    return experts, ranks, layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", type=case_of, default=tuple(CASES), help="E,G,L ...")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the search")
    parser.add_argument("--highs", type=float, default=60.0, help="seconds of HiGHS; 0: without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only write the table anew")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    args = parser.parse_args()

    there = args.results.exists()
    results = json.loads(args.results.read_text()) if there else {"synthetic": []}
    if not args.report:
        results["machine"] = machine()
        for case in args.cases:
            found = study(case, args)
            kept = [
                c for c in results["synthetic"] if (c["experts"], c["ranks"], c["layers"]) != case
            ]
            results["synthetic"] = sorted(
                [*kept, found], key=lambda c: (c["experts"], c["ranks"], c["layers"])
            )
            write(results, args.results)
            print("  ".join(row(found)), flush=True)
    write(results, args.results)
    print(report(results))


if __name__ == "__main__":
    main()
