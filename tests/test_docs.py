"""The commands in README and docs are commands that exist, with flags that exist; and they do what they say.

Each command's arguments go through the parser that it has itself. Then it runs as it stands, in a folder
that holds what it names, on a few small phantoms: only sizes are made smaller, by flags behind the others.
What cannot run here is named in `NOT_RUN`.
"""

import csv
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
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
import xpt.predict
import xpt.report
from shards_tool.phantom import write_archive
from tests.conftest import ROOT
from tests.programs import programs
from xpt.command_line import parse

PAGES = ["README.md", *(f"docs/{name}.md" for name in ("pretraining", "downstream", "operations", "shards"))]
BLOCK = re.compile(r"^```(?:bash)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHERS = {"deepspeed", "torchrun", "sbatch"}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command without its comment), once without the options in brackets and once with all of those
    that are flags."""
    for page in PAGES:
        for block in BLOCK.findall((ROOT / page).read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].replace("...", "").strip()
                word = command.split(" ")[0]
                if word.startswith("xpt-") or word in {"make", *LAUNCHERS}:
                    bare, full = re.sub(r"\[.*?\]", "", command), re.sub(r"\[(--.*?)\]", r"\1", command)
                    for each in dict.fromkeys((bare, re.sub(r"\[.*?\]", "", full))):
                        yield page, " ".join(each.split())


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
    "xpt-predict": _tyro(xpt.predict.Options),
    "xpt-report": _tyro(xpt.report.Options),
    "xpt-evaluate": _tyro(xpt.evaluate.Options),
    "xpt-shards": _tyro(shards_tool.cli.Command),
    "xpt-ckpt": _ckpt,
}
SCRIPTS = {
    "xpt/train.py": "xpt-train",
    "xpt/finetune.py": "xpt-finetune",
    "xpt/embed.py": "xpt-embed",
    "xpt/predict.py": "xpt-predict",
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


NOT_RUN = {
    "make demo": "tests/test_demo.py runs it, with `deepspeed` on two ranks",
    "make test": "is what runs this",
    "sbatch": "needs Slurm: tests/slurm/ submits the scripts to one",
}
"""Commands by how they begin, and why they do not run here; they are parsed all the same."""
ENCODER = "--model.side 64 --model.width 24 --model.depth 2 --model.heads 2"
DECODER = "--model.decoder-width 16 --model.decoder-depth 1 --model.decoder-heads 2"
STEPS = "--train.images 16 --train.batch 8 --train.micro-batch 8 --train.warmup-images 8"
STEPS += " --train.eval-images 16 --train.eval-films 4 --data.threads 1"
FINDINGS = "--recognition.label-map phantom --recognition.findings 'No Finding' Cardiomegaly"
REPORTS = "--report.longest 8 --report.vocabulary 300 --report.width 24 --report.depth 1 --report.heads 2"
REPORTS += " --report.pool 1 --report.beams 1 --report.select cider"
SMALLER = {
    "xpt-train": f"{ENCODER} {DECODER} {STEPS} --train.probe-films 0",
    "xpt-finetune": f"{ENCODER} {STEPS} {FINDINGS}",
    "xpt-finetune report": f"{ENCODER} {STEPS} {REPORTS}",
    "xpt-doctor": "--no-environment",  # tests/xpt/training/test_environment.py
    "xpt-evaluate": "--examples 1",
    "xpt-shards build": "--side 96 --workers 0",
    "xpt-shards merge": "--side 96 --workers 0",
    "xpt-shards split": "--workers 0",
    "xpt-shards verify": "--workers 0",
    "xpt-shards index": "--workers 0",
    "xpt-shards phantom": "--workers 1",
}
"""Flags that go behind those of a documented command."""
VARIABLES = {"xpt-evaluate": {"PATH": ""}}  # METEOR would start Java for each row of a table
FEWER = {
    "--patients 40": "--patients 2",
    "--part 3/16": "--part 1/1",
    "--nproc_per_node 8": "--nproc_per_node 1",
}
STANDS_FOR = {
    "ARCHIVE": "archive",
    "LABELS.csv": "archive/metadata.csv",
    "BOXES.csv": "boxes.csv",
    "IMAGE.dcm": "film.dcm",
    "FRONTAL.dcm": "film.dcm",
    "LATERAL.dcm": "film.dcm",
    "FILES": "film.dcm",
    "SHARDS": "shards",
    "MODEL": "model",
    "RUN": "run",
    "PRETRAINED": "run",
    "TUNED": "findings",
    "WRITER": "reports",
    "runs/vit_l_1280": "run",
    "runs/vit_l_1280-recognition-vit_l_1280": "findings",
    "runs/vit_l_1280-report-vit_l_1280": "reports",
    "demo/shards": "shards",
    "demo/run": "run",
    "demo/findings": "findings",
    "demo/boxes.parquet": "boxes.parquet",
}
"""What lies under the names in the documents, of what the fixture `made` has."""
MAKES = ("--out", "--run_dir")
EVERYWHERE = ("ds_configs", "xpt")
ENDS = {"xpt-doctor": {0, 1}}  # 1: it may well not fit on this machine


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, shards, one run of each kind and an exported model, all tiny."""
    folder = tmp_path_factory.mktemp("made")
    write_archive(folder / "archive", patients=16, seed=1, side=128)
    shutil.rmtree(folder / "archive" / "masks")  # PNGs, which would be taken for films
    films = sorted((folder / "archive").rglob("*.dcm"))
    shutil.copy(films[0], folder / "film.dcm")
    truth = [json.loads(line) for line in (folder / "archive" / "truth.jsonl").read_text().splitlines()]
    with (folder / "boxes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "nih_bboxes"])
        for film in truth:
            corners = [(found["name"], *found["box"]) for found in film["findings"]]
            boxes = [[name, x, y, right - x, bottom - y] for name, x, y, right, bottom in corners]
            table.writerow([film["file"], json.dumps(boxes)])
    (folder / "shards.key").write_text("0123456789abcdef" * 4)
    for line in (
        "xpt-shards build archive --meta archive/metadata.csv --out shards --fractions 0.5 0.25 0.25",
        "xpt-shards boxes shards --archive archive --table archive/truth.jsonl --out boxes.parquet",
        f"xpt-train --preset demo --data.path {folder}/shards --run_dir run",
        f"xpt-finetune --preset demo --data.path {folder}/shards --run_dir findings --init run",
        f"xpt-finetune --preset demo --data.path {folder}/shards --run_dir reports --init run --task report "
        "--languages en zh",
        "xpt-export run model",
    ):
        run(line, folder)
    return folder


def run(command: str, folder: Path) -> str:
    """Run a command, made smaller, in `folder`; returns what it printed."""
    for many, few in FEWER.items():
        command = command.replace(many, few)
    launcher, *words = shlex.split(command)
    name, script, options = launcher, "", []
    if launcher in LAUNCHERS:
        script = next(word for word in words if word.endswith(".py"))
        options, words = words[: words.index(script)], words[words.index(script) + 1 :]
        name = SCRIPTS[script]
    kind = " report" if name == "xpt-finetune" and "report" in words else ""
    kind = f" {words[0]}" if name == "xpt-shards" else kind
    words += shlex.split(SMALLER.get(name + kind, ""))
    if launcher == "torchrun":
        program = [sys.executable, "-m", "torch.distributed.run", *options, script, *words]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=200)
        status, said = done.returncode, done.stdout + done.stderr
    else:  # of `deepspeed`, the one rank that it would start
        status, said = programs().run(name, words, folder, VARIABLES.get(name, {}))
    assert status in ENDS.get(name, {0}), f"{command}\nends with status {status}:\n{said}"
    return said


def outputs(words: list[str]) -> list[str]:
    """What a command makes, by its name in the document."""
    named = [value for flag, value in itertools.pairwise(words) if flag in MAKES]
    makes_its_third = words[0] == "xpt-export" or words[1] == "phantom"
    return [*named, words[2]] if makes_its_third else named


RUNS = [(page, command) for page, command in ALL if not command.startswith(tuple(NOT_RUN))]


@pytest.mark.launch
@pytest.mark.parametrize(("page", "command"), RUNS, ids=lambda text: text[:60])
def test_a_command_does_what_it_says(page: str, command: str, made: Path, tmp_path: Path):
    words = shlex.split(command)
    outs = outputs(words)
    for name in EVERYWHERE:
        (tmp_path / name).symlink_to(ROOT / name)
    for name in {word for word in words if word in STANDS_FOR and word not in outs} | {"SHARDS"} - {*outs}:
        source, target = made / STANDS_FOR[name], tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    shutil.copy(made / "shards.key", tmp_path / "SHARDS.key")
    if "merge" in words:
        run(command.replace("merge", "build") + " --part 1/1", tmp_path)
    program = next((SCRIPTS[word] for word in words if word in SCRIPTS), words[0])
    if "--data.path" not in words and program in {"xpt-train", "xpt-finetune", "xpt-doctor"}:
        command += " --data.path SHARDS"  # for the documents' `export XPT_DATA=SHARDS`
    assert run(command, tmp_path)
    for name in outs:
        assert (tmp_path / name).exists(), name


def test_a_command_that_fails_is_found(made: Path, tmp_path: Path):
    with pytest.raises(AssertionError, match="ends with status 2"):
        run("xpt-shards verify NOWHERE", tmp_path)
    with pytest.raises(AssertionError, match="no checkpoint in it"):
        run("xpt-export NOWHERE MODEL", tmp_path)


def test_what_does_not_run_is_in_the_documents_and_has_a_reason():
    for beginning, reason in NOT_RUN.items():
        assert reason and any(command.startswith(beginning) for _, command in ALL), beginning
    assert len(RUNS) > 0.8 * len(ALL)
