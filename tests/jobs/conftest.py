"""Leaves out half of the cases of each test, for their time: every case starts a job.

Of the cases that start jobs again and again one of four stays.
"""

from thinning import thin

_OFTEN = ("test_checkpoints.py", "test_restart_faults.py", "test_restarts.py")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--everything"):
        jobs = [item for item in items if "tests/jobs" in item.path.as_posix()]
        often = [item for item in jobs if item.path.name in _OFTEN]
        thin([item for item in jobs if item not in often], 2)
        thin(often, 4)
