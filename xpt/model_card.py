"""The card of an exported model, filled from its run: what went in, what came out, what it is not for."""

import json
from pathlib import Path
from typing import Any

from xpt.data.index import manifest_hash, manifest_of
from xpt.data.samples import count_windows
from xpt.files import METRICS, read_json_lines
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD

CARD = """---
library_name: timm
license: other  # say under which licence you pass the weights on; it depends on your films
tags: [radiography, masked-autoencoder, feature-extraction]
---

# {name}

{origin}

```python
model = timm.create_model("local-dir:{name}", pretrained=True).eval()
# image: float [B, 1, {side}, {side}], grey values from 0 to 255
features = model.forward_features((image / 255 - {mean}) / {std})
```

Films are grey, air dark and bone bright, letterboxed to a square without distortion, as `xpt-shards` makes
them; "grey range" below says what became black and white in the films of this model.

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


ORIGINS = {
    None: "Encoder of a masked autoencoder, pretrained with xpt on radiographs without labels.",
    "recognition": "Encoder of a classifier of radiographs, fine-tuned with xpt on labels.",
    "report": "Encoder of a report generator, fine-tuned with xpt on radiographs and their reports.",
}
"""What the encoder is, by the task of its run; pretraining has none."""
SCORES = ("val/", "probe/")
"""What metrics of validation and of probes on frozen features are called."""
WINDOWS = {
    "voi_lut": "VOI LUT of the file",
    "linear": "window of the file",
    "linear_exact": "window of the file (LINEAR_EXACT)",
    "sigmoid": "window of the file (SIGMOID)",
    "percentile": "percentiles 0.5 to 99.5 of the film",
    "full": "whole range of the file",
}
"""In words, a record's `window`."""


def model_card(name: str, run: Path, description: dict[str, Any], errors: dict[str, float]) -> str:
    """Markdown.

    Args:
        name: of the exported model.
        description: of a checkpoint of the run, with the images and the configuration of what was exported.
        errors: by exported form, the largest difference of a feature.
    """
    config = description["config"]
    model, train = config["model"], config["train"]
    about = {
        "architecture": f"ViT, width {model['width']}, depth {model['depth']}, {model['heads']} heads",
        "input": f"{model['side']} x {model['side']} pixels, patches of {model['patch']}",
        "what is shown of a film": {"frame": "all of it", "chest": "the square around its chest contour"}[
            config["data"]["crop_to"]
        ],
    }
    training = {
        "images seen": f"{description['images']:,}",
        "seed": train["seed"],
        "batch, base learning rate, weight decay": ", ".join(
            str(train[name]) for name in ("batch", "base_lr", "weight_decay")
        ),
        "data set (SHA-256 of its manifest)": description["data_hash"],
        **what_is_known(Path(config["data"]["path"]), description["data_hash"]),
        **_provenance(run),
    }
    if mask := config.get("mask"):
        training["masking"] = (
            f"{mask['strategy']} ({mask['draw']}), {mask['ratio']:.0%} masked, "
            f"keep rates {mask['keep_inside']} inside and {mask['keep_outside']} outside"
        )
    return CARD.format(
        name=name,
        origin=ORIGINS[config.get("task")],
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


def what_is_known(root: Path, data_hash: str) -> dict[str, str]:
    """What the data set says of itself, where it is still there and the same."""
    try:
        is_the_same = manifest_hash(root) == data_hash
        manifest, windows = manifest_of(root), count_windows(root)
    except ValueError as error:
        return {"films, patients, grey range": f"unknown ({error})"}
    if not is_the_same:
        return {"films, patients, grey range": f"unknown (another data set lies at {root} by now)"}
    counts = {
        f"films and patients, {split}": f"{content['samples']:,}, {content['patients']:,}"
        for split, content in manifest["splits"].items()
    }
    made = manifest["settings"]
    quality = f", quality {made['quality']}" if made["format"] == "jpeg" else ""
    return counts | {
        "chest contours": _counted(manifest["contours"]),
        "pictures": f"side {made['side']}, {made['format']}{quality}",
        "grey range": _counted({WINDOWS.get(name, name): count for name, count in windows.items()}),
    }


def _counted(films: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,} films" for name, count in films.items())


def _provenance(run: Path) -> dict[str, str]:
    path = run / "config.json"
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return {"revision of xpt": content["revision"], "versions": versions}


def _validation(run: Path, images: int) -> str:
    rows = [row for row in read_json_lines(run / METRICS) if row["images"] <= images]
    rows = [row for row in rows if any(name.startswith(SCORES) for name in row)]
    if not rows:
        return "None was made during the run."
    scores = {name: f"{value:.4f}" for row in rows for name, value in row.items() if name.startswith(SCORES)}
    told = f"After {rows[-1]['images']:,} images, on patients never trained on:"
    return f"{told}\n\n| | |\n|---|---|\n{_table(scores)}"
