"""The kernels of CUDA devices run on one if there is one, and under Triton's interpreter in test_interpreted.py.

Triton compiles or interprets from its import to the end of a process, so one without a device leaves them alone
unless it was told to interpret.
"""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*_kernels.py"]


def pytest_collection_modifyitems(items):
    """The interpreter's NumPy warns of infinities that a device makes without a word."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"))


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
