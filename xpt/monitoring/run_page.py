"""`RUN/report.html`: one page that says whether a run learns, whether it is fast, whether anything is wrong.

Everything is in the one file, curves as SVG and pictures as data URLs. For a run that lies on
disk, `python -m xpt.monitoring.run_page RUN` writes it.
"""

import html
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xpt.evaluation.html import document, jpeg_url, span, table
from xpt.files import METRICS, read_json_lines, write_atomically
from xpt.monitoring.charts import Line, chart
from xpt.monitoring.verdict import Rows, Verdict, verdicts, wait_shares

PAGE = "report.html"
PICTURE_WIDTH = 1400
"""Largest width of a picture in the page, pixels; the whole ones are in `pictures/`."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222 }
body { margin: 1.5rem auto; max-width: 88rem; padding: 0 1rem }
.row { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 }
figcaption { font-size: 12px; max-width: 330px; min-height: 2.6em }
.verdict { flex: 1 1 20rem; border-left: 8px solid; background: #f6f6f6; padding: .4rem 1rem; }
.verdict h2 { margin: 0; font-size: 1.1rem } .verdict p { margin: .3rem 0 }
.good { border-color: #2e7d32 } .unsure { border-color: #f0a000 } .bad { border-color: #c62828 }
table { border-collapse: collapse } th, td { padding: .2rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr + tr { border-top: 1px solid #ddd }
img { max-width: 100% } text { fill: #555 }
"""


def write_page(run: Path) -> Path:
    """Write the page of the run folder anew. Raises ValueError where the run has no configuration."""
    try:
        provenance = json.loads((run / "config.json").read_text())
    except OSError as error:
        raise ValueError(f"{run}: no config.json; wanted the folder of a run of xpt-train") from error
    path = run / PAGE
    write_atomically(path, page(run.resolve().name, provenance, read_rows(run), _pictures(run), _probe(run)))
    return path


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The lines of the metrics, in the order of images."""
    return sorted(read_json_lines(run / METRICS), key=lambda row: row["images"])


def page(
    name: str,
    provenance: dict[str, Any],
    rows: Rows,
    pictures: Sequence[tuple[str, bytes]],
    probe: dict[str, Any] | None,
) -> str:
    """The page's HTML; `pictures` are titles and JPEG files, `probe` the newest result of the probe."""
    config = provenance["config"]
    images, last = (rows[-1]["images"] if rows else 0), config["train"]["images"]
    title = f"{name}: {images:,} of {last:,} images ({images / last:.0%})"
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<div class=row>" + "".join(map(_card, verdicts(rows))) + "</div>",
        "<h2>Learning</h2><div class=row>" + "".join(_learning(rows)) + "</div>",
        *([_probe_table(probe)] if probe else []),
        "<h2>Speed</h2><div class=row>" + "".join(_speed(rows)) + "</div>",
        "<h2>Stability</h2><div class=row>" + "".join(_stability(rows)) + "</div>",
        *(_figure(caption, jpeg) for caption, jpeg in pictures),
        f"<p>Preset {html.escape(config['preset'])}, revision {html.escape(provenance['revision'])}; "
        f"written {now}.</p>",
    ]
    return document(title, STYLE, parts)


def _card(verdict: Verdict) -> str:
    return (
        f'<div class="verdict {verdict.state}"><h2>{html.escape(verdict.question)}</h2>'
        f"<p>{html.escape(verdict.answer)}</p></div>"
    )


def _learning(rows: Rows) -> list[str]:
    probes = [
        _line(rows, f"probe/{key}_value", name, band=(f"probe/{key}_low", f"probe/{key}_high"))
        for key, name in (("logistic", "logistic regression"), ("knn", "nearest films"))
    ]
    return [
        chart(
            "Loss",
            [
                _line(rows, "loss", "training"),
                _line(rows, "val/loss", "validation"),
                _line(rows, "val/patch_mean", "of knowing each patch's mean"),
            ],
        ),
        chart(
            "Validation loss",
            [_line(rows, "val/loss_chest", "inside the chest"), _line(rows, "val/loss_outside", "outside")],
        ),
        chart("Learning rate", [_line(rows, "lr", "")]),
        *([chart("AUROC of frozen features, 95%", probes)] if len(probes[0].x_T) else []),
    ]


def _speed(rows: Rows) -> list[str]:
    timed = [row for row in rows if "images_per_second" in row]
    waits = np.array(wait_shares(timed), dtype=float).reshape(-1, 2)
    return [
        chart("Images per second", [_line(rows, "images_per_second", "")], from_zero=True),
        chart("Model FLOPs utilisation (MFU)", [_line(rows, "mfu", "")], from_zero=True),
        chart(
            "Share of the time waiting for data",
            [Line(name="", x_T=waits[:, 0], y_T=waits[:, 1])],
            from_zero=True,
        ),
        chart("Peak memory of rank 0, GB", [_line(rows, "peak_memory_gb", "")], from_zero=True),
    ]


def _stability(rows: Rows) -> list[str]:
    counts = {"skipped": "skipped steps", "rollbacks": "rollbacks", "norm_spikes": "spikes of the norm"}
    lines = [_line(rows, key, name) for key, name in {**counts, "loss_spikes": "spikes of the loss"}.items()]
    return [
        chart("Gradient norm before clipping", [_line(rows, "grad_norm", "")], is_log=True),
        chart("So far", lines, from_zero=True),
    ]


def _line(rows: Rows, key: str, name: str, band: tuple[str, str] | None = None) -> Line:
    found = [row for row in rows if row.get(key) is not None]
    return Line(
        name=name,
        x_T=np.array([row["images"] for row in found], dtype=float),
        y_T=np.array([row[key] for row in found], dtype=float),
        band_T2=np.array([[row[end] for end in band] for row in found], dtype=float).reshape(-1, 2)
        if band
        else None,
    )


def _probe_table(found: dict[str, Any]) -> str:
    films = found["films"]
    rows = [
        [html.escape(name), span(row["logistic"]), span(row["knn"])]
        for name, row in {"mean": found["mean"], **found["findings"]}.items()
    ]
    return (
        f"<p>Newest probe: AUROC of frozen features on {films['val']:,} validation films, fitted on "
        f"{films['train']:,} training films; 95% by patient.</p>"
        + table(("finding", "logistic regression", "nearest films"), rows)
    )


def _figure(caption: str, jpeg: bytes) -> str:
    return f'<h2>{html.escape(caption)}</h2><img alt="" src="{jpeg_url(jpeg)}">'


def _pictures(run: Path) -> list[tuple[str, bytes]]:
    """The newest sheet of each kind, the run's own masks first."""
    newest: dict[str, Path] = {}
    for path in sorted((run / "pictures").glob("*-*.png")):
        newest[path.stem.rpartition("-")[0]] = path
    titles = {"reconstruction": "Reconstruction, the run's own masks"}
    ordered = sorted(newest, key=lambda name: name != "reconstruction")
    return [
        (
            f"{titles.get(name, f'Reconstruction, masks {name}')}, after "
            f"{int(newest[name].stem.rpartition('-')[2]):,} images",
            _jpeg(newest[name]),
        )
        for name in ordered
    ]


def _jpeg(path: Path) -> bytes:
    picture = cv2.imread(str(path))
    if picture is None:
        raise ValueError(f"{path}: no picture")
    height, width = picture.shape[:2]
    if width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, round(height * PICTURE_WIDTH / width))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    ok, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert ok
    return encoded.tobytes()


def _probe(run: Path) -> dict[str, Any] | None:
    found = sorted((run / "evidence").glob("probe-*.json"))
    return json.loads(found[-1].read_text()) if found else None


def main() -> None:
    try:
        sys.stdout.write(f"{write_page(Path(sys.argv[1]))}\n")
    except ValueError as error:
        raise SystemExit(f"xpt.monitoring.run_page: {error}") from error


if __name__ == "__main__":
    main()
