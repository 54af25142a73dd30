"""Generates by experts on two hosts, over networks of several speeds.

    python benchmarks/experts/network.py --model FOLDER --ranks-per-host 1 --save network-2.json
    python benchmarks/experts/network.py --report network-2.json network-4.json

FOLDER is what `network_model.py` has saved. The hosts are two network namespaces of this machine,
joined by a cable that delays frames and limits their rate (`tests/jobs/cable.py`; many kernels have
no netem for `tc`); so this needs root. In turns, so that all meet the same machine, tokens come
home or stay at the ranks of their experts, which lie in order or by affinity. The report is a table
beside what latency and bandwidth predict.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.resolve().parents[1] / "tests"))
from jobs.hosts import Hosts  # noqa: E402

# Bytes per second, and the seconds that a frame is late; the cable itself takes some 25 us more.
NETWORKS = {
    "as it is": (float("inf"), 0.0),
    "10 Gbit/s": (1.25e9, 25e-6),
    "1 Gbit/s": (1.25e8, 25e-6),
    "10 Gbit/s, far": (1.25e9, 1e-3),
}
FRAME = 9000  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--report", type=Path, nargs="+")
    args = parser.parse_args()
    if args.report:
        (HERE / "network.rst").write_text(report([json.loads(x.read_text()) for x in args.report]))
        return
    with tempfile.TemporaryDirectory() as folder, Hosts(Path(folder), FRAME) as hosts:
        wanted = Path(folder) / "wanted"
        where = ",".join(f"{address}:{args.ranks_per_host}" for address in hosts.addresses)
        ranks = str(2 * args.ranks_per_host)
        words = ["run", "-n", ranks, "--hosts", where, "--oversubscribe", HERE / "network_job.py"]
        words += [args.model.resolve(), args.save.resolve(), args.turns, wanted, *NETWORKS]
        command = [*hosts.before, sys.executable, "-m", "hyparflow.cli", *map(str, words)]
        job = subprocess.Popen(command, env=os.environ | hosts.environment)
        while job.poll() is None:
            if wanted.exists():
                hosts.cable.rate, hosts.cable.delay = NETWORKS[wanted.read_text()]
                wanted.unlink()
            time.sleep(0.01)
    if job.returncode:
        sys.exit(job.returncode)
    print(report([json.loads(args.save.read_text())]))


def report(studies: list[dict]) -> str:
    """A table of all studies."""
    head = (
        "ranks", "network", "link, as measured", "tokens", "experts", "tokens/s",
        "predicted", "CPU ms a token", "KiB an iteration",
    )  # fmt: skip
    rows = [head]
    for study in studies:
        links = {name: link_of(study, name) for name in study["links"]}
        for name, link in links.items():
            for case in study["cases"]:
                found = median_of(study, name, case, "seconds")
                predicted = predicted_seconds(study, name, case)
                tokens = study["rows"] * study["steps"]
                error = "" if predicted is None else f" ({found / predicted - 1:+.0%})"
                told = f"{tokens / predicted:,.0f}{error}" if predicted else "starts from it"
                rows.append(
                    (
                        str(study["ranks"]),
                        name,
                        f"{1e6 * link['latency']:.0f} us, {8e-9 * link['bandwidth']:.2f} Gbit/s",
                        case["mode"],
                        case["placement"],
                        f"{tokens / found:,.0f}",
                        told,
                        f"{1e3 * median_of(study, name, case, 'processor') / tokens:.2f}",
                        f"{case['bytes'] / study['steps'] / 1024:.0f}",
                    )
                )
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    line = "  ".join("=" * width for width in widths)
    texts = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([line, texts[0].rstrip(), line, *(x.rstrip() for x in texts[1:]), line, ""])


def link_of(study: dict, name: str) -> dict:
    """The connection between the hosts, as it was measured."""
    found: dict = study["links"][name]["between"]
    return found


def median_of(study: dict, name: str, case: dict, what: str) -> float:
    """The median of the turns of a case."""
    turns = [x for x in study["turns"] if x["network"] == name]
    wanted = case["mode"], case["placement"]
    return statistics.median(x[what] for x in turns if (x["mode"], x["placement"]) == wanted)


def predicted_seconds(study: dict, name: str, case: dict) -> float | None:
    """What a case takes without a limit, less its exchanges there, with those of this network."""
    free = study["unlimited"]
    if name == free:
        return None
    told = study["predicted"]
    key = f"{case['mode']} {case['placement']}"
    exchanges = {x: study["steps"] * told[x][key] for x in (name, free)}
    return median_of(study, free, case, "seconds") - exchanges[free] + exchanges[name]


if __name__ == "__main__":
    main()
