"""The layers import in one direction, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = sorted(p for package in ("xpt", "kernels", "shards_tool") for p in (ROOT / package).rglob("*.py"))

TRAINING_OF_THE_CONTOUR = {"shards_tool/contour/model.py", "shards_tool/contour/train.py"}
"""What learns the contour network has torch; what runs it has not, and nothing of the tool imports these."""
READS_FILMS = "xpt/data/film.py"
"""The one place where a single film is read as the shard tool reads it."""
READS_JSON = "xpt/training/saved.py"
"""Reads checkpoints' descriptions as shards' JSON is read, and needs no data set for that."""
TRAINING_MODULES = {"shards_tool.contour.model", "shards_tool.contour.train"}


GROUND = {"files", "metrics", "config", "finetune_config", "report_config"}
"""Modules of `xpt` that every folder of it may import; they import no folder but `xpt.text`."""
FOLDERS = {
    "text": set[str](),
    "data": set[str](),
    "models": set[str](),
    "training": {"data", "models"},
    "evaluation": {"data", "models", "text"},
    "monitoring": {"data", "models", "training", "evaluation"},
    "tasks": {"data", "models", "text", "training", "evaluation"},
}
"""Which folders of `xpt` each may import. The programs, which lie beside them, may import all."""


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path):
    place = path.relative_to(ROOT)
    names = set(imports(path))
    if place.parts[0] == "kernels":
        assert not [n for n in names if is_under(n, "xpt") or is_under(n, "shards_tool")]
    if place.parts[0] == "shards_tool":
        assert not [n for n in names if is_under(n, "xpt") or is_under(n, "kernels")]
        if place.as_posix() not in TRAINING_OF_THE_CONTOUR:
            assert not [n for n in imports(path, top_level_only=True) if is_under(n, "torch")]
            assert not names & TRAINING_MODULES
    if place.parts[0] == "xpt":
        of_tool = {n for n in names if is_under(n, "shards_tool")}
        if place.as_posix() != READS_FILMS:
            assert all(n == "shards_tool" or is_under(n, "shards_tool.schema") for n in of_tool)
        of_format = of_tool - {"shards_tool.schema", "shards_tool.schema.parse_json"}
        assert not of_tool or place.parts[1] == "data" or (place.as_posix() == READS_JSON and not of_format)
        parts = {n.split(".")[1] for n in names if n.startswith("xpt.")}
        if place.parts[1] in FOLDERS:
            allowed = {place.parts[1]} | FOLDERS[place.parts[1]] | GROUND
            assert not parts - allowed, f"{place} may import {allowed} of xpt"
        if place.stem in GROUND:
            assert not parts - GROUND - {"text", "command_line"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_have_one_home(path: Path):
    place = path.relative_to(ROOT)
    names = set(imports(path))
    if place.as_posix() != "xpt/training/engine.py":
        assert not [n for n in names if is_under(n, "deepspeed")]
    if place.parts[:2] != ("xpt", "data"):
        assert not [n for n in names if is_under(n, "nvidia.dali")]


def test_schema_needs_the_standard_library_only():
    names = {n.split(".")[0] for n in imports(ROOT / "shards_tool" / "schema.py")}
    assert names <= set(sys.stdlib_module_names)


def test_no_file_beside_train_shadows_a_library():
    """`deepspeed xpt/train.py` puts xpt/ itself first on sys.path."""
    names = {p.stem for p in (ROOT / "xpt").iterdir() if p.suffix == ".py" or p.is_dir()} - {"__init__"}
    names = {n for n in names if not n.startswith((".", "__"))}
    assert not names & set(sys.stdlib_module_names)
    code = (
        "import importlib.util, sys; "
        f"sys.path = [p for p in sys.path if p not in ('', {str(ROOT)!r}, {str(ROOT / 'xpt')!r})]; "
        f"print([n for n in {sorted(names)} if importlib.util.find_spec(n)])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_kernels_is_ours_from_any_folder(tmp_path: Path):
    code = "import kernels; print(kernels.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(run.stdout.strip()) == ROOT / "kernels" / "__init__.py"


def test_models_run_with_torch_and_timm_alone(tmp_path: Path):
    code = (
        "import sys\n"
        "for absent in ('deepspeed', 'nvidia.dali', 'tyro', 'cv2', 'pyarrow', 'pydicom'):\n"
        "    sys.modules[absent] = None\n"
        "import torch\n"
        "from xpt.config import demo\n"
        "from xpt.models.mae import MAE\n"
        "model, side, tokens = MAE(demo()), demo().model.side, demo().model.tokens\n"
        "image = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8)\n"
        "valid = torch.ones(2, tokens, dtype=torch.bool)\n"
        "loss = model(image, torch.zeros(2, tokens), valid, torch.arange(2), 0).loss\n"
        "loss.backward()\n"
        "print(torch.isfinite(loss).item())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "True"
