"""Pretrained encoder weights into a model, all of them or an error."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from xpt.models.encoder import Encoder

log = logging.getLogger("xpt")
LISTED = 12
"""Names in a message; the rest are counted."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or that torch.save wrote, bare or as "model" or "state_dict".

    Raises ValueError where it holds none.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"--init {path}: damaged, or no file of safetensors ({error})") from error
    try:
        content = read_saved(path)
    except ValueError as error:
        raise ValueError(f"--init {error}") from error
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"--init {path}: got no state dict, wanted tensors by name")
    return content


def read_saved(path: Path) -> Any:  # noqa: ANN401  what torch.save wrote
    """Tensors and plain data, on the CPU; a pickle of anything else is refused.

    PyTorch does not look at the checksums in its files, so they are looked at here. Raises ValueError
    where the file is damaged or of another kind.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} in it does not have its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and zip readers raise many kinds
        raise ValueError(f"{path}: no file of weights that torch.load can read ({error})") from error


def load_encoder(encoder: Encoder, weights: dict[str, Tensor], source: str) -> None:
    """Put `weights` into `encoder`: an encoder's own, or a whole model's, of which `encoder.*` is taken.

    The positions of another input size are interpolated. Raises ValueError that lists missing and
    unexpected names and shapes that differ.
    """
    if any(name.startswith("encoder.") for name in weights):
        weights = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    wanted = encoder.state_dict()
    weights = dict(weights)
    theirs = weights.get("pos_embed")
    if theirs is not None and theirs.ndim == 3 and theirs.shape[1] != wanted["pos_embed"].shape[1]:
        grid = encoder.patch_embed.grid_size[0]
        before = round((theirs.shape[1] - 1) ** 0.5)
        weights["pos_embed"] = resample_abs_pos_embed(theirs.float(), [grid, grid], [before, before])
        log.info("%s: positions interpolated from %d x %d to %d x %d", source, before, before, grid, grid)
    missing = sorted(wanted.keys() - weights.keys())
    unexpected = sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(faults.values()):
        said = "; ".join(f"{kind}: {_listed(names)}" for kind, names in faults.items() if names)
        raise ValueError(
            f"--init {source}: the weights are not those of this encoder. {said}. Set --model.width, "
            "--model.depth, --model.patch and --model.mlp_ratio (or --preset) as in pretraining."
        )
    encoder.load_state_dict(weights)


def _listed(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
