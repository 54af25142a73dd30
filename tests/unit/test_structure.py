"""The rules of the house that a program can check: who imports what, and which way."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hyparflow

ROOT = Path(hyparflow.__file__).parent


def name_of(path: Path) -> str:
    """The dotted name of a module inside of hyparflow; "__init__" is the package's own."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


TREES = {
    name_of(path): ast.parse(path.read_text(), str(path)) for path in sorted(ROOT.rglob("*.py"))
}
INTERNALS = {name for name in TREES if name.split(".")[0] == "keras_internals"}


def for_types_only(node: ast.AST) -> bool:
    """Whether `node` is an ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that matter when the program runs, those in functions too."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not for_types_only(child):
            yield from walk(child)


def imports(module: str) -> set[str]:
    """Everything that `module` imports, as dotted names (``from a import b`` gives both)."""
    found: set[str] = set()
    for node in walk(TREES[module]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def modules_that_import(package: str) -> set[str]:
    return {
        module
        for module in TREES
        if any(name == package or name.startswith(f"{package}.") for name in imports(module))
    }


def attributes(module: str) -> Iterator[tuple[int, str, str]]:
    """(line, object, attribute) of all attributes, those given to getattr as text too."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "getattr", "hasattr", "setattr",
        ):  # fmt: skip
            name = node.args[1]
            if isinstance(name, ast.Constant):
                yield node.lineno, ast.unparse(node.args[0]), str(name.value)


def test_the_modules_were_found() -> None:
    assert {"__init__", "comm", "stage", "keras_internals", "trainer"} <= set(TREES)


def test_one_file_knows_mpi() -> None:
    assert modules_that_import("mpi4py") == {"comm"}


def test_mpi_is_imported_inside_functions() -> None:
    """Importing mpi4py.MPI starts MPI."""
    for node in TREES["comm"].body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "mpi4py" not in ast.unparse(node)


def test_one_file_calls_gradients() -> None:
    found = {
        module
        for module in TREES
        for _, owner, name in attributes(module)
        if name in ("GradientTape", "ForwardAccumulator")
        or (name == "gradients" and owner.startswith("tf"))
    }
    assert found == {"formulas"}


def test_one_file_imports_keras_src() -> None:
    assert modules_that_import("keras.src") <= INTERNALS
    for module in set(TREES) - INTERNALS:
        assert not [line for line, owner, name in attributes(module) if name == "src"]


@pytest.mark.parametrize("module", sorted(set(TREES) - INTERNALS))
def test_private_names_are_the_module_s_own(module: str) -> None:
    """Private attributes of others' objects, Keras's above all, are for keras_internals.py."""
    foreign = [
        f"{module}.py:{line}: {owner}.{name}"
        for line, owner, name in attributes(module)
        if name.startswith("_")
        and not name.startswith("__")
        and owner not in ("self", "cls", "super()")
        and name not in ("_replace", "_asdict", "_fields")  # public, of NamedTuple
    ]
    assert not foreign, "\n".join(foreign)


def test_imports_form_no_cycle() -> None:
    """Also those inside functions: they are there to be late, not to hide a cycle."""
    graph = {
        module: {name.removeprefix("hyparflow.") for name in imports(module)} & set(TREES)
        for module in TREES
    }
    assert graph["engine"] >= {"actions", "stage", "transport"}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("actions") < order.index("schedule") < order.index("lowering")


@pytest.mark.parametrize("module", [name for name in TREES if name != "__init__"])
def test_first_line_and_public_names(module: str) -> None:
    """Every file says what it is for and what is public, and has it."""
    tree = TREES[module]
    assert (ast.get_docstring(tree) or "").splitlines()[0].strip()
    names = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    listed: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            names.add(ast.unparse(target))
            if ast.unparse(target) == "__all__" and node.value is not None:
                listed = ast.literal_eval(node.value)
    assert listed and set(listed) <= names


def test_what_is_said_goes_through_the_logger() -> None:
    """Others write what users asked for, a table or the output of ranks, not what is done."""
    direct = {
        module
        for module in TREES
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call)
        and re.fullmatch(r"print|sys\.std(out|err)(\.buffer)?\.write", ast.unparse(node.func))
    }
    passed_on = {"launching", "planning.companion", "planning.crowd", "text"}
    assert direct == passed_on
