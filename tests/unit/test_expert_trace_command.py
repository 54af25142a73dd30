"""``hyparflow experts trace``, as typed in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result
from language_models import kept_model

import hyparflow as hf
from hyparflow.cli.main import main

TOKENS = np.random.default_rng(0).integers(1, 30, (9, 12)).astype("int32")
BUILDER = """
import sys
sys.path.insert(0, {folder!r})
import keras
from byte_text import byte_preprocessor
from language_models import GROUPED, EXPERTS, SMALL

def mixtral(layers=2):
    import keras_hub
    keras.utils.set_random_seed(1)
    sizes = SMALL | GROUPED | EXPERTS | {{"vocabulary_size": 257, "num_layers": layers}}
    backbone = keras_hub.models.MixtralBackbone(**sizes)
    return keras_hub.models.MixtralCausalLM(backbone, byte_preprocessor(16), name="mixtral")

def dense():
    return keras.Sequential([keras.Input([12]), keras.layers.Dense(3)], name="dense")
"""


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["experts", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, a file that builds others, arrays and a text."""
    made = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(1)
    tokens = keras.Input([12], dtype="int32", name="tokens")
    x = keras.layers.Embedding(30, 8)(tokens)
    for number in range(3):
        x = x + hf.layers.MixtureOfExperts(4, 8, top_k=1, name=f"experts_{number}")(x)
    keras.Model(tokens, x, name="small").save(made / "small.keras")
    (made / "builder.py").write_text(BUILDER.format(folder=str(Path(__file__).parents[1])))
    np.savez(made / "tokens.npz", tokens=TOKENS)
    np.savez(made / "large.npz", tokens=TOKENS + 30)
    np.savez(made / "two.npz", tokens=TOKENS, more=TOKENS)
    (made / "text.txt").write_text("To be, or not to be: that is the question. " * 4)
    (made / "empty.txt").write_text("")
    (made / "latin.txt").write_bytes(b"caf\xe9")
    (made / "preset").mkdir()
    return made


def test_arrays_of_a_saved_model(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "trace.npz"
    given = [folder / "small.keras", "--data", folder / "tokens.npz", "--batch-size", 4]
    result = command("trace", *given, "--save", saved)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "Routing trace of small: 108 tokens, 3 layers of 4 experts, top 1"
    expected = hf.trace_experts(keras.models.load_model(folder / "small.keras"), TOKENS)
    assert np.array_equal(hf.RoutingTrace.load(saved).experts, expected.experts)
    result = command("place", saved, "--ranks", 2, "--seconds", 0.1, "--max-load", 2)
    assert result.exit_code == 0 and "Placement of small" in result.output


def test_a_text(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra 'plot')")
    model = f"{folder / 'builder.py'}:mixtral"
    given = ["--text", folder / "text.txt", "--sequence-length", 11, "--set", "layers=3"]
    saved = ["--save", tmp_path / "trace.csv", "--plot", tmp_path / "trace.png"]
    result = command("trace", model, *given, *saved)
    assert result.exit_code == 0, result.output
    letters = len((folder / "text.txt").read_text())
    tokens = letters + -(-letters // 10)  # each row has one more, with which it begins
    assert f"Routing trace of mixtral: {tokens} tokens, 3 layers of 4 experts, top 2" in (
        result.output
    )
    assert hf.RoutingTrace.load(tmp_path / "trace.csv").num_tokens == tokens
    assert (tmp_path / "trace.png").stat().st_size > 10_000


def test_a_preset(tmp_path: Path) -> None:
    """Without a tokenizer, where it needs none."""
    model = kept_model("Mixtral")
    model.backbone.save_to_preset(tmp_path / "preset")
    inputs = {"token_ids": TOKENS, "padding_mask": np.tile([1] * 8 + [0] * 4, (9, 1))}
    np.savez(tmp_path / "tokens.npz", **inputs)
    given = ["--data", tmp_path / "tokens.npz", "--save", tmp_path / "trace.npz"]
    result = command("trace", tmp_path / "preset", *given)
    assert result.exit_code == 0, result.output
    trace = hf.RoutingTrace.load(tmp_path / "trace.npz")
    assert np.array_equal(trace.experts, hf.trace_experts(model, inputs).experts)
    assert trace.num_tokens == 72


def test_a_process_of_its_own_knows_the_layer(folder: Path) -> None:
    """Nobody else has imported it there."""
    given = ["trace", "small.keras", "--data", "tokens.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "hyparflow.cli", "experts", *given],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "108 tokens" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small.keras"], "Received: neither --text nor --data"),
        (["small.keras", "--text", "text.txt", "--data", "tokens.npz"], "both --text and --data"),
        (["no.keras", "--data", "tokens.npz"], "Received: no.keras, which does not exist"),
        (["small.keras", "--data", "no.npz"], "for each input of the model. Received: no.npz"),
        (["small.keras", "--data", "text.txt"], "for each input of the model. Received: text.txt"),
        (["small.keras", "--data", "two.npz"], "Received: ['more', 'tokens'] for the inputs"),
        (["small.keras", "--data", "large.npz"], "such as the model can compute. Received: what"),
        (["small.keras", "--text", "text.txt"], "must have a preprocessor that makes tokens"),
        (["small.keras", "--text", "empty.txt"], "in UTF-8. Received: empty.txt, which is empty"),
        (["small.keras", "--text", "latin.txt"], "in UTF-8. Received: latin.txt ("),
        (["builder.py:dense", "--data", "tokens.npz"], "must have layers with experts"),
        (["preset", "--data", "tokens.npz"], "A folder must be a preset of KerasHub"),
        (["preset", "--data", "tokens.npz", "--set", "a=1"], "--set is for FILE.py:FUNCTION"),
        (["small.keras", "--data", "tokens.npz", "--save", "no/t.npz"], "folders that exist"),
        (["small.keras", "--data", "tokens.npz", "--plot", "t.txt"], "A picture's file ends with"),
        (["small.keras", "--data", "tokens.npz", "--sequence-length", "4"], "is for text"),
    ],
    ids=str,
)
def test_mistakes_are_one_message(
    arguments: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(os.listdir())
    result = command("trace", *arguments)
    assert result.exit_code == 2
    assert message in result.output and len(re.findall("^Error: ", result.output, re.M)) == 1
    assert "Traceback" not in result.output
    assert sorted(set(os.listdir()) - {"__pycache__"}) == sorted(set(before) - {"__pycache__"})
