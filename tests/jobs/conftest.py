"""Leaves out half of the cases of each test, for their time: every case starts a job."""

from thinning import thin


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--everything"):
        thin([item for item in items if "tests/jobs" in item.path.as_posix()], 2)
