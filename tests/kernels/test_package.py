"""The package stands alone: torch is all it needs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ops_run_where_only_torch_is_installed(tmp_path):
    code = (
        "import sys\n"
        "for name in ('triton', 'deepspeed', 'nvidia.dali', 'timm', 'jaxtyping', 'xpt', 'shards_tool'):\n"
        "    sys.modules[name] = None\n"
        "import torch, kernels\n"
        "masked = kernels.mask_and_gather(\n"
        "    torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1, 16), torch.ones(1, 16).bool(),\n"
        "    torch.tensor([3]), seed=1, keep=4, predict=6, patch=8, keep_inside=0.1, keep_outside=0.1,\n"
        "    mean=0.5, std=0.25)\n"
        "pred = torch.zeros(1, 6, 64, requires_grad=True)\n"
        "loss, _ = kernels.patch_loss(pred, torch.zeros(1, 1, 32, 32, dtype=torch.uint8),\n"
        "    masked.predicted_BM, torch.full((1, 6), 1 / 6), patch=8, mean=0.5, std=0.25)\n"
        "loss.backward()\n"
        "print(kernels.__file__, masked.patches_BKP.shape[1], round(loss.item(), 3))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(ROOT / "kernels" / "__init__.py"), "4", "4.0"]
