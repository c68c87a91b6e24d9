"""What holds for all tests."""

import os

import pytest
import torch
from tests import toy_method, toy_task

toy_method.register()  # before tests are made of all methods
toy_task.register()

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start; for this one see `one_thread`


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors are slower on several threads, and results do not depend on the machine's number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the tests of a file in one worker process, as they share fixtures; start with the files that take long."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
