"""``hyparflow experts place`` and ``show``, as typed in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from routers import likely_trace

import hyparflow as hf
from hyparflow.cli.main import main


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.npz"
    likely_trace(8, 4, 800).save(path)
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["experts", *map(str, arguments)])


def placed(trace: Path, *arguments: object) -> Result:
    return command("place", trace, "--ranks", 4, "--max-load", 1.5, "--seconds", 0.1, *arguments)


@pytest.mark.parametrize("name", ["placement.json", "placement.csv"])
def test_place(trace: Path, tmp_path: Path, name: str) -> None:
    result = placed(trace, "--nodes", 2, "--replicate", 1, "--save", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert "Placement of made-up: 4 layers of 8 experts on 4 ranks of 2 nodes" in result.output
    assert "4 experts are on several ranks" in result.output
    placement = hf.ExpertPlacement.load(tmp_path / name)
    assert (placement.num_ranks, placement.nodes) == (4, 2)
    if placement.report is not None:
        assert str(placement) in result.output
    assert (placement.report is None) == name.endswith(".csv")


def test_options_reach_the_search(trace: Path, tmp_path: Path) -> None:
    result = placed(
        trace, "--held-out", 0.5, "--seed", 3, "--node-cost", 2, "--save", tmp_path / "p"
    )
    assert result.exit_code == 0, result.output
    assert "learnt from 400 tokens, judged by 400 others" in result.output
    loaded = hf.ExpertPlacement.load(tmp_path / "p")
    _, judged = hf.RoutingTrace.load(trace).split(0.5, 3)
    assert loaded.report is not None and loaded.score(judged) == loaded.report.held_out


def test_show_a_placement(trace: Path, tmp_path: Path) -> None:
    for name in ("placement.json", "placement.csv"):
        placed(trace, "--save", tmp_path / name)
        placement = hf.ExpertPlacement.load(tmp_path / name)
        result = command("show", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert ("It has no scores" in result.output) == (placement.report is None)
        result = command("show", tmp_path / name, "--trace", trace)
        assert result.exit_code == 0, result.output
        score = placement.score(hf.RoutingTrace.load(trace))
        lines = result.output.splitlines()
        (line,) = (line for line in lines if line.startswith("this placement, on the trace"))
        assert line.split()[5:] == [f"{score.rank_changes:.1%}", f"{score.largest_load:.2f}"]
        rows = [line.split() for line in lines]
        assert [row[0] for row in rows[-3:]] == ["1", "2", "3"]
        assert [row[2] for row in rows[-3:]] == [f"{share:.1%}" for share in score.by_layer]


@pytest.mark.parametrize("name", ["trace.npz", "trace.csv", "trace.json", "trace"])
def test_show_a_trace(tmp_path: Path, name: str) -> None:
    """By what the file holds, whatever its name is."""
    likely_trace(8, 4, 800).save(tmp_path / name)
    result = command("show", tmp_path / name)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "Routing trace of made-up: 800 tokens, 4 layers of 8 experts, top 1"
    rows = [line.split() for line in lines[3:7]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert all(60 < float(row[4].rstrip("%")) < 85 for row in rows[1:])
    assert all(float(row[5].rstrip("%")) < 25 for row in rows[1:])


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_pictures(trace: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    placement = tmp_path / "placement.json"
    saved = ["--save", placement, "--plot", tmp_path / f"a.{suffix}"]
    shown = {
        "placed": placed(trace, "--replicate", 1, *saved),
        "trace": command("show", trace, "--plot", tmp_path / f"b.{suffix}"),
        "both": command("show", placement, "--trace", trace, "--plot", tmp_path / f"c.{suffix}"),
    }  # fmt: skip
    for name, result in shown.items():
        assert result.exit_code == 0, (name, result.output)
    sizes = [(tmp_path / f"{name}.{suffix}").stat().st_size for name in "abc"]
    assert min(sizes) > 10_000 and sizes[2] > max(sizes[:2])


def test_pictures_of_small_things(tmp_path: Path) -> None:
    """One layer, one rank, many layers and many ranks."""
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    for experts, layers, ranks in ((4, 1, 2), (4, 2, 1), (40, 15, 20)):
        trace, placement = tmp_path / "trace.npz", tmp_path / "placement.csv"
        likely_trace(experts, layers, 100).save(trace)
        hf.ExpertPlacement.contiguous(layers, experts, ranks).save(placement)
        for shown in ([trace], [placement, "--trace", trace]):
            result = command("show", *shown, "--plot", tmp_path / "picture.png")
            assert result.exit_code == 0, (experts, layers, ranks, result.output)
            assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["place", "missing.npz", "--ranks", 4], "Received: missing.npz (No such file"),
        (["place", "TRACE"], "Missing option '--ranks'"),
        (["place", "TRACE", "--ranks", 3], "must be divisible by the ranks"),
        (["place", "TRACE", "--ranks", 4, "--nodes", 3], "the same on every node"),
        (["place", "TRACE", "--ranks", 4, "--max-load", 0.5], "0.5 is not in the range"),
        (["place", "TRACE", "--ranks", 4, "--max-load", 1], "`max_load` must leave room"),
        (["place", "TRACE", "--ranks", 4, "--replicate", 8], "`replicate` must be less than"),
        (["place", "TRACE", "--ranks", 4, "--held-out", 1], "1.0 is not in the range"),
        (["place", "TRACE", "--ranks", 4, "--save", "no/p.json"], "folders that exist"),
        (["place", "TRACE", "--ranks", 4, "--plot", "p.txt"], "A picture's file ends with"),
        (["show", "missing"], "must be a placement of experts or a routing trace"),
        (["show", "."], "Received: ., which is a folder"),
        (["show", "TRACE", "--trace", "TRACE"], "--trace is for placements"),
        (["show", "PLACEMENT", "--plot", "p.png"], "A picture of a placement needs tokens"),
        (["show", "PLACEMENT", "--trace", "OTHER"], "A placement must be of the model"),
        (["show", "PLACEMENT", "--trace", "PLACEMENT"], "A routing trace must be a file"),
        (["show", "TEXT"], "A placement of experts must be a file"),
    ],
    ids=str,
)
def test_mistakes_are_one_message(
    arguments: list[object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    likely_trace(8, 3, 101).save("TRACE")
    likely_trace(8, 2, 100).save("OTHER")
    hf.ExpertPlacement.contiguous(3, 8, 4).save("PLACEMENT")
    Path("TEXT").write_text("text")
    before = sorted(os.listdir())
    result = command(*arguments)
    assert result.exit_code == 2
    assert message in result.output and result.output.count("Error: ") == 1
    assert "Traceback" not in result.output
    assert sorted(os.listdir()) == before


def test_neither_mpi_nor_tensorflow_is_loaded(trace: Path) -> None:
    code = (
        "import sys; from hyparflow.cli.main import main\n"
        "try: main()\n"
        "finally: print('loaded:', set(sys.modules) & {'mpi4py', 'tensorflow', 'keras'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "experts", "show", str(trace)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: set()" in done.stdout


def test_under_a_launcher_one_rank_answers(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    result = command("show", trace)
    assert (result.exit_code, result.output) == (0, "")


def test_a_trace_of_a_program_that_counts_otherwise(tmp_path: Path) -> None:
    """NumPy's own file of an array has no names of what it holds: it is no trace."""
    np.savez(tmp_path / "array.npz", np.zeros((3, 2), int))
    result = command("place", tmp_path / "array.npz", "--ranks", 1)
    assert result.exit_code == 2
    assert "version is not a file in the archive" in result.output
