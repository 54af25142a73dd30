"""What each rank does for `network.py`: generates in turns, by several modes over several networks.

It is started by that, with: model folder, file to write, number of turns, the file that asks for a
network, and the names of networks, the one without a limit first.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

import hyparflow as hf
from hyparflow.comm.ranks import world
from hyparflow.comm.world import World
from hyparflow.engine.weights.groups import groups_of
from hyparflow.pipeline.grid import Grid
from hyparflow.planning.costs.expert_exchanges import (
    ExpertTraffic,
    coherent_seconds,
    home_seconds,
)
from hyparflow.planning.costs.measure_network import measure_network
from hyparflow.serving.decoding.samplers import sampling_of
from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.prepare import prepared_replicas
from hyparflow.serving.ranks.following_rank import FollowingRank
from hyparflow.serving.ranks.shared_experts import ExpertMode, shared_experts
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import Request

ROWS, STEPS = 32, 64
MODES = {"home": ExpertMode.HOME, "stay": ExpertMode.COHERENT}


def main() -> None:
    folder, file, turns, wanted, *networks = sys.argv[1:]
    ranks = world()
    if ranks is None:
        raise SystemExit("start it by network.py")
    model = keras.saving.load_model(Path(folder) / "model.keras", compile=False)
    model.compile(sampler="greedy")
    trace = hf.RoutingTrace.load(Path(folder) / "trace.npz")
    affinity = ranks.broadcast_object(hf.place_experts(trace, num_ranks=ranks.size), 0, "placement")
    placements = {"in order": affinity.as_contiguous(), "by affinity": affinity}
    cases = [
        Case(model, ranks, mode, name, placement, trace)
        for mode in MODES
        for name, placement in placements.items()
    ]
    prompts = np.load(Path(folder) / "prompts.npy")[:ROWS, 0].tolist()
    found: dict[str, Any] = {"ranks": ranks.size, "rows": ROWS, "steps": STEPS}
    found |= {"unlimited": networks[0], "links": {}, "predicted": {}, "turns": []}
    for name in networks:
        join_by(ranks, name, Path(wanted))
        cluster = measure_network(ranks)
        found["links"][name] = dataclasses.asdict(cluster)
        found["predicted"][name] = {case.name: case.predicted(cluster) for case in cases}
    for case in cases:
        case.run(prompts)  # compiles
        case.count(prompts)
    found["cases"] = [case.told for case in cases]
    for turn in range(int(turns)):
        for name in networks:
            join_by(ranks, name, Path(wanted))
            for case in cases:
                found["turns"].append(case.told | case.run(prompts) | {"network": name})
        if ranks.rank == 0:
            print(f"turn {turn + 1} of {turns}", flush=True)
    if ranks.rank == 0:
        Path(file).write_text(json.dumps(found, indent=1) + "\n")


class Case:
    """A mode and a placement.

    Args:
        model: generates.
        ranks: all of them.
        mode: what tokens do; a key of MODES.
        placed: what the placement is called.
        placement: which rank has which expert.
        trace: of tokens, some of which the placement was not learnt from.
    """

    def __init__(
        self,
        model: Any,
        ranks: World,
        mode: str,
        placed: str,
        placement: hf.ExpertPlacement,
        trace: hf.RoutingTrace,
    ) -> None:
        self.name, self._ranks, self._mode = f"{mode} {placed}", ranks, mode
        self.told: dict[str, Any] = {"mode": mode, "placement": placed}
        grid = Grid(1, 1, num_shards=ranks.size)
        experts = shared_experts(model, ranks.size, placement, MODES[mode])
        self._replicas = prepared_replicas(model, grid, ranks, experts)
        self._ledger = groups_of(grid, ranks).shards.ledger
        self._sampling = sampling_of("random", 3)
        backbone = model.backbone
        width = 4 * backbone.hidden_dim
        self._traffic = ExpertTraffic(
            layers=backbone.num_layers,
            rows=ROWS,
            row_bytes=width,
            cache_bytes=2 * width * backbone.num_layers,
            top_k=1,
            away=1 - 1 / ranks.size,
            changes=placement.score(trace).rank_changes,
        )

    def predicted(self, cluster: hf.Cluster) -> float:
        """The seconds of the exchanges of one iteration."""
        seconds = home_seconds if self._mode == "home" else coherent_seconds
        return seconds(self._traffic, cluster)

    def run(self, prompts: list[int]) -> dict[str, float]:
        """One turn: seconds, and those of the processor, of both hosts. Collective."""
        together(self._ranks)
        start, processor = time.perf_counter(), time.process_time()
        if isinstance(self._replicas, FollowingRank):
            self._replicas.follow()
        else:
            engine = ServingEngine(self._replicas, Limits(ROWS, STEPS + 1, fewest=ROWS, window=16))
            for number, token in enumerate(prompts):
                sampling = dataclasses.replace(self._sampling, seed=number)
                engine.submit(Request(number, (token,), STEPS, sampling=sampling))
            while not engine.is_idle:
                engine.advance()
            self._replicas.close()
        seconds = time.perf_counter() - start
        used = self._ranks.all_gather_objects(time.process_time() - processor, "seconds")
        return {"seconds": seconds, "processor": sum(used)}

    def count(self, prompts: list[int]) -> None:
        """Note what one turn exchanges. Collective."""
        self._ledger.clear()
        self.run(prompts)
        entries = self._ledger.entries.values()
        mine = sum(entry.calls for entry in entries), sum(entry.off_rank for entry in entries)
        all_of_them = self._ranks.all_gather_objects(mine, "bytes")
        self.told["calls"] = all_of_them[0][0]
        self.told["bytes"] = sum(count for _, count in all_of_them)


def join_by(ranks: World, name: str, wanted: Path) -> None:
    """Have the hosts joined by another network. Collective."""
    together(ranks)
    if ranks.rank == 0:
        written = wanted.with_suffix(".new")
        written.write_text(name)
        written.rename(wanted)
        while wanted.exists():
            time.sleep(0.01)
    together(ranks)


def together(ranks: World) -> None:
    """Wait for all. Collective."""
    ranks.all_gather_objects(None, "the others")


if __name__ == "__main__":
    main()
