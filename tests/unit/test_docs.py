"""The pages in docs/ keep up with the package: messages, findings, commands, arguments, results."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import pathlib
import re
from collections.abc import Iterator
from types import ModuleType

import click
import keras
import pytest

import hyparflow as hf
from hyparflow.cli.main import main

REPOSITORY = pathlib.Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
BENCHMARK = REPOSITORY / "benchmarks" / "throughput"
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
    missing = [
        name
        for name in hf.__all__
        if not re.search(rf":: ({name}(\(|$)|hyparflow\.{name}\.)", page, re.M)
    ]
    assert not missing


def test_each_parallel_argument_is_explained() -> None:
    page = (DOCS / "strategies.rst").read_text()
    arguments = list(inspect.signature(hf.parallelize).parameters)[1:]
    assert "num_microbatches" in arguments
    assert not [name for name in arguments if f"``{name}``" not in page]


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_each_argument_of_keras_is_in_the_reference(method: str) -> None:
    page = (DOCS / "api.rst").read_text()
    names = set(inspect.signature(getattr(keras.Model, method)).parameters) - {"self", "kwargs"}
    assert {"x", "callbacks"} <= names
    assert not [name for name in names if f"\n``{name}``  " not in page]


def load(path: pathlib.Path) -> ModuleType:
    """A Python file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_the_scripts() -> None:
    drawn = load(DOCS / "side_by_side.py")
    assert drawn.PICTURE.read_text() == drawn.picture(), "run: python docs/side_by_side.py"
    marked = [line for line in drawn.picture().splitlines() if drawn.MARK in line]
    assert len(marked) == 2  # the one line that differs, in both


def test_tables_show_what_was_measured() -> None:
    """The README's table and the page's are those of the last benchmark."""
    report = load(BENCHMARK / "report.py")
    results = json.loads((BENCHMARK / "results.json").read_text())["cases"]
    assert (BENCHMARK / "table.rst").read_text() == report.table(results)
    highlights = (BENCHMARK / "highlights.rst").read_text()
    assert highlights == report.highlights(results)
    assert highlights in (REPOSITORY / "README.rst").read_text()
    assert "VGG16" in highlights


def test_no_limit_is_passed() -> None:
    report = load(BENCHMARK / "report.py")
    rows = [{"rate": rate} for rate in (3.0, 5.0)]
    assert report.limit_of({"limit": 5.0, "rows": rows}) == 5.0
    assert report.limit_of({"limit": 4.9, "rows": rows}) is None


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.rst").read_text().splitlines()) <= 150


# Files of users and of examples, which are made up.
MADE_UP = {"model.py", "train.py", "script.py"}


@pytest.mark.parametrize(
    "page",
    ["README.rst", "CONTRIBUTING.rst", "CHANGES.rst", "benchmarks/README.rst"]
    + [f"docs/{path.name}" for path in sorted(DOCS.glob("*.rst"))],
)
def test_files_that_a_page_names_exist(page: str) -> None:
    """By their last names at least: those with a folder before them in some such folder."""
    folders = ("hyparflow", "tests", "docs", "examples", "benchmarks")
    known = {
        path.relative_to(REPOSITORY) for f in folders for path in (REPOSITORY / f).rglob("*.py")
    }
    known |= {pathlib.Path(path.name) for path in known}
    named = set(re.findall(r"``(?:python )?([\w/]+\.py)``", (REPOSITORY / page).read_text()))
    missing = [name for name in named - MADE_UP if not any(is_named(path, name) for path in known)]
    assert not missing


def is_named(path: pathlib.Path, name: str) -> bool:
    return path.parts[-len(pathlib.Path(name).parts) :] == pathlib.Path(name).parts


def test_the_route_of_a_step_exists() -> None:
    """Each function that the first page of the package names is in the file that it names."""
    route = " ".join((hf.__doc__ or "").split()).split("one compiled forward:: ")[1]
    route = route.split(" That is the leader")[0]
    stops = re.findall(r"([\w.]+) \(([\w/]+\.py)\)", route)
    assert len(stops) == 9
    assert len({file for _, file in stops}) == 8
    for name, file in stops:
        tree = ast.parse((REPOSITORY / "hyparflow" / file).read_text())
        for part in name.split("."):
            (tree,) = (node for node in tree.body if getattr(node, "name", "") == part)
