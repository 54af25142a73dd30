"""What is left out for its time, unless --everything is asked for."""

import gc

import pytest


def pytest_addoption(parser):
    parser.addoption("--everything", action="store_true", help="leave nothing out for its time")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: runs only with --everything")


def pytest_collection_modifyitems(config, items):
    """Leave out what is slow."""
    if not config.getoption("--everything"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="for its time only with --everything"))


def pytest_collection_finish(session):
    """Keep what TensorFlow's import has made out of all garbage collections, for their time."""
    gc.collect()
    gc.freeze()
