"""The paper's machines on paper: ResNet-1001 on 1 to 512 nodes.

    TF_NUM_INTRAOP_THREADS=1 OMP_NUM_THREADS=1 python benchmarks/scaling/run.py

Measures the costs of ResNet-1001 on this machine with one thread (or takes --costs), and simulates
its training by data, model and hybrid parallelism on clusters of the paper's kind; writes
costs.json, results.json, table.txt and scaling.png beside this file, or to --output.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import hyparflow as hf
from hyparflow.pipeline.operations import Operation, OperationGraph
from hyparflow.planning.search.layouts import consider
from hyparflow.planning.search.problem import Constraints, Problem, constrained

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"

# Latency and bandwidth as their makers state them; within a node, those of shared memory.
CLUSTERS = {
    "Skylake, Omni-Path": hf.Cluster(
        1, 48, within=hf.Link(1e-6, 6e9), between=hf.Link(1.5e-6, 12.5e9)
    ),
    "Frontera, HDR InfiniBand": hf.Cluster(
        1, 56, within=hf.Link(1e-6, 6e9), between=hf.Link(1e-6, 25e9)
    ),
}
PAPER = {("Skylake, Omni-Path", 128): 110, ("Frontera, HDR InfiniBand", 512): 481}
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PER_NODE = 256  # rows of the global batch for each node in weak scaling
VARIATION = 0.05  # standard deviation of a rank's step, for the case that ranks are not alike
FIXED = 32768  # rows of the global batch in strong scaling


def main() -> None:
    args = parse()
    args.output.mkdir(parents=True, exist_ok=True)
    graph, costs = known(args)
    results = [
        row
        for name, cluster in CLUSTERS.items()
        for scaling in ("weak", "strong")
        for row in scale(graph, costs, name, cluster, scaling)
    ]
    changes = list(sensitivity(graph, costs))
    text = table(results) + "\n\n" + assumptions(changes)
    print(text)
    (args.output / "table.txt").write_text(text + "\n")
    content = {"machine": costs.machine, "results": results, "assumptions": changes}
    (args.output / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(results, args.output / "scaling.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="ResNet-1001 on up to 512 nodes, simulated.")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--depth", type=int, default=1001)
    parser.add_argument("--costs", type=Path, help="costs and graph that an earlier run wrote")
    return parser.parse_args()


def known(args: argparse.Namespace) -> tuple[OperationGraph, hf.Costs]:
    """The model's operations and what they cost, measured or as an earlier run wrote them."""
    path = args.costs or args.output / "costs.json"
    if args.costs is None:
        sys.path.insert(0, str(EXAMPLES))
        import cifar10_resnet

        from hyparflow.model.graph import FlatGraph
        from hyparflow.model.keras_internals.layers import opened_graph
        from hyparflow.planning.costs.measure import measure

        model = cifar10_resnet.build(args.depth, version=2)
        model.compile("sgd", "sparse_categorical_crossentropy")
        flat = FlatGraph(model, opened_graph(model))
        start = time.perf_counter()
        costs = measure(flat, (1, 4, 16), model.optimizer)
        print(f"measured in {time.perf_counter() - start:.0f} s", flush=True)
        costs.save(path)
        graph = flat.operation_graph(model.trainable_variables)
        write_graph(graph, path.with_name("graph.json"))
    return read_graph(path.with_name("graph.json")), hf.Costs.load(path)


def write_graph(graph: OperationGraph, path: Path) -> None:
    rows = [[op.name, op.inputs, op.outputs] for op in graph.operations]
    content = [rows, graph.inputs, graph.outputs, sorted(graph.gradient_tensors)]
    path.write_text(json.dumps(content) + "\n")


def read_graph(path: Path) -> OperationGraph:
    rows, inputs, outputs, gradients = json.loads(path.read_text())
    operations = tuple(Operation(name, tuple(i), tuple(o)) for name, i, o in rows)
    return OperationGraph(operations, tuple(inputs), tuple(outputs), frozenset(gradients))


def wishes_of(strategy: str, cluster: hf.Cluster, batch: int) -> Constraints | None:
    """What to ask the planner for; None where a strategy cannot use so many ranks."""
    ranks = cluster.num_ranks
    if strategy == "data":
        return constrained(ranks, num_partitions=1) if ranks <= batch else None
    if strategy == "model":
        return constrained(ranks, num_replicas=1, schedule="1f1b") if ranks <= 250 else None
    return constrained(ranks, num_partitions=cluster.ranks_per_node, schedule="1f1b")


def scale(
    graph: OperationGraph, costs: hf.Costs, name: str, cluster: hf.Cluster, scaling: str
) -> Iterator[dict[str, Any]]:
    """The best layout of each strategy on each number of nodes."""
    for nodes in NODES:
        machine = dataclasses.replace(cluster, nodes=nodes)
        batch = PER_NODE * nodes if scaling == "weak" else FIXED
        for strategy in ("data", "model", "hybrid"):
            wishes = wishes_of(strategy, machine, batch)
            if wishes is None:
                continue
            best = consider(Problem(graph, costs, machine, batch), wishes)[0]
            yield {
                "cluster": name,
                "scaling": scaling,
                "strategy": strategy,
                "nodes": nodes,
                "batch": batch,
                "replicas": best.candidate.grid.num_replicas,
                "partitions": best.candidate.grid.num_partitions,
                "microbatches": best.candidate.num_microbatches,
                "seconds": best.step_seconds,
                "images_per_second": batch / best.step_seconds,
                "idle": best.idle_share,
                "allreduce": max(best.reduce),
            }


def sensitivity(graph: OperationGraph, costs: hf.Costs) -> Iterator[dict[str, Any]]:
    """How far hybrid's speed-up on 128 nodes over one moves with each assumption."""
    base = CLUSTERS["Skylake, Omni-Path"]
    between, within, over = base.between, base.within, costs.overheads
    cases: dict[str, tuple[hf.Cluster, hf.Costs, int]] = {
        "as stated": (base, costs, PER_NODE),
        "latency between nodes x 10": (
            dataclasses.replace(base, between=hf.Link(10 * between.latency, between.bandwidth)),
            costs,
            PER_NODE,
        ),
        "bandwidth between nodes / 4": (
            dataclasses.replace(base, between=hf.Link(between.latency, between.bandwidth / 4)),
            costs,
            PER_NODE,
        ),
        "bandwidth within a node / 4": (
            dataclasses.replace(base, within=hf.Link(within.latency, within.bandwidth / 4)),
            costs,
            PER_NODE,
        ),
        "ranks twice as fast": (dataclasses.replace(base, speed=2.0), costs, PER_NODE),
        "ranks half as fast": (dataclasses.replace(base, speed=0.5), costs, PER_NODE),
        "no cost of calls and messages": (
            base,
            dataclasses.replace(
                costs, overheads=dataclasses.replace(over, call=0.0, message=0.0, step=0.0)
            ),
            PER_NODE,
        ),
        "ranks add up a quarter as fast": (
            dataclasses.replace(base, sum_bandwidth=base.sum_bandwidth / 4),
            costs,
            PER_NODE,
        ),
        "ring only": (dataclasses.replace(base, allreduce="ring"), costs, PER_NODE),
        "tree only": (dataclasses.replace(base, allreduce="tree"), costs, PER_NODE),
        "ranks of a node slow each other by half": (
            base,
            dataclasses.replace(costs, crowd=48, crowded=np.full((3, len(costs.rows)), 1.5)),
            PER_NODE,
        ),
        "a quarter of the rows per node": (base, costs, PER_NODE // 4),
    }
    for name, (cluster, table_, rows) in cases.items():
        rates = []
        for nodes in (1, 128):
            machine = dataclasses.replace(cluster, nodes=nodes)
            wishes = wishes_of("hybrid", machine, rows * nodes)
            if wishes is None:
                continue
            best = consider(Problem(graph, table_, machine, rows * nodes), wishes)[0]
            rates.append(rows * nodes / best.step_seconds)
        yield {"assumption": name, "images_per_second": rates[1], "speedup": rates[1] / rates[0]}
        if name == "as stated":
            few, many = (slowest(base.ranks_per_node * nodes) for nodes in (1, 128))
            yield {
                "assumption": f"steps of a rank vary by {VARIATION:.0%}",
                "images_per_second": rates[1] / many,
                "speedup": rates[1] / rates[0] * few / many,
            }


def slowest(ranks: int) -> float:
    """How many times the mean the slowest of so many ranks is likely to take: all wait for it."""
    return 1 + VARIATION * math.sqrt(2 * math.log(ranks))


def table(results: list[dict[str, Any]]) -> str:
    """All rows, with the speed-up over one node of the same strategy, and the paper's."""
    lines = [
        f"{'cluster':26} {'scaling':8} {'strategy':9} {'nodes':>5} {'batch':>7} {'R x P x M':>16} "
        f"{'img/s':>10} {'speed-up':>9} {'idle':>6}  paper"
    ]
    for row in results:
        layout = f"{row['replicas']} x {row['partitions']} x {row['microbatches']}"
        paper = PAPER.get((row["cluster"], row["nodes"])) if row["strategy"] == "hybrid" else None
        lines.append(
            f"{row['cluster']:26} {row['scaling']:8} {row['strategy']:9} {row['nodes']:5} "
            f"{row['batch']:7} {layout:>16} {row['images_per_second']:10.1f} "
            f"{speedup(row, results):9.1f} {row['idle']:6.1%}  {paper or ''}"
        )
    return "\n".join(lines)


def speedup(row: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Over one node with the same strategy; over one node's hybrid where that has no row."""
    same = [r for r in results if all(r[k] == row[k] for k in ("cluster", "scaling", "strategy"))]
    single = next((r for r in same if r["nodes"] == 1), None)
    return row["images_per_second"] / single["images_per_second"] if single else float("nan")


def assumptions(changes: list[dict[str, Any]]) -> str:
    lines = ["Hybrid on 128 nodes of Skylake, weak scaling, over one node:"]
    for row in changes:
        rate = f"{row['images_per_second']:.1f} img/s"
        lines.append(f"  {row['assumption']:32} {row['speedup']:7.1f} x  {rate}")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    colours = {"data": "#e69f00", "model": "#009e73", "hybrid": "#0072b2"}
    for row, name in zip(axes, CLUSTERS, strict=True):
        for axis, scaling in zip(row, ("weak", "strong"), strict=True):
            for strategy, colour in colours.items():
                mine = [
                    r
                    for r in results
                    if (r["cluster"], r["scaling"], r["strategy"]) == (name, scaling, strategy)
                ]
                nodes = [r["nodes"] for r in mine]
                rates = [r["images_per_second"] for r in mine]
                axis.plot(nodes, rates, "o-", color=colour, label=strategy, markersize=4)
                if strategy == "hybrid" and mine:
                    ideal = [rates[0] * n for n in NODES]
                    axis.plot(NODES, ideal, ":", color="black", label="hybrid, linear")
                    for (cluster, count), factor in PAPER.items():
                        if cluster == name:
                            axis.plot(
                                count, factor * rates[0], "*", color="#d55e00", markersize=14,
                                label=f"paper: {factor} x on {count} nodes",
                            )  # fmt: skip
            ticks = NODES
            axis.set(xscale="log", yscale="log", title=f"{name}, {scaling} scaling")
            axis.set_xticks(ticks, [str(n) for n in ticks])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.set(xlabel="nodes", ylabel="images/s")
            axis.legend(fontsize=8)
    figure.suptitle("ResNet-1001, simulated from costs measured on one core")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
