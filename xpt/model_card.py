"""The card of an exported model, filled from its run: what went in, what came out, what it is not for."""

import json
from pathlib import Path
from typing import Any

from xpt.data.index import manifest_of
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD

CARD = """---
library_name: timm
license: other  # say under which licence you pass the weights on; it depends on your films
tags: [radiography, masked-autoencoder, feature-extraction]
---

# {name}

Encoder of a masked autoencoder, pretrained with xpt on radiographs without labels.

```python
model = timm.create_model("local-dir:{name}", pretrained=True).eval()
# image: float [B, 1, {side}, {side}], grey values from 0 to 255
features = model.forward_features((image / 255 - {mean}) / {std})
```

Films are grey, air dark and bone bright, letterboxed to a square without distortion; `xpt-shards` makes
them so from DICOM (modality LUT, VOI LUT or window, MONOCHROME1).

## Model

| | |
|---|---|
{model}

## Training

| | |
|---|---|
{training}

## Validation

{validation}

## Agreement of the exported forms with the trained encoder

{errors}

## Intended use and limits

Features for research: the starting point of a classifier or a report generator that is then trained and
tested on its own task. It is no medical device and makes no diagnosis. It knows the population, machines
and films of its training data and no other; children, lateral views and films with unusual devices are
only as good as their share in those data. A masked autoencoder can keep details of films that it saw
often: treat the weights as you treat data derived from patients.
"""


SCORES = ("val/", "probe/")
"""What metrics of validation and of probes on frozen features are called."""


def model_card(name: str, run: Path, description: dict[str, Any], errors: dict[str, float]) -> str:
    """Markdown.

    Args:
        name: of the exported model.
        description: of the checkpoint that was exported.
        errors: by exported form, the largest difference of a feature.
    """
    config = description["config"]
    model, train = config["model"], config["train"]
    about = {
        "architecture": f"ViT, width {model['width']}, depth {model['depth']}, {model['heads']} heads",
        "input": f"{model['side']} x {model['side']} pixels, patches of {model['patch']}",
    }
    training = {
        "images seen": f"{description['images']:,}",
        "seed": train["seed"],
        "batch, base learning rate, weight decay": ", ".join(
            str(train[name]) for name in ("batch", "base_lr", "weight_decay")
        ),
        "data set (SHA-256 of its manifest)": description["data_hash"],
        **_data(Path(config["data"]["path"])),
        **_provenance(run),
    }
    if mask := config.get("mask"):
        training["masking"] = (
            f"{mask['strategy']} ({mask['draw']}), {mask['ratio']:.0%} masked, "
            f"keep rates {mask['keep_inside']} inside and {mask['keep_outside']} outside"
        )
    return CARD.format(
        name=name,
        mean=PIXEL_MEAN,
        std=PIXEL_STD,
        side=model["side"],
        model=_table(about),
        training=_table(training),
        validation=_validation(run, description["images"]),
        errors="\n".join(f"- {form}: {error:.1e} at most" for form, error in errors.items()),
    )


def _table(rows: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _data(root: Path) -> dict[str, str]:
    """Counts of the data set, where it is still there."""
    try:
        manifest = manifest_of(root)
    except ValueError as error:
        return {"films and patients": f"unknown ({error})"}
    counts = {
        f"films and patients, {split}": f"{content['samples']:,}, {content['patients']:,}"
        for split, content in manifest["splits"].items()
    }
    contours = ", ".join(f"{name} {count:,}" for name, count in manifest["contours"].items())
    made = manifest["settings"]
    grey = f"side {made['side']}, {made['format']} {made['quality']}, VOI LUT or window of each DICOM file"
    return counts | {"chest contours": contours, "grey values": grey}


def _provenance(run: Path) -> dict[str, str]:
    path = run / "config.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return {"revision of xpt": content["revision"], "versions": versions}


def _validation(run: Path, images: int) -> str:
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [row for row in rows if row["images"] <= images and any(n.startswith(SCORES) for n in row)]
    if not rows:
        return "None was made during the run."
    scores = {name: f"{value:.4f}" for row in rows for name, value in row.items() if name.startswith(SCORES)}
    told = f"After {rows[-1]['images']:,} images, on patients never trained on:"
    return f"{told}\n\n| | |\n|---|---|\n{_table(scores)}"
