"""Tests of the Triton kernels: native on a GPU, else in Triton's interpreter.

The interpreter is chosen for a whole process, before triton is imported: without a GPU these files are
collected only where TRITON_INTERPRET=1 is set, as `test_triton_interpreter.py` does for a child process.
"""

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not INTERPRETED:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def units() -> int:
    """Units in the last place by which a rounding to bf16 may differ: the interpreter cuts off."""
    return 1 if INTERPRETED else 0
