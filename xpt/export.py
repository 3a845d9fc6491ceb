"""A run to a model that others load without xpt: timm's layout, ONNX, a model card.

    xpt-export RUN OUT [--onnx] [--full]

Then, anywhere that has timm: `timm.create_model("local-dir:OUT", pretrained=True)`.
"""

import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn

from kernels.patches import normalize_pixels, patchify
from xpt.config import EncoderConfig
from xpt.files import sync
from xpt.model_card import model_card
from xpt.models.encoder import Encoder, encoder_of
from xpt.models.init import load_encoder
from xpt.models.mae import CHANNELS, PIXEL_MEAN, PIXEL_STD
from xpt.tasks.best import BEST, read_best
from xpt.training.engine import checkpoint_weights
from xpt.training.saved import newest
from xpt.training.telemetry import set_up_logging

log = logging.getLogger("xpt")
MOST_DIFFERENCE = 1e-3
"""Between features of two implementations in float32; they are of the order of 1."""
ARCHITECTURES = {
    192: "vit_tiny_patch16_224",
    384: "vit_small_patch16_224",
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
}
"""timm's names by width; what differs from the named model stands in `model_args`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of xpt-train or xpt-finetune."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to make."""
    onnx: bool = False
    """Also write encoder.onnx: uint8 image to features."""
    full: bool = False
    """Also write every weight of the run's model, decoder and all, to full.safetensors."""


def main() -> None:
    set_up_logging(0)
    options = tyro.cli(Options, description=__doc__)
    try:
        export(options.run, options.out, onnx=options.onnx, full=options.full)
    except (ValueError, OSError) as error:
        raise SystemExit(f"xpt-export: {error}") from error


def export(run: Path, out: Path, *, onnx: bool = False, full: bool = False) -> dict[str, float]:
    """Write the encoder of `run` to the new folder `out`: of its newest good checkpoint, or, where it was
    fine-tuned, of the weights that were best on validation.

    Returns:
        The largest difference of a feature between each exported form and the encoder that was trained.

    Raises:
        ValueError: where `run` holds no checkpoint, `out` exists, or an exported form differs.
    """
    found = newest(run, set_aside=False)
    if found is None:
        raise ValueError(f"{run}: no checkpoint in it; wanted a run folder of xpt-train or xpt-finetune")
    if out.exists():
        raise ValueError(f"{out} exists already; give another folder")
    description, source = found.description, found.folder
    if (run / BEST).is_file():
        best, source = read_best(run)[1], run / BEST
        description = description | {name: best[name] for name in ("config", "images")}
        weights = best["model"]
    else:
        weights = checkpoint_weights(found.folder)
    settings, crop_to = description["config"]["model"], description["config"]["data"]["crop_to"]
    encoder = trained_encoder(weights, settings, str(source))
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        save_file(_whole(encoder.state_dict()), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(timm_config(settings, crop_to), indent=2) + "\n")
        image_BCHW = torch.randint(0, 256, (1, CHANNELS, *[settings["side"]] * 2), dtype=torch.uint8)
        model = FromPixels(encoder).eval()
        with torch.no_grad():
            wanted_BND = model(image_BCHW)
        errors = {"timm": _error(_through_timm(folder, image_BCHW), wanted_BND)}
        if onnx:
            write_onnx(model, folder / "encoder.onnx", image_BCHW)
            errors["onnx"] = _error(_through_onnx(folder / "encoder.onnx", image_BCHW), wanted_BND)
        if full:
            save_file(_whole(weights), folder / "full.safetensors", {"format": "pt"})
        (folder / "README.md").write_text(model_card(out.name, run, description, errors))
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o644)
            sync(path)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder)
        raise
    sync(out.parent)
    log.info("%s: weights of %s, after %s images", out, source, f"{description['images']:,}")
    for form, error in errors.items():
        log.info("%s gives the same features: largest difference %.1e", form, error)
    log.info('%s: load it with timm.create_model("local-dir:%s", pretrained=True)', out, out)
    return errors


def trained_encoder(weights: dict[str, Tensor], settings: dict[str, Any], source: str) -> Encoder:
    """The encoder of a run from a checkpoint's weights and the `model` section of its configuration.

    Raises ValueError where the two do not fit, which names `source`.
    """
    sizes = {name: settings[name] for name in ("side", "patch", "width", "depth", "heads", "mlp_ratio")}
    encoder = encoder_of(EncoderConfig(**sizes), CHANNELS)
    load_encoder(encoder, weights, source)
    return encoder


def timm_config(settings: dict[str, Any], crop_to: str) -> dict[str, Any]:
    """`config.json` of timm's hub layout for the `model` section of a run, with its `data.crop_to`."""
    size = [CHANNELS, settings["side"], settings["side"]]
    return {
        "architecture": ARCHITECTURES.get(settings["width"], "vit_base_patch16_224"),
        "num_classes": 0,
        "num_features": settings["width"],
        "global_pool": "token",
        "crop_to": crop_to,
        "model_args": {
            "img_size": settings["side"],
            "patch_size": settings["patch"],
            "in_chans": CHANNELS,
            "embed_dim": settings["width"],
            "depth": settings["depth"],
            "num_heads": settings["heads"],
            "mlp_ratio": settings["mlp_ratio"],
            "num_classes": 0,
            "global_pool": "token",
        },
        "pretrained_cfg": {
            "input_size": size,
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "crop_mode": "border",
            "mean": [PIXEL_MEAN],
            "std": [PIXEL_STD],
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


class FromPixels(nn.Module):
    """The encoder on whole images: uint8 [B, 1, S, S] to float32 [B, L + 1, D], the class token first."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch = encoder.patch_embed.patch_size[0]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        patches_BLP = patchify(normalize_pixels(image_BCHW, PIXEL_MEAN, PIXEL_STD), self.patch)
        ids_BL = torch.arange(patches_BLP.shape[1]).expand(image_BCHW.shape[0], -1)
        return self.encoder(patches_BLP, ids_BL)


def write_onnx(model: FromPixels, path: Path, image_BCHW: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            model,
            (image_BCHW,),
            str(path),
            input_names=["image"],
            output_names=["features"],
            dynamo=False,
            opset_version=17,
        )


def _whole(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in memory of its own, as safetensors wants it."""
    return {name: value.detach().float().contiguous().clone() for name, value in weights.items()}


def _through_timm(folder: Path, image_BCHW: Tensor) -> Tensor:
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return model.forward_features(normalize_pixels(image_BCHW, PIXEL_MEAN, PIXEL_STD))


def _through_onnx(path: Path, image_BCHW: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"image": image_BCHW.numpy()})
    return torch.from_numpy(result)


def _error(found_BND: Tensor, wanted_BND: Tensor) -> float:
    error = float((found_BND - wanted_BND).abs().max())
    if not error <= MOST_DIFFERENCE:
        raise ValueError(
            f"the exported model differs from the trained one by {error:.1e} in a feature, at most "
            f"{MOST_DIFFERENCE:.0e} is wanted; please report this with the versions in the run's config.json"
        )
    return error


if __name__ == "__main__":
    main()
