"""Each tool is tried; what is broken, absent or dies is named."""

import pytest

from xpt.training import environment
from xpt.training.environment import CHECKS, Check, check, check_environment, faults


@pytest.mark.launch
def test_every_tool_is_tried_in_a_process_of_its_own():
    found = {each.name: each for each in check_environment()}
    assert list(found) == list(CHECKS)
    for name in ("PyTorch", "triton", "DALI", "DeepSpeed"):
        assert found[name].state == "works", found[name]
        assert found[name].version[0].isdigit()
    for name in ("driver", "CUDA", "NCCL", "flash-attn", "Slurm"):
        assert found[name].said


def test_a_check_that_kills_its_process_is_named_and_the_rest_go_on(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def run(command, **_):
        calls.append(command[3:])
        lines = [line_of(name) for name in command[3:]]
        dies = "DALI" in command
        kept = lines[: command[3:].index("DALI")] if dies else lines
        return environment.subprocess.CompletedProcess(command, -11 if dies else 0, "\n".join(kept), "")

    def line_of(name: str) -> str:
        return f'{{"name": "{name}", "state": "works", "version": "1", "said": "", "remedy": ""}}'

    monkeypatch.setattr(environment.subprocess, "run", run)
    found = check_environment(["PyTorch", "DALI", "DeepSpeed"])
    assert calls == [["PyTorch", "DALI", "DeepSpeed"], ["DeepSpeed"]]
    assert [each.state for each in found] == ["works", "broken", "works"]
    assert (
        "ended with status -11" in found[1].said
        and "python -m xpt.training.environment DALI" in found[1].remedy
    )


def test_what_a_broken_tool_raises_is_reported(monkeypatch: pytest.MonkeyPatch):
    def broken() -> str:
        raise OSError("libdali.so: cannot open shared object file\nmore")

    def absent() -> str:
        import no_such_module  # pyright: ignore[reportMissingImports]

        return str(no_such_module)

    monkeypatch.setitem(CHECKS, "DALI", broken)
    assert check("DALI").state == "broken"
    assert check("DALI").said == "OSError: libdali.so: cannot open shared object file"
    monkeypatch.setitem(CHECKS, "DALI", absent)
    assert check("DALI") == Check(
        name="DALI", state="absent", said="No module named 'no_such_module'", remedy="make install"
    )
    assert [each.name for each in faults([check("DALI"), check("PyTorch")])] == ["DALI"]


def test_a_driver_that_pytorch_cannot_use_is_no_matter_of_course(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = check("CUDA")
    assert found.state == "broken" and "cannot use it" in found.said and "driver" in found.remedy
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert check("CUDA").state == "unused"
    assert check("NCCL").state == "unused"
