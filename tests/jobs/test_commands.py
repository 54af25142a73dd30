"""The command `hyparflow` under mpirun."""

from __future__ import annotations

import json
import pathlib

from jobs.jobs import run, run_alone

import hyparflow as hf


def test_doctor_measures_the_network(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.json"
    result = run(2, "-m", "hyparflow.cli", "doctor", "--network", path)
    assert result.code == 0, result.output
    cluster = hf.Cluster.load(path)
    assert cluster.num_ranks == 2
    assert 0 < cluster.within.latency < 1e-2
    assert cluster.within.bandwidth > 1e6
    assert cluster.between == hf.Cluster().between  # there is no other node to measure
    assert set(json.loads(path.read_text())) >= {"nodes", "within", "between"}


def test_doctor_needs_two_ranks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cluster.json"
    result = run_alone("-m", "hyparflow.cli", "doctor", "--network", path)
    assert result.code == 2
    assert "mpirun -n 2" in result.output
