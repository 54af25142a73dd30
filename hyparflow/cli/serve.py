"""``hyparflow serve``: a language model that answers over HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyparflow.cli.refused import Refused
from hyparflow.formats.plain_files import require_plain
from hyparflow.launching.installation import install_command

if TYPE_CHECKING:
    from hyparflow.serving.http.app import HttpSettings
    from hyparflow.serving.http.run import HttpServer

__all__ = ["serve"]

_KEY = "HYPARFLOW_API_KEY"


@click.command(short_help="Serve a language model over HTTP.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port to listen at; 0 for one that is free.",
)
@click.option("--name", help="The name of the model for clients.  [default: that of the file]")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False),
    help="A file with a template of Jinja, which makes one text of the messages of a chat.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="The most completions that wait for a place; more are refused.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1),
    default=10**6,
    show_default=True,
    help="The most bytes of a request's body; larger ones are refused.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10,
    show_default=True,
    help="Seconds that requests may go on after SIGTERM or SIGINT.",
)
# Those below are arguments of hyparflow.serve, which gets them by the same names.
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="The most completions that are computed at the same time.",
)
@click.option(
    "--max-length",
    type=click.IntRange(1),
    help="The most tokens of a prompt and what follows it.  [default: 1024, or as many as the "
    "model has learned positions for]",
)
@click.option(
    "--num-partitions", "--partitions", type=click.IntRange(1), help="Partitions of each replica."
)
@click.option(
    "--num-replicas",
    "--replicas",
    type=click.IntRange(1),
    help="Replicas, among which completions are dealt out.  [default: as many as there are ranks "
    "for]",
)
@click.option(
    "--num-shards",
    "--shards",
    type=click.IntRange(1),
    help="Ranks that share the heads of attention of each partition.",
)
@click.option(
    "--expert-parallel",
    is_flag=True,
    help="Let replicas share out the experts of a mixture of experts.",
)
@click.option(
    "--expert-mode",
    type=click.Choice(["home", "coherent", "coherent-returning", "auto"]),
    help="The same; and what they make of a token comes home, which is the default, or the token "
    "goes on there; auto takes what is predicted to be faster.",
)
@click.option(
    "--cluster",
    type=click.Path(exists=True, dir_okay=False),
    help="A file of `hyparflow doctor --network`, which auto goes by.  [default: it measures]",
)
@click.option(
    "--placement",
    type=click.Path(exists=True, dir_okay=False),
    help="A file of `hyparflow experts place`: which replica has which expert.",
)
@click.argument("model", type=click.Path(exists=True))
def serve(
    model: str,
    host: str,
    port: int,
    name: str | None,
    chat_template: str | None,
    max_waiting: int,
    max_body: int,
    grace: float,
    expert_parallel: bool,
    expert_mode: str | None,
    **engine: Any,
) -> None:
    """Serve MODEL over HTTP, in the way of OpenAI's interface.

    MODEL is a file .keras of a language model of KerasHub with its preprocessor, or the folder of a
    preset. Started by mpirun or srun, all ranks compute, and rank 0 listens. Clients need the key
    in the environment variable HYPARFLOW_API_KEY, if there is one. SIGTERM and SIGINT end the
    server.
    """
    try:
        import keras_hub  # noqa: F401  # so that it is not missed later
        import uvicorn  # noqa: F401

        from hyparflow.serving.http.app import HttpSettings
        from hyparflow.serving.http.chat_template import ChatTemplate
    except ImportError as error:
        raise Refused(
            "`hyparflow serve` needs packages for HTTP and for language models. Received: an "
            f"environment without {error.name}. Install them by: {install_command('serve')}"
        ) from error
    try:
        settings = HttpSettings(
            name=name or Path(os.path.abspath(model)).stem,
            key=os.environ.get(_KEY) or None,
            template=None if chat_template is None else ChatTemplate(_read(chat_template)),
            max_waiting=max_waiting,
            most_bytes=max_body,
        )
        engine["expert_parallel"] = expert_mode or expert_parallel
        status = _served(model, engine, bound_at=(host, port), settings=settings, grace=grace)
    except (ValueError, OSError, ImportError) as error:
        raise Refused(str(error)) from error
    sys.exit(status)


def _served(
    model: str,
    engine: dict[str, Any],
    bound_at: tuple[str, int],
    settings: HttpSettings,
    grace: float,
) -> int:
    """Serve, until a signal comes: the exit status."""
    from hyparflow.serving.http.run import HttpServer, until_signal
    from hyparflow.serving.serve import serve as serve_model

    status = 0
    with contextlib.ExitStack() as stack:
        listening = _bound(*bound_at)  # before minutes of compiling
        if listening is None:
            # Launchers signal all ranks; the leader finishes requests, then ends the others.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        else:
            stack.enter_context(contextlib.closing(listening))
        with serve_model(_loaded(model), **engine) as server:  # others leave out the block
            if listening is not None:
                http = HttpServer(server, settings, listening)
                status = until_signal(http, lambda http: _say(http, settings.key), grace)
    return status


def _read(path: str) -> str:
    require_plain(path, "--chat-template takes a plain file.")
    return Path(path).read_text("utf-8")


def _bound(host: str, port: int) -> socket.socket | None:
    """On the leader the socket to listen at; None on other ranks, which know whether it is there.

    Raises:
        Refused: if there is no such address, or somebody else has it. Other ranks end, too.
    """
    from hyparflow.comm.leader import LEADER
    from hyparflow.comm.ranks import world
    from hyparflow.serving.http.run import bound

    ranks, found, problem = world(), None, None
    if ranks is None or ranks.rank == LEADER:
        try:
            found = bound(host, port)
        except OSError as error:
            problem = f"{error}. Received: --host {host} --port {port}. Choose another."
    if ranks is not None:
        problem = ranks.broadcast_object(problem, LEADER, "whether the port is free")
        if problem is not None and ranks.rank != LEADER:
            sys.exit(Refused.exit_code)
    if problem is not None:
        raise Refused(problem)
    return found


def _loaded(model: str) -> Any:
    """The language model of a file or folder."""
    import keras
    import keras_hub

    from hyparflow.comm.ranks import world
    from hyparflow.model.deferred import deferred

    ranks = world()
    # Of several ranks each reads the weights that it computes with.
    reads_later = ranks is not None and ranks.size > 1
    try:
        with deferred() if reads_later else contextlib.nullcontext():
            if Path(model).is_dir():
                loaded = keras_hub.models.CausalLM.from_preset(model)
            else:
                loaded = keras.saving.load_model(model, compile=False)
    except Exception as error:  # Keras, and layers that it loads, raise many types
        reason = str(error).strip().split("\n")[0][:300]
        raise ValueError(
            "MODEL must be a file that Keras can load, or a folder that is a preset of KerasHub. "
            f"Received: {model}. Keras says: {type(error).__name__}: {reason}"
        ) from error
    if getattr(loaded, "preprocessor", None) is None:
        raise ValueError(
            "A model that is served over HTTP must have a preprocessor, which makes tokens of "
            f"texts. Received: {model}, a {type(loaded).__name__} without one. Attach it, and save "
            "the model again."
        )
    # For requests that name no sampler, as most do: what is compiled first is theirs.
    loaded.compile(sampler="random")
    return loaded


def _say(http: HttpServer, key: str | None) -> None:
    limits, host = http.service.server.limits, http.host
    line = (
        f"hyparflow serves '{http.service.name}' at {http.address}: at most {limits.max_batch} "
        f"completions at the same time, of {limits.max_length} tokens"
    )
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        line += "; other machines reach it"
        line += "" if key else f", and need no key, since {_KEY} is not set"
    click.echo(f"{line}.")
    sys.stdout.flush()
