"""Shared by all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
CXR = ROOT.parent / "shared" / "cxr"

# Test processes run beside each other: one thread each keeps them from starving one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A script's `make test &` starts with Ctrl-C ignored, and so would every program that is started here.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not CXR.is_dir():
        absent = pytest.mark.skip(reason="real films are absent: ../shared/cxr")
        for item in items:
            if item.get_closest_marker("realdata"):
                item.add_marker(absent)
    # Workers take files in this order: first those that start processes, so that none of them is the last,
    # with nothing left for the other workers.
    starting = {item.path for item in items if item.get_closest_marker("launch")}
    items.sort(key=lambda item: item.path not in starting)


def pytest_sessionfinish() -> None:
    from tests.programs import programs

    if programs.cache_info().currsize:
        programs().close()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """As it was before the test: joining a process group sets RANK and others, which programs inherit."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def cxr() -> Path:
    """Folder of real chest films; tests that ask for it carry the marker `realdata`."""
    return CXR


@pytest.fixture
def films():
    """image_BCHW, contour_BL, is_valid_BL, position_B of 3 films of the size of `tiny`."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 1, 48, 48), generator=generator, dtype=torch.uint8)
    contour = (torch.rand(3, 36, generator=generator) > 0.5).float()
    valid = torch.ones(3, 6, 6, dtype=torch.bool)
    valid[1, :, 0] = False  # a letterbox bar on the left
    return image, contour, valid.flatten(1), torch.tensor([7, 8, 9])
