"""Keeps the output of several ranks readable: rank 0 shows progress, every rank its failures."""

import io
import sys

import pytest
import tensorflow as tf
from mpi4py import MPI

RANK, SIZE = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def pytest_collection_modifyitems(config, items):
    """Leave out tests for their time, which four ranks on two cores take most of.

    Of four tests of `fit` one runs on one rank, two on 2 and one on 4; of the contract's models,
    2 ranks train all, and 4 ranks and one rank every third. With the newer features together every
    fourth has 4 ranks, where all of them do something, and three small ones have 2.
    """
    if config.getoption("--everything"):
        return
    fits = [item for item in items if item.path.name == "test_fit.py"]
    contract = [item for item in items if item.path.name == "test_contract.py"]
    models = [
        item for item in contract if item.originalname != "test_public_api_alone_equals_plain"
    ]
    together = [item for item in items if item.path.name == "test_together.py"]
    if SIZE == 1:
        kept = fits[::4] + models[1::3] + together[1::8]
    elif SIZE == 2:
        kept = fits[2::4] + fits[3::4] + models + together[5::2]
    else:
        kept = fits[1::4] + models[::3] + together[::4]
    left_out = [item for item in fits + models + together if item not in kept]
    for item in items:
        mark = item.get_closest_marker("on_ranks")
        if item in left_out or (mark and SIZE not in mark.args):
            reason = "on this number of ranks only with --everything"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.addinivalue_line("markers", "on_ranks(*sizes): elsewhere only with --everything")
    if RANK != 0:
        config.pluginmanager.get_plugin("terminalreporter")._tw._file = io.StringIO()


def _tell(report):
    # At once, not in the summary: the first rank that fails ends the job, with all summaries.
    if report.failed and SIZE > 1:
        where = f"rank {RANK} of {SIZE}: {report.nodeid}"
        sys.stderr.write(f"\n--- {where}\n{report.longreprtext}\n")
        sys.stderr.flush()


pytest_runtest_logreport = pytest_collectreport = _tell


@pytest.fixture
def in_float64():
    """For what compares with plain Keras to rounding."""
    from contract import float_type

    with float_type("float64"):
        yield


@pytest.fixture(autouse=True)
def graphs_as_they_are(request):
    """Spare TensorFlow's optimization of graphs, a fifth of the time, where it decides nothing.

    The contract is tested with it, and so is mixed precision, where it changes what is rounded.
    """
    on = request.path.name == "test_contract.py" or "Precision" in request.node.name
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not on})
