"""The rules of the house that a program can check: who imports what, and which way."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hyparflow

ROOT = Path(hyparflow.__file__).parent

# Each layer imports only from those above it in this list; rooms of one layer do not know each
# other. What stands alone is a file.
LAYERS = (
    ("formats",),
    ("pipeline", "comm", "experts"),
    ("options",),
    ("model",),
    ("engine", "launching"),
    ("checkpoint",),
    ("planning",),
    ("tracing",),
    ("training", "serving"),
    ("api", "cli", "layers"),
    ("hyparflow",),
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
PURE = ("formats", "pipeline", "experts", "options")  # neither MPI nor Keras nor TensorFlow
FRAMEWORKS = ("mpi4py", "keras", "tensorflow")


def name_of(path: Path) -> str:
    """The dotted name of a module below hyparflow; the package's own is "hyparflow"."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__").replace("__init__", "hyparflow")


TREES = {
    name_of(path): ast.parse(path.read_text(), str(path)) for path in sorted(ROOT.rglob("*.py"))
}
PACKAGES = {name_of(path) for path in ROOT.rglob("__init__.py")} - {"hyparflow"}
INTERNALS = {name for name in TREES if name.startswith("model.keras_internals")}  # Keras's
BORDER = {name for name in TREES if name.startswith("engine.compiled")}  # TensorFlow's
# Public objects of TensorFlow's lead to these; they are documented nowhere, and may go.
TENSORFLOW_INTERNALS = {
    *("inference_fn", "call_flat", "call_preflattened", "call_with_captures"),
    *("captures", "external_captures", "internal_captures", "deferred_external_captures"),
    *("control_captures", "control_outputs", "func_graph", "structured_outputs", "from_address"),
}


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


def own_imports(module: str) -> set[str]:
    """The modules of hyparflow that `module` imports."""
    found = imports(module)
    names = {name.removeprefix("hyparflow.") for name in found} & set(TREES)
    # ``from hyparflow import x`` names the package beside x; that counts where x is no module.
    if not any(name.startswith("hyparflow.") for name in found):
        return names
    taken = {name.removeprefix("hyparflow.") for name in found if name.count(".") == 1}
    if taken <= set(TREES):
        names.discard("hyparflow")
    return names - PACKAGES | {name for name in names & PACKAGES if not within(name, names)}


def within(package: str, names: set[str]) -> bool:
    """Whether one of `names` lies in `package`, so that the package is named on the way to it."""
    return any(name.startswith(f"{package}.") for name in names)


def room_of(module: str) -> str:
    """The package, or lone file, at the top that `module` lies in."""
    return module.split(".")[0]


def folder(module: str) -> str:
    """The package that `module` lies in, or is; a lone file is its own."""
    return module if module in PACKAGES else module.rpartition(".")[0] or module


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


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """A circle in `graph`, or nothing."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_the_modules_were_found() -> None:
    known = {"hyparflow", "comm.world", "engine.engine", "model.keras_internals.layers"}
    assert known <= set(TREES)
    assert {room_of(module) for module in TREES} == set(LEVELS)


def test_the_top_has_few_rooms() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 4
    assert len({package for package in PACKAGES if "." not in package}) <= 13


@pytest.mark.parametrize("module", TREES)
def test_files_are_short(module: str) -> None:
    """What stands alone, since ranks run it before hyparflow can be imported, may be longer."""
    path = Path(ROOT, *module.split("."))
    file = path / "__init__.py" if module in PACKAGES else path.with_suffix(".py")
    if module not in ("hyparflow", "launching.rank_process"):
        assert len(file.read_text().splitlines()) <= 300


@pytest.mark.parametrize("module", TREES)
def test_imports_go_down(module: str) -> None:
    """Also those inside functions: they are there to be late, not to hide a way up."""
    room = room_of(module)
    up = {
        name
        for name in own_imports(module)
        if room_of(name) != room and LEVELS[room_of(name)] >= LEVELS[room]
    }
    assert not up, f"{module} imports {sorted(up)}"


def test_a_way_up_is_seen() -> None:
    """``import hyparflow`` counts, and so does what a function imports."""
    for text in ("import hyparflow", "def f():\n    from hyparflow.api import fit"):
        TREES["training.example"] = ast.parse(text)
        try:
            with pytest.raises(AssertionError, match=r"training\.example imports"):
                test_imports_go_down("training.example")
        finally:
            del TREES["training.example"]


def test_files_form_no_circle() -> None:
    graph = {module: own_imports(module) for module in TREES}
    assert graph["engine.engine"] >= {"pipeline.actions", "engine.stages.local_stage"}
    assert cycle_of(graph) == []


def test_packages_form_no_circle() -> None:
    """Packages within packages neither."""
    graph: dict[str, set[str]] = {}
    for module in TREES:
        mine = folder(module)
        others = {folder(name) for name in own_imports(module)}
        graph.setdefault(mine, set()).update(others - {mine})
    assert cycle_of(graph) == []


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_begins_with_words_alone(package: str) -> None:
    """What lives here, and what it may import; users of a name import it from its own file."""
    tree = TREES[package]
    words = ast.get_docstring(tree) or ""
    assert len(tree.body) == 1
    assert 2 <= len([line for line in words.splitlines() if line]) <= 4


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_names_its_imports(package: str) -> None:
    """Packages beside it by their whole names, and those of other rooms by that of the room."""
    words = " ".join((ast.get_docstring(TREES[package]) or "").split())
    named = re.search(r" Imports (.+?)[.;]( |$)", words)
    assert named is not None
    listed = re.split(", | and ", re.sub(r" \(.*?\)", "", named[1]))
    found = {
        folder(name) if room_of(name) == room_of(package) else room_of(name)
        for module in TREES
        if folder(module) == package
        for name in own_imports(module)
        if folder(name) != package
    }
    assert listed == (sorted(found) or ["nothing of hyparflow"])


@pytest.mark.parametrize("module", [name for name in TREES if room_of(name) in PURE])
def test_pure_rooms(module: str) -> None:
    frameworks = {name for name in imports(module) if name.split(".")[0] in FRAMEWORKS}
    assert not frameworks


def test_one_file_knows_mpi() -> None:
    assert modules_that_import("mpi4py") == {"comm.world"}


def test_mpi_is_imported_inside_functions() -> None:
    """Importing mpi4py.MPI starts MPI."""
    for node in TREES["comm.world"].body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "mpi4py" not in ast.unparse(node)


def test_three_files_ask_for_gradients() -> None:
    found = {
        module
        for module in TREES
        for _, owner, name in attributes(module)
        if name in ("GradientTape", "ForwardAccumulator")
        or (name == "gradients" and owner.startswith("tf"))
    }
    engine = {"engine.compiled.gradients_of", "engine.stages.recorded"}
    assert found == {*engine, "model.experts.expert_loop"}  # a layer with a gradient of its own


def test_one_room_imports_keras_src() -> None:
    assert modules_that_import("keras.src") <= INTERNALS
    for module in set(TREES) - INTERNALS:
        assert not [line for line, owner, name in attributes(module) if name == "src"]


@pytest.mark.parametrize("module", sorted(set(TREES) - BORDER))
def test_tensorflow_s_insides_are_behind_the_border(module: str) -> None:
    """Its private modules, and what is public by its name only, are for engine/compiled alone."""
    private = ("tensorflow.python", "tensorflow.core", "tensorflow.compiler", "tensorflow.lite")
    assert not [name for name in imports(module) if name.startswith(private)]
    reached = [
        f"{module}.py:{line}: {owner}.{name}"
        for line, owner, name in attributes(module)
        if name in TENSORFLOW_INTERNALS or (name in ("python", "__internal__") and owner == "tf")
    ]
    assert not reached, "\n".join(reached)


def test_the_road_without_surgery_stays_outside() -> None:
    """What plain.py is made of knows no insides either, though it lies behind the border."""
    surgery = {
        *("direct_call", "hidden_variable", "seed", "split_function", "split_pair", "subgraph"),
        *("recomputed", "sections", "surgery", "tensor_memory"),
    }
    reaching = {
        module.removeprefix("engine.compiled.")
        for module in BORDER
        if any(name.startswith("tensorflow.python") for name in imports(module))
        or any(
            name in TENSORFLOW_INTERNALS or name == "__internal__"
            for _, _, name in attributes(module)
        )
    }
    # Own steps need two more on both roads: nothing public tells what they draw and capture.
    own_steps = {"captured", "random_draws"}
    reached = {"direct_call", "recomputed", "seed", "subgraph", "tensor_memory"}
    kernels = {"one_dnn"}  # which this road leaves out
    assert reaching - own_steps - kernels == reached
    deciding = {"choice", "self_test"}  # which road it is
    users = {
        module
        for module in TREES
        for name in own_imports(module)
        if name.removeprefix("engine.compiled.") in surgery
    }
    assert users <= {f"engine.compiled.{name}" for name in surgery | deciding}


@pytest.mark.parametrize("module", sorted(set(TREES) - INTERNALS - BORDER))
def test_private_names_are_the_module_s_own(module: str) -> None:
    """Private attributes of others' objects: Keras's are for model/keras_internals, TensorFlow's
    for engine/compiled.
    """
    foreign = [
        f"{module}.py:{line}: {owner}.{name}"
        for line, owner, name in attributes(module)
        if name.startswith("_")
        and not name.startswith("__")
        and owner not in ("self", "cls", "super()")
        and name not in ("_replace", "_asdict", "_fields")  # public, of NamedTuple
    ]
    assert not foreign, "\n".join(foreign)


@pytest.mark.parametrize("module", sorted(set(TREES) - PACKAGES - {"hyparflow"}))
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


def test_class_names_are_told_once() -> None:
    """No two public classes have one name."""
    where: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


def is_record(node: ast.AST) -> bool:
    """Whether it is a dataclass or a NamedTuple."""
    if not isinstance(node, ast.ClassDef):
        return False
    words = [ast.unparse(part) for part in (*node.decorator_list, *node.bases)]
    return any("dataclass" in word or "NamedTuple" in word for word in words)


def test_records_of_many_fields_are_built_by_name() -> None:
    """Four values in a row are told apart, five are not."""
    records = {n.name for tree in TREES.values() for n in ast.walk(tree) if is_record(n)}  # type: ignore[attr-defined]
    assert {"Plan", "Step"} < records
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) > 4:
                assert ast.unparse(node.func).split(".")[-1] not in records, (module, node.lineno)


def test_what_is_said_goes_through_the_logger() -> None:
    """Others write what users asked for, a table or the output of ranks, not what is done."""
    direct = {
        module
        for module in TREES
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call)
        and re.fullmatch(r"print|sys\.std(out|err)(\.buffer)?\.write", ast.unparse(node.func))
    }
    passed_on = {
        "formats.text",
        "launching.function",
        "planning.costs.contention",
        "planning.costs.contention_process",
    }
    assert direct == passed_on


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_programs_import_what_is_there(folder: str) -> None:
    # Programs that no test runs would tell of a moved name only to who runs them next.
    missing = []
    for path in sorted((ROOT.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module is None or not within("hyparflow", {module}):
                continue
            there = importlib.import_module(module)
            missing += [
                f"{path.name}: {module}.{alias.name}"
                for alias in node.names
                if not hasattr(there, alias.name)
                and importlib.util.find_spec(f"{module}.{alias.name}") is None
            ]
    assert missing == []
