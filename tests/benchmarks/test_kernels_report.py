"""The report of the compiled kernels."""

import dataclasses
import os
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: this process interprets kernels", allow_module_level=True)

from benchmarks import kernels_report
from kernels.catalogue import launches
from tests.conftest import ROOT


def rows(text: str) -> dict[str, list[str]]:
    cells = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| mask", "| patch"))
    ]
    return {row[0]: row[1:] for row in cells}


def test_the_report_has_every_kernel_and_no_spills(tmp_path: Path):
    kernels_report.main(["--out", str(tmp_path / "kernels.md"), "--capabilities", "90"])
    found = rows((tmp_path / "kernels.md").read_text())
    assert found.keys() == {launch.name for launch in launches()}
    for stack, local in ((row[2], row[3]) for row in found.values()):
        assert stack == local == "0"
    # 32 images, 75% masked, bf16, 3.015 TB/s: what DESIGN computed by hand for the gather.
    assert 16 < float(found["mask_gather, stratified, 75% masked, bfloat16"][-1]) < 18.5


def test_a_kernel_that_spills_fails_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sound = kernels_report.compile_kernel
    monkeypatch.setattr(
        kernels_report, "compile_kernel", lambda *a: dataclasses.replace(sound(*a), stack_bytes=8)
    )
    with pytest.raises(ValueError, match=r"mask_gather, stratified.*8 bytes of stack.*it spills"):
        kernels_report.main(["--out", str(tmp_path / "kernels.md"), "--capabilities", "90"])
    assert not (tmp_path / "kernels.md").exists()


def test_the_report_in_the_repository_is_of_these_kernels():
    assert rows((ROOT / "docs" / "kernels.md").read_text()).keys() == {launch.name for launch in launches()}
