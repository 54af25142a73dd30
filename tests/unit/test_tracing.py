"""Traces: events to a file and back, what they add up to, and the command that shows it."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import hyparflow as hf
from hyparflow.cli.main import main
from hyparflow.comm.recorder import Event, EventKind, Recorder
from hyparflow.pipeline.actions import Kind
from hyparflow.tracing.summary import describe, shares
from hyparflow.tracing.trace import RankTrace, Trace


def a_step(start: float) -> list[Event]:
    """Ten seconds of one rank, in the order in which they end."""
    rows = [
        Event(EventKind.DATA, 0, 1),
        Event(EventKind.WAIT, 1, 2, text="an activation"),
        Event(Kind.RECEIVE_ACTIVATION, 1, 2.5, 1, 0, 0, moved=800),
        Event(Kind.FUSED, 2.5, 6, 1, 0),
        Event(Kind.START_REDUCE, 6, 6.25, 1),
        Event(EventKind.WAIT, 7, 7.5, text="the sum of gradients"),
        Event(EventKind.SUM, 6.25, 7.5, moved=400),
        Event(Kind.REDUCE, 6.75, 8, 1),
        Event(Kind.APPLY, 8, 9, 1),
        Event(EventKind.WAIT, 9.25, 9.75, text="its last messages to be taken"),
        Event(EventKind.TRAINING_STEP, 0, 10),
        Event(EventKind.WAIT, 10, 11, text="the leader's command"),
        Event(Kind.FORWARD, 11, 11.5, 1, 0),  # of validation
    ]
    return [event._replace(start=event.start + start, end=event.end + start) for event in rows]


def a_trace() -> Trace:
    ranks = [
        RankTrace(
            name=f"rank {rank} (replica 0, partition {rank})", replica=0, partition=rank, steps=[]
        )
        for rank in range(2)
    ]
    for rank in ranks:
        rank.steps = [a_step(12.0 * number) for number in range(5)]
    return Trace(ranks, {"num_partitions": 2, "num_replicas": 1, "schedule": "1f1b"})


def test_what_a_step_adds_up_to() -> None:
    found = shares(a_trace().ranks[1])
    assert found.step == pytest.approx(10)
    assert found.data == pytest.approx(1)
    assert found.waiting == pytest.approx(1 + 0.5)  # for an activation, and at the end
    assert found.messages == pytest.approx(0.5)
    assert (found.forward, found.backward) == pytest.approx((0, 3.5))
    assert found.sums == pytest.approx(0.25 + 0.75)
    assert found.waiting_for_sums == pytest.approx(0.5)
    assert found.optimizer == pytest.approx(1)
    assert found.other == pytest.approx(10 - 1 - 1.5 - 0.5 - 3.5 - 1 - 0.5 - 1)
    assert found.between == pytest.approx(2)
    assert found.idle == pytest.approx(0.2)
    assert found.moved == pytest.approx(800)
    assert found.under_way == pytest.approx(1.25)


def test_steps_that_compile_do_not_count() -> None:
    trace = a_trace()
    slow = [event._replace(end=event.end + 50) for event in a_step(-100)]
    trace.ranks[0].steps[0] = slow
    assert shares(trace.ranks[0]) == shares(trace.ranks[1])


def test_a_file_and_back(tmp_path: Path) -> None:
    trace = a_trace()
    trace.save(tmp_path / "trace.json")
    again = Trace.load(tmp_path / "trace.json")
    assert again.arguments == trace.arguments
    assert [rank.name for rank in again.ranks] == [rank.name for rank in trace.ranks]
    for before, after in zip(trace.ranks, again.ranks, strict=True):
        for old, new in zip(before.steps, after.steps, strict=True):
            assert [e._replace(start=0, end=0) for e in old] == [
                e._replace(start=0, end=0) for e in new
            ]
            assert [e.start for e in new] == pytest.approx([e.start for e in old])
            assert [e.end for e in new] == pytest.approx([e.end for e in old])
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]


def test_the_file_is_what_chrome_reads(tmp_path: Path) -> None:
    a_trace().save(tmp_path / "trace.json")
    rows = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {row["args"]["name"] for row in rows if row["name"] == "process_name"}
    assert names == {f"rank {n} (replica 0, partition {n})" for n in range(2)}
    complete = [row for row in rows if row["ph"] == "X"]
    assert len(complete) == 2 * 5 * len(a_step(0))
    assert min(row["ts"] for row in complete) == 0
    fused = next(row for row in complete if row["args"]["kind"] == Kind.FUSED)
    assert (fused["name"], fused["dur"]) == ("forward + backward 0", pytest.approx(3.5e6))


def test_a_recorder_that_is_off_notes_nothing() -> None:
    recorder = Recorder()
    recorder.begin_step()
    recorder.note(EventKind.DATA, 0.0)
    recorder.note_step(Kind.FORWARD, 0, 0, -1, 0.0, 0)
    assert not recorder.steps


def test_a_recorder_keeps_the_last_steps() -> None:
    recorder = Recorder()
    recorder.on = True
    for number in range(1000):
        recorder.begin_step()
        recorder.note(EventKind.WAIT, 0.0, str(number))
    kept = [step[0].text for step in recorder.steps]
    assert kept == [str(number) for number in range(800, 1000)]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trace", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    a_trace().save(tmp_path / "trace.json")
    result = command(tmp_path / "trace.json", "--plot", tmp_path / "trace.png")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "means over 3 steps" in lines[0]
    assert lines[-1].startswith("rank 1 (replica 0, partition 1)  10000.0")
    assert (tmp_path / "trace.png").read_bytes()[:4] == b"\x89PNG"


def test_the_summary_has_pace_and_idle_share() -> None:
    trace = a_trace()
    trace.arguments["batch_size"] = 24
    head = describe(trace).plain().splitlines()[1]
    assert head == "2.0 samples/s, idle 20.0%, mean over ranks"  # 24 rows in 10 + 2 s


def test_one_replica_shows_no_sums_over_replicas() -> None:
    trace = a_trace()  # of partitions that share weights
    assert "sums" not in describe(trace).plain() and "shared weights" in describe(trace).plain()
    for rank in trace.ranks:
        rank.steps = [[e for e in step if e.kind != EventKind.SUM] for step in rank.steps]
    titles, *rows = describe(trace).table
    assert not {"sums", "waiting for sums", "shared weights", "sums hidden"} & set(titles)
    for row in rows:  # the columns still add up
        found = dict(zip(titles, row, strict=True))
        parts = ("backward", "messages", "waiting", "optimizer", "data", "other")
        assert sum(float(found[name]) for name in parts) == pytest.approx(float(found["step"]))
    trace.arguments |= {"num_replicas": 2, "num_partitions": 1}
    assert "sums" in describe(trace).plain()


def test_a_table_on_a_terminal_has_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    page, terminal = describe(a_trace()), Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "300")
    page.show()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert page.head[0] in shown and "\u2500" in shown
    assert all(cell in shown for row in page.table for cell in row)
    terminal.truncate(0)
    monkeypatch.setenv("COLUMNS", "60")
    page.show()
    assert "\u2026" not in terminal.getvalue()  # nothing is left out for want of room


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"traceEvents": [], "otherData": {}}', "\x00"])
def test_a_file_that_is_no_trace(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.json").write_text(text)
    result = command(tmp_path / "file.json")
    assert result.exit_code == 2
    assert "hyparflow.fit(..., trace=...) wrote" in result.output


def test_a_trace_without_steps(tmp_path: Path) -> None:
    trace = a_trace()
    trace.ranks[1].steps = []
    trace.save(tmp_path / "trace.json")
    result = command(tmp_path / "trace.json")
    assert result.exit_code == 2
    assert "none of rank 1" in result.output


def test_one_process_says_that_it_traces_nothing(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="one process has none"):
        hf.fit(model, np.ones((4, 2)), np.ones((4, 1)), verbose=0, trace=tmp_path / "trace.json")
    assert not list(tmp_path.iterdir())
