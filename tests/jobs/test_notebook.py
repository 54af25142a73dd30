"""The notebook among the examples, and the recipe for clusters of engines, as Jupyter runs them."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
from jobs.jobs import user_environment

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
ENGINES = """
import ipyparallel as ipp

cluster = ipp.Cluster(engines="mpi", n=2)
engines = cluster.start_and_connect_sync()
---
%%px
import keras, numpy as np
import hyparflow as hf

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((6,)), *(keras.layers.Dense(8) for _ in range(4))])
model.compile("sgd", "mse")
x, y = np.ones((32, 6)), np.ones((32, 8))
---
%%px
history = hf.fit(model, x, y, batch_size=16, epochs=2, verbose=0, num_partitions=2)
---
%%px
history = hf.fit(model, x, y, batch_size=16, epochs=1, verbose=0, strategy="data")
---
%%px
print("rank", hf.rank(), "of", hf.size(), history.history["loss"])
---
cluster.stop_cluster_sync()
"""


def execute(notebook: Any, folder: pathlib.Path) -> str:
    """Run all cells in `folder`; what they wrote."""
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=user_environment())
    written = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            written.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(written)


# What takes long and shows no more.
SHORTER = {"epochs=6,": "epochs=3,", "[1e-3, 3e-3]": "[1e-3]", "8192 + 1": "2048 + 1"}


def shorten(notebook: Any) -> None:
    """Train for fewer epochs, and try one learning rate."""
    for long, short in SHORTER.items():
        (cell,) = (cell for cell in notebook.cells if long in cell.source)
        cell.source = cell.source.replace(long, short)


@pytest.mark.parametrize("epochs", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_the_notebook_runs(epochs: int, tmp_path: pathlib.Path) -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    if epochs == 3:
        shorten(notebook)
    written = execute(notebook, tmp_path)
    # Rank 0's epochs appear in the cell, and what it learnt is in the notebook's own model.
    assert f"Epoch {epochs}/{epochs}" in written
    accuracy = re.search(r"in this notebook: accuracy (\S+), after (\d+) steps", written)
    assert accuracy, written
    assert float(accuracy[1]) > 0.9
    assert int(accuracy[2]) == (1 + epochs) * 22  # and steps of each; the prototype's epoch too
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert "milliseconds of a step" in written
    losses = re.search(r"loss: \[(.*)\]", written)
    assert losses, written
    first, *_, last = map(float, losses[1].split(","))
    assert last < first  # of a sequence in chunks
    assert "the power is gone\n" in written
    assert "True True\n" in written  # the History and the weights after that
    assert re.search(r"^ *88 +4 +0 +1 x 1 .* yes", written, re.M)  # the last checkpoint


@pytest.mark.slow
def test_a_cluster_of_engines(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("ipyparallel")
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in ENGINES.split("---")]
    written = execute(nbformat.v4.new_notebook(cells=cells), tmp_path)
    said = dict(re.findall(r"rank (\d) of 2 (\[.*\])", written))
    assert said.keys() == {"0", "1"}, written
    assert said["0"] == said["1"]
