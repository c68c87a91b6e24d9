"""What holds for all tests."""

import pytest
import torch
from tests import toy_method

toy_method.register()  # before tests are made of all methods


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors are slower on several threads, and results do not depend on the machine's number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
