"""``hyparflow experts trace``: which experts of a model the tokens of a text or file visit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyparflow.cli.model_file import load_model
from hyparflow.cli.output_files import require_outputs
from hyparflow.cli.refused import Refused
from hyparflow.formats.plain_files import require_plain
from hyparflow.formats.text import shortened
from hyparflow.launching.installation import install_command

if TYPE_CHECKING:
    from hyparflow.experts.trace import RoutingTrace

__all__ = ["draw_trace", "trace"]

_DATA = "--data must be a file .npz with an array for each input of the model."


@click.command(short_help="Record which experts tokens visit.")
@click.argument("model")
@click.option(
    "--text", type=click.Path(), help="A text, of which the model's preprocessor makes tokens."
)
@click.option("--data", type=click.Path(), help="A file .npz with an array for each input.")
@click.option(
    "--sequence-length",
    type=click.IntRange(2),
    help="Tokens of a row that text is cut into.  [default: what the preprocessor says]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Rows that are computed at a time.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    help="NAME=VALUE: an argument of FUNCTION; may be given several times.",
)
@click.option("--save", type=click.Path(), help="Write the trace to this file: .npz or .csv.")
@click.option("--plot", type=click.Path(), help="Draw it into this file, for example affinity.png.")
def trace(
    model: str,
    text: str | None,
    data: str | None,
    save: str | None,
    plot: str | None,
    settings: Sequence[str],
    **options: Any,
) -> None:
    """Record which experts of MODEL tokens are sent to, layer by layer.

    MODEL is a saved Keras model, FILE.py:FUNCTION, which returns one, or the folder of a preset of
    KerasHub. The tokens are those of --text or --data.
    """
    try:
        require_outputs(plot, save)
        if (text is None) == (data is None):
            raise ValueError(
                "A trace is of a text or of arrays. Received: "
                f"{'neither --text nor --data' if text is None else 'both --text and --data'}. "
                "Give one of them."
            )
        given = _text_of(text) if text is not None else _arrays_of(str(data))
        loaded = _loaded(model, settings, takes_text=text is not None)
        from hyparflow.experts.page import trace_page

        found = _traced(loaded, given if isinstance(given, str) else _named(loaded, given), options)
        trace_page(found).show()
        if save:
            found.save(save)
        if plot:
            draw_trace(plot, found)
    except (ValueError, ImportError, OSError, MemoryError) as error:
        raise Refused(str(error)) from error


def _traced(model: Any, inputs: Any, options: dict[str, Any]) -> RoutingTrace:
    from hyparflow.model.experts.trace_experts import trace_experts

    try:
        return trace_experts(model, inputs, **options)
    except (ValueError, ImportError, OSError, MemoryError):
        raise
    except Exception as error:  # of TensorFlow, for example of a token that is not in a table
        reason = str(error).strip().split("\n")[0][:300]
        raise ValueError(
            "The inputs must be such as the model can compute. "
            f"Received: what gives {type(error).__name__}: {reason}"
        ) from error


def draw_trace(plot: str, trace: RoutingTrace) -> None:
    """Draw which expert follows which into a file."""
    from hyparflow.experts.picture import affinity_size, draw_affinity
    from hyparflow.planning.gantt import new_figure, save_picture

    figure = new_figure(*affinity_size(trace))
    draw_affinity(figure, trace)
    save_picture(figure, plot)


def _text_of(path: str) -> str:
    rule = "--text must be a file of text, in UTF-8."
    require_plain(path, rule)
    try:
        found = Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{rule} Received: {path} ({error})") from error
    if not found:
        raise ValueError(f"{rule} Received: {path}, which is empty")
    return found


def _arrays_of(path: str) -> dict[str, Any]:
    """The arrays of a file, by their names."""
    import numpy as np

    require_plain(path, _DATA)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file}
    except Exception as error:  # NumPy and zipfile raise many types
        raise ValueError(f"{_DATA} Received: {path} ({error})") from error
    if not found:
        raise ValueError(f"{_DATA} Received: {path}, which has none")
    return found


def _named(model: Any, arrays: dict[str, Any]) -> Any:
    """The arrays as the model takes them: by name, or the only one."""
    import keras

    inputs = getattr(model, "inputs", None)
    names = [x.name for x in keras.tree.flatten(inputs)] if inputs else sorted(arrays)
    if len(names) == 1 and len(arrays) == 1:
        (array,) = arrays.values()
        return {names[0]: array} if isinstance(getattr(model, "input", None), dict) else array
    if set(names) != set(arrays):
        raise ValueError(f"{_DATA} Received: {sorted(arrays)} for the inputs {shortened(names)}")
    return arrays


def _loaded(model: str, settings: Sequence[str], takes_text: bool) -> Any:
    """The model, with the layers known that may be in its file."""
    if not Path(model).is_dir():
        with contextlib.suppress(ImportError):
            import keras_hub  # noqa: F401
        return load_model(model, settings)
    if settings:
        raise ValueError(f"--set is for FILE.py:FUNCTION. Received: {model} and --set")
    return _preset(model, {} if takes_text else {"preprocessor": None})


def _preset(folder: str, arguments: dict[str, Any]) -> Any:
    try:
        import keras_hub
    except ImportError as error:
        raise ImportError(
            "A folder is a preset of KerasHub. Received: an environment without "
            f"{error.name}. Install it by: {install_command('serve')}"
        ) from error
    try:
        return keras_hub.models.CausalLM.from_preset(folder, **arguments)
    except Exception as error:  # Keras, and layers that it loads, raise many types
        reason = str(error).strip().split("\n")[0][:300]
        raise ValueError(
            "A folder must be a preset of KerasHub. "
            f"Received: {folder}. Keras says: {type(error).__name__}: {reason}"
        ) from error
