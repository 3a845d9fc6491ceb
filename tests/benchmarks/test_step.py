"""The benchmarks of the step: their oracles, and that they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.loss import Case
from benchmarks.step import TOLERANCE, Variant, measure
from benchmarks.vitmae import largest_difference
from tests.conftest import ROOT


@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradients_of_the_self_decoder_are_those_of_hugging_faces_vitmae():
    assert 0 < largest_difference() < TOLERANCE


@pytest.mark.parametrize("kind", ["vitmae", "self", "cross"])
@pytest.mark.filterwarnings("ignore")
def test_a_step_of_each_kind_is_measured(kind):
    cost = measure(Variant(name="", ratio=0.75, side=64, depth=1, kind=kind, heads=4))
    assert cost.seconds > 0 and cost.peak_gb >= 0


@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_is_the_plain_expression(normalize):
    Case(300, normalize).check()


def test_the_gpu_benchmark_runs_dry_with_torch_timm_and_triton_alone(tmp_path: Path):
    """Every line but those for CUDA; what else is installed here is hidden from it."""
    code = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in HIDDEN: raise ModuleNotFoundError(name)\n"
        "HIDDEN = {'jaxtyping', 'transformers', 'tyro', 'rich', 'deepspeed', 'nvidia', 'cv2', 'flash_attn'}\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in HIDDEN else find(name, *a)\n"
        "import torch, timm.models.vision_transformer\n"
        "sys.meta_path.insert(0, Hide())\n"
        f"sys.argv = ['gpu', '--dry', '--json', {str(tmp_path / 'gpu.json')!r}]\n"
        "from benchmarks.gpu import main\n"
        "main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}  # timm imports triton
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "oracles: green" in run.stdout
    assert "90% masked, ViTMAE: not measured, transformers is not installed" in run.stdout
    assert "90% masked, cross 25%: " in run.stdout
    assert (tmp_path / "gpu.json").exists()


def test_without_a_gpu_the_benchmark_says_how_to_run_it():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(SystemExit, match="no GPU here; --dry runs every line"):
        gpu.main([])
