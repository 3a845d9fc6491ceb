"""Bytes of checkpoints and weights change on the disk: what is used is what was written."""

import logging
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from tests.faults import faults
from xpt.models.init import read_saved
from xpt.training.saved import DESCRIPTION, newest, read

pytestmark = pytest.mark.launch


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def survive(run: Path, cases: int) -> None:
    checkpoints = run / "checkpoints"
    older, newer = sorted(checkpoints.glob("images-*"))
    written, files = read(newer), sorted(p for p in newer.rglob("*") if p.is_file())
    whole = content(newer)
    skipped = 0
    # Half of the faults in what describes the rest; `latest` is for people only.
    chosen = [*files, *[newer / DESCRIPTION] * len(files), checkpoints / "latest"]
    for path, changed in faults(chosen, cases, seed=2):
        found = newest(run)
        assert found is not None
        if found.folder == newer:
            assert path.name in (DESCRIPTION, "latest"), f"{path} was taken with other bytes: {changed[:100]}"
            assert found.description == written.description
            assert {n: b for n, b in content(newer).items() if n != DESCRIPTION} == {
                n: b for n, b in whole.items() if n != DESCRIPTION
            }
        else:
            assert found.folder == older
            (checkpoints / f"damaged-{newer.name}").rename(newer)
            skipped += 1
    assert skipped > cases // 2


@pytest.mark.parametrize("cases", [120, pytest.param(4000, marks=pytest.mark.soak)])
def test_a_checkpoint_with_a_fault_is_passed_over(
    undisturbed: Path, tmp_path: Path, cases: int, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.ERROR)
    shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints")
    survive(tmp_path, cases)


@pytest.mark.parametrize("cases", [120, pytest.param(4000, marks=pytest.mark.soak)])
def test_weights_with_a_fault_are_refused(tmp_path: Path, cases: int):
    path = tmp_path / "best.pt"
    weights = {f"block.{n}": torch.randn(8, 16) for n in range(8)}
    torch.save({"model": weights, "images": 96}, path)
    refused = 0
    for _, _changed in faults([path], cases, seed=3):
        try:
            loaded = read_saved(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert loaded["images"] == 96
        assert all(torch.equal(loaded["model"][name], value) for name, value in weights.items())
    assert refused > cases // 2


def test_pytorch_writes_the_checksums_that_are_looked_at(tmp_path: Path):
    torch.save(torch.zeros(4096), tmp_path / "zeros.pt")
    data = bytearray((tmp_path / "zeros.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "zeros.pt").write_bytes(data)
    assert zipfile.ZipFile(tmp_path / "zeros.pt").testzip() is not None
    with pytest.raises(ValueError, match="does not have its checksum"):
        read_saved(tmp_path / "zeros.pt")
