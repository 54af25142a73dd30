"""``hyparflow plan``: how to spread a model."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import click

from hyparflow import launcher
from hyparflow.cli.refused import Refused
from hyparflow.schedule import SCHEDULES

__all__ = ["plan"]

_REASON = 300  # letters of an error of Keras's, which may show whole models


@click.command()
@click.argument("model")
@click.option("--ranks", type=click.IntRange(1), help="Ranks to use.  [default: of the cluster]")
@click.option("--batch-size", type=click.IntRange(1), required=True, help="The global batch.")
@click.option("--memory-limit", help="Of each rank, beside what it has before training: 8GiB.")
@click.option("--cluster", type=click.Path(exists=True), help="What 'doctor --network' wrote.")
@click.option("--nodes", type=click.IntRange(1), help="Nodes to spread ranks over.  [default: 1]")
@click.option(
    "--costs",
    default="measure",
    show_default=True,
    help='"measure", "estimate", or a file of --save-costs.',
)
@click.option("--save-costs", type=click.Path(), help="Write the costs to this file.")
@click.option("--threads", type=click.IntRange(1), help="Of each rank.  [default: cores / ranks]")
@click.option("--optimizer", help="For a model that is not compiled, for example adam.")
@click.option("--set", "settings", multiple=True, help="NAME=VALUE for the function MODEL.")
@click.option("--num-replicas", type=click.IntRange(1), help="Decided already.")
@click.option("--num-partitions", type=click.IntRange(1), help="Decided already.")
@click.option("--num-microbatches", type=click.IntRange(1), help="Decided already.")
@click.option("--schedule", type=click.Choice(SCHEDULES), help="Decided already.")
@click.option("--plot", type=click.Path(), help="Draw the plan into this file.")
@click.option("--save", type=click.Path(), help="Write the plan to this file, as JSON.")
def plan(model: str, **options: Any) -> None:
    """Show the fastest layout of MODEL that fits in memory.

    MODEL is a saved Keras model, or FILE.py:FUNCTION, a function that returns one. No MPI is
    needed. Costs are measured on this machine.
    """
    try:
        _plan(model, **options)
    except (ValueError, ImportError, OSError) as error:
        raise Refused(str(error)) from error


def _plan(
    model: str,
    ranks: int | None,
    batch_size: int,
    memory_limit: str | None,
    cluster: str | None,
    nodes: int | None,
    costs: str,
    save_costs: str | None,
    threads: int | None,
    optimizer: str | None,
    settings: tuple[str, ...],
    plot: str | None,
    save: str | None,
    **decided: Any,
) -> None:
    from hyparflow.gantt import check_picture
    from hyparflow.planning import Cluster

    for path in filter(None, (plot, save, save_costs)):
        if not Path(path).absolute().parent.is_dir():
            raise ValueError(f"Files are written into folders that exist. Received: {path}")
    if plot:
        check_picture(plot)
    if cluster is not None:
        machine = Cluster.load(cluster, **_shape(ranks, nodes))
    elif ranks is None:
        raise ValueError("A plan needs --ranks or --cluster. Received: neither")
    else:
        machine = Cluster(**_shape(ranks, nodes))
    # Measured with the threads that a rank will have.
    cores = len(launcher.usable_cores())
    launcher.set_threads(os.environ, threads or max(1, cores // machine.ranks_per_node))
    built = _load(model, settings)
    if optimizer is not None and not built.compiled:
        built.compile(optimizer)

    from hyparflow.plans import costs_of_model
    from hyparflow.plans import plan as make_plan

    known = costs_of_model(built, costs, batch_size, machine, _say)
    click.echo("\r\033[K" if sys.stderr.isatty() else "", nl=False, err=True)
    if save_costs:
        known.save(save_costs)
    made = make_plan(
        built,
        batch_size=batch_size,
        memory_limit=memory_limit,
        cluster=machine,
        costs=known,
        **decided,
    )
    click.echo(str(made))
    if save:
        made.save(save)
    if plot:
        made.plot(plot)


def _shape(ranks: int | None, nodes: int | None) -> dict[str, Any]:
    if ranks is None:
        return {} if nodes is None else {"nodes": nodes}
    nodes = nodes or 1
    if ranks % nodes:
        raise ValueError(
            f"The ranks must be the same on every node. Received: {ranks} ranks on {nodes} nodes"
        )
    return {"nodes": nodes, "ranks_per_node": ranks // nodes}


def _load(model: str, settings: tuple[str, ...]) -> Any:
    """The model in the file, or what the function FILE.py:FUNCTION returns."""
    import keras

    path, _, name = model.partition(".py:")
    if not name:
        if not Path(model).exists():
            raise ValueError(
                "MODEL must be a saved Keras model, or FILE.py:FUNCTION. "
                f"Received: {model}, which does not exist"
            )
        if Path(model).suffix == ".py":
            raise ValueError(
                f"A Python file is given with its function. Received: {model}. Write "
                f"{model}:FUNCTION."
            )
        if settings:
            raise ValueError(f"--set is for FILE.py:FUNCTION. Received: {model} and --set")
        try:
            return keras.models.load_model(model)
        except Exception as error:  # Keras raises many types, as do layers that it loads
            reason = str(error).strip().split("\n")[0][:_REASON]
            raise ValueError(
                "MODEL must be a file that Keras can load, or FILE.py:FUNCTION, which builds one. "
                f"Received: {model}. If the file is whole, it needs layers, losses or metrics that "
                f"only a function can bring. Keras says: {type(error).__name__}: {reason}"
            ) from error
    file = Path(f"{path}.py")
    if not file.exists():
        raise ValueError(f"No file {file}. Received: {model}")
    sys.path.insert(0, str(file.parent))  # as when Python runs the file
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no Python file. Received: {model}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{file} raised {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{file} has no function '{name}'. Received: {model}")
    values = _values(settings)
    try:
        inspect.signature(getattr(module, name)).bind(**values)
    except TypeError as error:
        raise ValueError(f"{name}: {error}. Give its arguments by --set NAME=VALUE.") from error
    try:
        built = getattr(module, name)(**values)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{model} raised {type(error).__name__}: {error}") from error
    if not isinstance(built, keras.Model):
        raise ValueError(f"{name} must return a keras.Model. Received: {type(built).__name__}")
    return built


def _values(settings: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE. Received: {setting}")
        try:
            values[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            values[name] = text
    return values


def _say(line: str) -> None:
    """Progress, on one line of a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[Kmeasuring {line}", nl=False, err=True)
