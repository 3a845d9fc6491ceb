"""Shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CXR = ROOT.parent / "shared" / "cxr"

# Test processes run beside each other: one thread each keeps them from starving one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not CXR.is_dir():
        absent = pytest.mark.skip(reason="real films are absent: ../shared/cxr")
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(absent)


@pytest.fixture
def cxr() -> Path:
    """Folder of real chest films; tests that ask for it carry the marker `realdata`."""
    return CXR
