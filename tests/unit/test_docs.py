"""The pages in docs/ keep up with the package: messages, findings, commands and arguments."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
from collections.abc import Iterator

import click
import pytest

import hyparflow as hf
from hyparflow.cli.main import main

REPOSITORY = pathlib.Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
SAID_BY = ("ValueError", "RuntimeError", "ImportError", "Refused", "warn")


def text_of(node: ast.AST) -> str:
    """The literal text of a string, with a mark where a value stands."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "\0"


def trees() -> Iterator[tuple[pathlib.Path, ast.Module]]:
    for path in sorted((REPOSITORY / "hyparflow").rglob("*.py")):
        yield path.relative_to(REPOSITORY), ast.parse(path.read_text())


def name_of(call: ast.Call) -> str:
    """The last name of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Where these are called in the package, and the calls."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node) in names and node.args:
                yield f"{path}:{node.lineno}", node


def is_guards(call: ast.Call) -> bool:
    """Whether `guard.say` is called, and no other function of that name."""
    return getattr(getattr(call.func, "value", None), "id", "") == "guard"


def fragments() -> list[str]:
    """The messages that the page on troubleshooting explains: the terms of its lists."""
    lines = (DOCS / "troubleshooting.rst").read_text().splitlines()
    terms = [
        line
        for line, after in zip(lines, lines[1:], strict=False)
        if line.startswith("``") and re.match(r" {4}\S", after)
    ]
    return [fragment for term in terms for fragment in re.findall(r"``(.+?)``(?=,|$)", term)]


def test_each_message_has_a_remedy() -> None:
    known = fragments()
    said = [*calls(*SAID_BY), *((w, c) for w, c in calls("say") if is_guards(c))]
    messages = {where: text_of(call.args[0]) for where, call in said}
    unknown = [
        f"{where}: {message}"
        for where, message in messages.items()
        if re.search("[a-z]{3}", message.replace("Received", ""))
        and not any(part in message for part in known)
    ]
    assert not unknown, "not in docs/troubleshooting.rst:\n" + "\n".join(unknown)


def test_each_quoted_message_is_there() -> None:
    texts = [text_of(node) for _, tree in trees() for node in ast.walk(tree)]
    gone = [part for part in fragments() if not any(part in text for text in texts)]
    assert len(fragments()) > 60
    assert not gone, "no message has these words any more"


def test_each_finding_of_the_doctor_is_there() -> None:
    page = (DOCS / "troubleshooting.rst").read_text()
    names = {text_of(call.args[0]) for _, call in calls("Finding")} - {"\0"}
    assert {"TensorFlow", "launcher", "ring"} <= names
    assert not [name for name in names if f"``{name}``" not in page]


def commands() -> list[click.Command]:
    return list(main.commands.values())


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_each_option_is_in_the_reference(command: click.Command) -> None:
    page = (DOCS / "api.rst").read_text()
    section = page.split(f"\nhyparflow {command.name}\n")[1].split("\nhyparflow ")[0]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"``{parameter.opts[-1]}" in section, parameter.opts


def test_each_public_name_is_in_the_reference() -> None:
    page = (DOCS / "api.rst").read_text()
    missing = [name for name in hf.__all__ if not re.search(rf":: {name}(\(|$)", page, re.M)]
    assert not missing


def test_each_parallel_argument_is_explained() -> None:
    page = (DOCS / "strategies.rst").read_text()
    arguments = list(inspect.signature(hf.parallelize).parameters)[1:]
    assert "num_microbatches" in arguments
    assert not [name for name in arguments if f"``{name}``" not in page]
