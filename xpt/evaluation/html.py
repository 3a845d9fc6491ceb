"""What the HTML pages of runs and evaluations are made of: tables, numbers, pictures in the file itself."""

import base64
import html
from collections.abc import Sequence
from typing import Any

import numpy as np


def document(title: str, style: str, parts: Sequence[str]) -> str:
    """A page that needs no other file."""
    head = "<!doctype html><html lang=en><meta charset=utf-8>"
    return f"{head}<title>{html.escape(title)}</title><style>{style}</style>" + "\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML."""
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def span(value: dict[str, Any]) -> str:
    """A value and its interval."""
    if value["value"] is None or np.isnan(value["value"]):
        return "undefined"
    return f"{value['value']:.3f} ({number(value['low'])} to {number(value['high'])})"


def number(value: float | None) -> str:
    return "undefined" if value is None or np.isnan(value) else f"{value:.3f}"


def jpeg_url(jpeg: bytes) -> str:
    """The value of an image's `src`."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def differences(head: str, rows: dict[str, dict[str, Any] | None]) -> str:
    """Paired differences with interval and p-value; those that are undefined are left out."""
    cells = [
        [html.escape(name), span(row), number(row["p_value"])]
        for name, row in rows.items()
        if row is not None
    ]
    return table((head, "95%", "p"), cells)
