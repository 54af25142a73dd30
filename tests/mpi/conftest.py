"""Keeps the output of several ranks readable: rank 0 shows progress, every rank its failures."""

import io
import sys

import pytest
import tensorflow as tf
from mpi4py import MPI
from thinning import leave_out, thin

RANK, SIZE = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
ELSEWHERE = "on this number of ranks only with --everything"


# Of the cases of one test every so many run, from one on, by the number of ranks.
CASES = {1: (3, 2), 2: (3, 0), 4: (4, 1)}


def pytest_collection_modifyitems(config, items):
    """Leave out tests for their time, which four ranks on two cores take most of.

    Of the cases of a test every third runs on 2 ranks and on one, every fourth on 4. Of four tests
    of `fit` one runs on one rank, two on 2 and one on 4. With the newer features together every
    eighth has 4 ranks, where all of them do something, and few small ones have 2 and one.
    """
    if config.getoption("--everything"):
        return
    for item in items:
        mark = item.get_closest_marker("on_ranks")
        if mark and SIZE not in mark.args:
            leave_out(item, ELSEWHERE)
    fits = [item for item in items if item.path.name == "test_fit.py"]
    together = [item for item in items if item.path.name == "test_together.py"]
    if SIZE == 1:
        kept = fits[::4] + together[1::16]
    elif SIZE == 2:
        kept = fits[2::4] + fits[3::4] + together[5::4]
    else:
        kept = fits[1::4] + together[::8]
    for item in {*fits, *together} - {*kept}:
        leave_out(item, ELSEWHERE)
    thin([item for item in items if item not in kept], *CASES.get(SIZE, (1, 0)))


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
