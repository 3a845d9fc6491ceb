"""From the uint8 image to visible patches and tokens, beside what MAE's public code does.

    OMP_NUM_THREADS=1 python -m benchmarks.masking [--rounds 15] [--json FILE]

Four images of 1280 pixels, patches of 16, one channel, fp32. *Argsort and gather*: the image to float and
normalised, cut into patches, random numbers sorted twice, patches and mask gathered (MAE's random_masking).
*ViTMAE's embedding*: Hugging Face's ViTMAEEmbeddings on the normalised image, width 1,024. Both draw at one
rate; ours draws by contour, which costs more.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

from benchmarks.timing import in_turns
from kernels import MaskedPatches, mask_and_gather, patchify
from xpt.models.encoder import Encoder
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD

IMAGES, SIDE, PATCH, WIDTH = 4, 1280, 16, 1024
GRID = SIDE // PATCH


@dataclass(frozen=True, kw_only=True)
class Options:
    rounds: int = 15
    json: Path | None = None
    """File to write the results to."""


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    console = Console()
    image_BCHW = torch.randint(
        0, 256, (IMAGES, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    encoder = Encoder(
        side=SIDE, patch=PATCH, channels=1, width=WIDTH, depth=1, heads=16, mlp_ratio=4, attention="sdpa",
    )  # fmt: skip
    results: dict[str, dict[str, float]] = {}
    table = Table("masked", "variant", "time", "against ours")
    for ratio in (0.75, 0.90):
        keep = round(GRID**2 * (1 - ratio))
        theirs = ViTMAEEmbeddings(
            ViTMAEConfig(
                image_size=SIDE, patch_size=PATCH, num_channels=1, hidden_size=WIDTH, mask_ratio=ratio
            )
        )  # fmt: skip
        check(image_BCHW, keep, encoder, theirs)
        variants = {
            "mask and gather": lambda k=keep: mask(image_BCHW, k),
            "argsort and gather": lambda k=keep: argsort_and_gather(image_BCHW, k),
            "to tokens": lambda k=keep: tokens(image_BCHW, k, encoder),
            "ViTMAE's embedding": lambda t=theirs: vitmae_tokens(image_BCHW, t),
        }
        with torch.no_grad():
            found = in_turns(variants, options.rounds)
        results[f"{ratio:.0%}"] = found
        for ours, other in (
            ("mask and gather", "argsort and gather"),
            ("to tokens", "ViTMAE's embedding"),
        ):
            table.add_row(f"{ratio:.0%}", ours, f"{1e3 * found[ours]:.2f} ms", "")
            table.add_row("", other, f"{1e3 * found[other]:.1f} ms", f"{found[other] / found[ours]:.1f} x")
    console.print("oracle: visible patches and tokens equal those of the plain code")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


@torch.no_grad()
def check(image_BCHW: Tensor, keep: int, encoder: Encoder, theirs: ViTMAEEmbeddings) -> None:
    """Raises AssertionError unless ours are the plain code's patches, and ViTMAE's tokens."""
    masked = mask(image_BCHW, keep)
    every_BLP = patchify(normalised(image_BCHW), PATCH)
    wanted = every_BLP.gather(1, masked.visible_BK[..., None].expand(-1, -1, PATCH**2))
    torch.testing.assert_close(masked.patches_BKP, wanted, rtol=1e-6, atol=1e-6)
    theirs.patch_embeddings.projection.load_state_dict(encoder.patch_embed.proj.state_dict())
    theirs.position_embeddings.copy_(encoder.pos_embed)
    theirs.cls_token.copy_(encoder.cls_token)
    noise_BL = torch.ones(IMAGES, GRID**2)
    noise_BL.scatter_(1, masked.visible_BK, masked.visible_BK / GRID**2)
    tokens_BND, _, _ = theirs(normalised(image_BCHW), noise=noise_BL)
    ours = tokens(image_BCHW, keep, encoder)
    # ViTMAE keeps one fewer where 1 - ratio is just below a round number.
    torch.testing.assert_close(ours[:, : tokens_BND.shape[1]], tokens_BND, rtol=1e-4, atol=1e-4)


def mask(image_BCHW: Tensor, keep: int) -> MaskedPatches:
    """As the decoder `self` asks for it: ids of visible and of all masked patches."""
    line = torch.linspace(-1, 1, GRID)
    contour_L = ((line[:, None] / 0.8) ** 2 + (line / 0.65) ** 2 < 1).float().flatten()
    return mask_and_gather(
        image_BCHW,
        contour_L.repeat(IMAGES, 1),
        torch.ones(IMAGES, GRID**2, dtype=torch.bool),
        torch.arange(IMAGES),
        seed=1,
        keep=keep,
        predict=GRID**2 - keep,
        patch=PATCH,
        keep_inside=0.05,
        keep_outside=0.15,
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
    )


def tokens(image_BCHW: Tensor, keep: int, encoder: Encoder) -> Tensor:
    masked = mask(image_BCHW, keep)
    return next(encoder.feature_maps(masked.patches_BKP, masked.visible_BK))


def normalised(image_BCHW: Tensor) -> Tensor:
    return (image_BCHW.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def argsort_and_gather(image_BCHW: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    patches_BLP = patchify(normalised(image_BCHW), PATCH)
    noise_BL = torch.rand(patches_BLP.shape[:2])
    shuffle_BL = noise_BL.argsort(1)
    restore_BL = shuffle_BL.argsort(1)
    kept_BK1 = shuffle_BL[:, :keep, None]
    visible_BKP = patches_BLP.gather(1, kept_BK1.expand(-1, -1, PATCH**2))
    is_masked_BL = torch.ones_like(noise_BL)
    is_masked_BL[:, :keep] = 0
    return visible_BKP, is_masked_BL.gather(1, restore_BL), restore_BL


def vitmae_tokens(image_BCHW: Tensor, theirs: ViTMAEEmbeddings) -> Tensor:
    return theirs(normalised(image_BCHW))[0]


if __name__ == "__main__":
    main()
