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


def test_the_notebook_runs(tmp_path: pathlib.Path) -> None:
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    written = execute(notebook, tmp_path)
    # Rank 0's epochs appear in the cell, and what it learnt is in the notebook's own model.
    assert "Epoch 6/6" in written
    accuracy = re.search(r"in this notebook: accuracy (\S+), after (\d+) steps", written)
    assert accuracy, written
    assert float(accuracy[1]) > 0.9
    assert int(accuracy[2]) == 7 * 22  # epochs and steps of each, the prototype's too
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert "milliseconds of a step" in written


@pytest.mark.slow
def test_a_cluster_of_engines(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("ipyparallel")
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in ENGINES.split("---")]
    written = execute(nbformat.v4.new_notebook(cells=cells), tmp_path)
    said = dict(re.findall(r"rank (\d) of 2 (\[.*\])", written))
    assert said.keys() == {"0", "1"}, written
    assert said["0"] == said["1"]
