"""Generation with continuous batching: throughput, rivals, arrivals and latency.

    python benchmarks/serving/run.py
    python benchmarks/serving/run.py --parts throughput --kinds gpt2 --compiled plain
    python benchmarks/serving/run.py --parts rivals --python PYTHON_WITH_RIVALS
    python benchmarks/serving/run.py --report

All figures are kept in results.json, from which table.rst, arrivals.png and latency.png are made.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import arrivals
import latency
import pictures
import report
import rivals
import throughput
from machine import machine

HERE = Path(__file__).resolve().parent
PARTS = ("throughput", "cold", "ranks", "rivals", "arrivals", "latency")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kinds", nargs="*", choices=throughput.KINDS, default=throughput.KINDS)
    parser.add_argument("--compiled", nargs="*", default=["plain", "jit"])
    parser.add_argument("--rounds", type=int, default=2, help="turns of each setup")
    parser.add_argument("--threads", type=int, default=1, help="of `throughput`")
    parser.add_argument("--share", type=int, default=4, help="KerasHub does one of so many parts")
    parser.add_argument("--setups", nargs="*", choices=throughput.RANKS)
    parser.add_argument("--python", default=sys.executable, help="has the rivals")
    parser.add_argument("--rivals", nargs="*", default=["CTranslate2", "transformers"])
    parser.add_argument("--converted", type=Path, help="the model as OpenVINO GenAI takes it")
    parser.add_argument("--seeds", type=int, default=200, help="of `arrivals`")
    parser.add_argument("--mpirun", default="mpirun --map-by :OVERSUBSCRIBE --bind-to none")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--report", action="store_true", help="only draw what is there")
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    if args.results.exists():
        results = json.loads(args.results.read_text())

    def keep(part: str, name: str, found: Any) -> None:
        results.setdefault(part, {})[name] = found
        args.results.write_text(json.dumps(report.rounded(results), indent=1) + "\n")

    if not args.report:
        measure(args, keep)
    args.results.with_name("table.rst").write_text(report.tables(results))
    pictures.draw(results, args.results.parent)


def measure(args: argparse.Namespace, keep: Any) -> None:
    """Whatever is asked for."""
    if "throughput" in args.parts:
        for kind in args.kinds:
            for compiled in args.compiled:
                found = throughput.against_keras(
                    kind, compiled, args.rounds, args.share, args.threads
                )
                more = "" if args.threads == 1 else f", {args.threads} threads"
                keep("throughput", f"{kind}, {compiled}{more}", found)
    if "cold" in args.parts:
        keep("cold", "gpt2", throughput.cold("gpt2"))
    if "ranks" in args.parts:
        names = list(throughput.RANKS)
        groups = [args.setups] if args.setups else [names[:4], [names[0], *names[4:]]]
        for group in groups:
            found = throughput.on_ranks("gpt2", group, args.rounds, args.mpirun)
            keep("ranks", ", ".join(group), found)
    if "rivals" in args.parts:
        found = rivals.compare(args.python, args.rivals, 3 * args.rounds, args.converted)
        keep("rivals", ", ".join(args.rivals), found)
    if "arrivals" in args.parts:
        keep("arrivals", "measured", arrivals.measured(args.seeds))
    if "latency" in args.parts:
        keep("latency", "measured", latency.measured(args.rounds))


if __name__ == "__main__":
    main()
