"""`make dist`: builds sdist and wheel into dist/, and tries the wheel where nothing else is.

What the README shows as its example runs on two ranks, from a folder outside the repository.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tempfile
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distribution.build import build, check, tools
from distribution.environments import REPOSITORY, Environment

_EXTRAS = "cpu,examples"  # and what the example's data come from
_SETTINGS = {"report_level": 5, "halt_level": 5}  # Sphinx's own directives are not docutils'


def examples(text: str) -> list[str]:
    """The complete scripts of a page that train with hyparflow."""
    blocks = publish_doctree(text, settings_overrides=_SETTINGS).findall(nodes.literal_block)
    return [code for code in (block.astext() for block in blocks) if _is_example(code)]


def _is_example(code: str) -> bool:
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return False
    names = {n.name for node in tree.body if isinstance(node, ast.Import) for n in node.names}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {"keras", "hyparflow"} <= names and bool({"hf.fit", "hyparflow.fit"} & calls)


def install(wheel: Path) -> Environment:
    """A new environment with the wheel."""
    environment = Environment.make("dist", Path(sys.executable))
    if problem := environment.install(f"hyparflow[{_EXTRAS}] @ {wheel.as_uri()}"):
        raise SystemExit(f"{wheel.name} could not be installed.\n{problem}")
    return environment


def faults(environment: Environment, folder: Path) -> list[str]:
    """What does not work in an environment with the wheel, tried from `folder`."""
    found = [*_imported(environment, folder), *_told(environment, folder)]
    scripts = examples((REPOSITORY / "README.rst").read_text())
    if not scripts:
        found.append("README.rst has no complete script that calls hf.fit")
    for number, code in enumerate(scripts):
        script = folder / f"train_{number}.py"
        script.write_text(code)
        command = ["hyparflow", "run", "-n", "2", "--oversubscribe", script.name]
        done = environment.run(command, folder)
        if done.returncode or not re.search(r"hyparflow: (1 x 2|2 x 1) ", done.stdout):
            found.append(f"the README's example on 2 ranks: exit {done.returncode}\n{done.stdout}")
    return found


def _imported(environment: Environment, folder: Path) -> list[str]:
    """Whether what is imported is the wheel."""
    done = environment.run(["python", "-c", "import hyparflow; print(hyparflow.__file__)"], folder)
    if Path(done.stdout.strip()).is_relative_to(environment.folder):
        return []
    return [f"hyparflow was imported from elsewhere: {done.stdout}"]


def _told(environment: Environment, folder: Path) -> list[str]:
    """Whether the command that messages name for an extra does what they say."""
    code = "import hyparflow.launching.installation as i; print(i.install_command('plot'))"
    told = environment.run(["python", "-c", code], folder).stdout.strip()
    done = environment.run([*shlex.split(told), "--dry-run"], folder)
    if done.returncode == 0 and "Would install" in done.stdout and "matplotlib" in done.stdout:
        return []
    return [f"messages name a command that does not work: {told}\n{done.stdout}"]


def main() -> None:
    with_tools = tools()
    sdist, wheel = build(with_tools, REPOSITORY / "dist")
    found = check(with_tools, sdist, wheel)
    environment = install(wheel)
    with tempfile.TemporaryDirectory() as folder:
        found += faults(environment, Path(folder))
    environment.remove()
    if found:
        raise SystemExit("\n".join(["What is wrong with what was built:", *found]))
    print(f"dist/{sdist.name} and dist/{wheel.name} are whole, and the README's example runs.")


if __name__ == "__main__":
    main()
