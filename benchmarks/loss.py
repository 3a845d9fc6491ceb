"""The patch loss, forward and backward, beside the plain expression of MAE's public code.

    OMP_NUM_THREADS=1 python -m benchmarks.loss [--rounds 15] [--json FILE]

Four images of 1280 pixels, patches of 16, one channel, fp32. The plain expression is MAE's forward_loss: the
image to float and normalised, cut into patches, predictions for all of them, a mean over the masked ones.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import in_turns
from kernels import patch_loss, patchify
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD

IMAGES, SIDE, PATCH, LENGTH = 4, 1280, 16, 6400
CASES = {
    "self, 75% masked: 4,800 patches": 4800,
    "self, 90% masked: 5,760 patches": 5760,
    "cross, 75% masked: 1,200 patches": 1200,
    "cross, 90% masked: 1,440 patches": 1440,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    rounds: int = 15
    json: Path | None = None
    """File to write the results to."""


class Case:
    """Predictions of `count` patches for ours, and of all patches for the plain expression."""

    def __init__(self, count: int, normalize: bool) -> None:
        generator = torch.Generator().manual_seed(count)
        self.image_BCHW = torch.randint(
            0, 256, (IMAGES, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator
        )
        order_BL = torch.rand(IMAGES, LENGTH, generator=generator).argsort(1)
        self.ids_BM = order_BL[:, :count].sort(1).values
        self.is_masked_BL = torch.zeros(IMAGES, LENGTH).scatter_(1, self.ids_BM, 1)
        self.weight_BM = torch.full((IMAGES, count), 1 / (IMAGES * count))
        self.normalize = normalize
        self.every_BLP = torch.randn(IMAGES, LENGTH, PATCH**2, generator=generator).requires_grad_()
        chosen = self.ids_BM[..., None].expand(-1, -1, PATCH**2)
        self.pred_BMP = self.every_BLP.detach().gather(1, chosen).requires_grad_()

    def ours(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient."""
        loss, _ = patch_loss(
            self.pred_BMP, self.image_BCHW, self.ids_BM, self.weight_BM, patch=PATCH, mean=PIXEL_MEAN,
            std=PIXEL_STD, normalize=self.normalize,
        )  # fmt: skip
        return loss.detach(), torch.autograd.grad(loss, self.pred_BMP)[0]

    def plain(self) -> tuple[Tensor, Tensor]:
        target = patchify((self.image_BCHW.float() / 255 - PIXEL_MEAN) / PIXEL_STD, PATCH)
        if self.normalize:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6) ** 0.5
        error_BL = ((self.every_BLP - target) ** 2).mean(-1)
        loss = (error_BL * self.is_masked_BL).sum() / self.is_masked_BL.sum()
        return loss.detach(), torch.autograd.grad(loss, self.every_BLP)[0]

    def check(self) -> None:
        """Raises AssertionError unless both give the same loss and gradient."""
        (loss, gradient), (wanted, every) = self.ours(), self.plain()
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
        chosen = self.ids_BM[..., None].expand(-1, -1, PATCH**2)
        torch.testing.assert_close(gradient, every.gather(1, chosen), rtol=1e-3, atol=1e-10)


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    console, results = Console(), {}
    table = Table("patches", "targets", "plain expression", "ours", "speed-up")
    for name, count in CASES.items():
        for normalize in (True, False):
            case = Case(count, normalize)
            case.check()
            found = in_turns({"plain": case.plain, "ours": case.ours}, options.rounds)
            targets = "normalised" if normalize else "plain"
            results[f"{name}, {targets}"] = found
            table.add_row(
                name,
                targets,
                f"{1e3 * found['plain']:.0f} ms",
                f"{1e3 * found['ours']:.1f} ms",
                f"{found['plain'] / found['ours']:.1f} x",
            )
    console.print("oracle: loss and gradient equal those of the plain expression")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
