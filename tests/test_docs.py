"""The commands in README and docs are commands that exist, with flags that exist.

`make demo` (tests/test_demo.py) walks the three journeys with real films; here every other command's
arguments go through the parser that it has itself.
"""

import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tyro

import shards_tool.cli
import xpt.ckpt
import xpt.doctor
import xpt.embed
import xpt.evaluate
import xpt.export
import xpt.finetune_config
import xpt.report
from tests.conftest import ROOT
from xpt.command_line import parse

PAGES = ["README.md", *(f"docs/{name}.md" for name in ("pretraining", "downstream", "operations", "shards"))]
BLOCK = re.compile(r"^```(?:bash)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHERS = {"deepspeed", "torchrun", "sbatch"}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command without comment and options in brackets)."""
    for page in PAGES:
        for block in BLOCK.findall((ROOT / page).read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\[.*?\]", "", line.split(" #")[0]).replace("...", "").strip()
                word = command.split(" ")[0]
                if word.startswith("xpt-") or word in {"make", *LAUNCHERS}:
                    yield page, command


ALL = list(commands())


def _tyro(options: object) -> Callable[[list[str]], object]:
    return lambda arguments: tyro.cli(options, args=arguments)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _ckpt(arguments: list[str]) -> None:
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(xpt.ckpt, "ls", lambda run: 0)
        patch.setattr(xpt.ckpt, "verify", lambda run: 0)
        patch.setattr(xpt.ckpt, "prune", lambda *_, **__: None)
        patch.setattr(Path, "is_dir", lambda path: True)
        xpt.ckpt.main(arguments)


PARSERS: dict[str, Callable[[list[str]], object]] = {
    "xpt-train": parse,
    "xpt-finetune": xpt.finetune_config.parse,
    "xpt-doctor": xpt.doctor.parse,
    "xpt-export": _tyro(xpt.export.Options),
    "xpt-embed": _tyro(xpt.embed.Options),
    "xpt-report": _tyro(xpt.report.Options),
    "xpt-evaluate": _tyro(xpt.evaluate.Options),
    "xpt-shards": _tyro(shards_tool.cli.Command),
    "xpt-ckpt": _ckpt,
}
SCRIPTS = {
    "xpt/train.py": "xpt-train",
    "xpt/finetune.py": "xpt-finetune",
    "slurm/pretrain.sh": "xpt-train",
    "slurm/finetune.sh": "xpt-finetune",
}


def test_there_are_commands_in_every_page():
    assert {page for page, _ in ALL} == set(PAGES)
    assert len(ALL) > 35


@pytest.mark.parametrize(("page", "command"), ALL, ids=lambda text: text[:60])
def test_a_command_has_a_program_and_flags_that_exist(page: str, command: str):
    words = shlex.split(command)
    if words[0] == "make":
        assert all(
            re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for word in words[1:]
        )
        return
    name = words.pop(0)
    if name in LAUNCHERS:
        script = next(word for word in words if word.endswith((".py", ".sh")))
        assert (ROOT / script).is_file(), page
        words = words[words.index(script) + 1 :]
        name = SCRIPTS[script]
    for flag, value in itertools.pairwise(words):
        assert flag != "--ds_config" or (ROOT / value).is_file(), value
    PARSERS[name](words)  # SystemExit for an unknown flag


def test_an_unknown_flag_would_be_found():
    for name in PARSERS:
        if name != "xpt-ckpt":
            with pytest.raises(SystemExit):
                PARSERS[name](["--no-such-flag", "1"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert link.startswith("http") or (folder / link).exists(), link
