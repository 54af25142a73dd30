"""Who shows the lines that hyparflow says, and which."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyparflow.comm import log


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """A logger that nobody has configured."""
    level, handlers = log.STATUS.level, list(log.STATUS.handlers)
    log.STATUS.setLevel(logging.NOTSET)
    log.STATUS.handlers.clear()
    yield
    log.STATUS.setLevel(level)
    log.STATUS.handlers[:] = handlers


def say_all() -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        log.STATUS.log(level, f"hyparflow: {logging.getLevelName(level).lower()}")


def test_without_configuration_lines_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    log.configure()  # each call of hyparflow may
    say_all()
    shown = capsys.readouterr()
    assert shown.out == "hyparflow: info\n"
    assert shown.err == "hyparflow: warning\n"


@pytest.mark.parametrize("name", ["", "hyparflow"])
def test_what_an_application_shows_is_shown_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger(name).addHandler(handler)
    try:
        say_all()
    finally:
        logging.getLogger(name).removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text() == "hyparflow: info\nhyparflow: warning\n"
    assert capsys.readouterr() == ("", "")
    say_all()
    assert capsys.readouterr().out == "hyparflow: info\n"


def test_what_an_applications_handler_leaves_out_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    handler = logging.FileHandler(tmp_path / "log")
    handler.setLevel(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        say_all()
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert capsys.readouterr().out == "hyparflow: info\n"


def test_records_reach_those_who_listen(caplog: pytest.LogCaptureFixture) -> None:
    log.configure()
    log.STATUS.info("hyparflow: 2 x 1")
    log.MESSAGES.warning("hyparflow: a message")
    assert [(one.name, one.getMessage()) for one in caplog.records] == [
        ("hyparflow", "hyparflow: 2 x 1"),
        ("hyparflow.messages", "hyparflow: a message"),
    ]


def test_the_level_is_the_users(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.STATUS.setLevel(logging.WARNING)
    log.configure()
    say_all()
    assert capsys.readouterr() == ("", "hyparflow: warning\n")
    monkeypatch.setenv("HYPARFLOW_LOG", "debug")
    log.configure()
    say_all()
    assert "hyparflow: debug\n" in capsys.readouterr().err


def test_an_unknown_level_is_refused() -> None:
    assert log.level({}) is None
    assert log.level({"HYPARFLOW_LOG": ""}) is None
    assert log.level({"HYPARFLOW_LOG": "error"}) == "ERROR"
    with pytest.raises(ValueError, match=r"takes DEBUG, INFO, WARNING, ERROR. Received: .*'loud'"):
        log.level({"HYPARFLOW_LOG": "loud"})
