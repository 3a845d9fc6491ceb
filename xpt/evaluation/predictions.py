"""What a model says about the films of a split, beside what is known: one Parquet file.

Shape suffixes: N films, C findings or classes.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from xpt.data.labels import Kind
from xpt.files import write_atomically
from xpt.metrics import sigmoid, softmax


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """One row per film."""

    keys: list[str]
    patients: list[str]
    findings: tuple[str, ...]
    kind: Kind
    target_NC: Float[np.ndarray, "N C"]
    """1, 0, or NaN where it is not known."""
    logit_NC: Float[np.ndarray, "N C"]

    def probabilities(self, temperature_C: Float[np.ndarray, "C"] | float = 1.0) -> np.ndarray:
        """[N, C] in [0, 1], of logits divided by the temperature."""
        return probabilities(self.logit_NC / temperature_C, self.kind)

    def known(self, finding: int) -> np.ndarray:
        """[N] bool: where the finding's label is known."""
        return ~np.isnan(self.target_NC[:, finding])


def probabilities(logit_NC: Float[np.ndarray, "N C"], kind: Kind) -> Float[np.ndarray, "N C"]:
    """Of each finding by itself, or of the classes together."""
    return sigmoid(logit_NC) if kind == "multi_label" else softmax(logit_NC)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Columns key, patient, and `target:NAME`, `logit:NAME`, `probability:NAME` of each finding."""
    columns: dict[str, object] = {"key": predictions.keys, "patient": predictions.patients}
    probability_NC = predictions.probabilities()
    for place, name in enumerate(predictions.findings):
        columns[f"target:{name}"] = pa.array(predictions.target_NC[:, place], from_pandas=True)
        columns[f"logit:{name}"] = predictions.logit_NC[:, place]
        columns[f"probability:{name}"] = probability_NC[:, place]
    table = pa.table(columns).replace_schema_metadata({"kind": predictions.kind})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Raises ValueError where the file is missing or not one of `write_predictions`."""
    try:
        table = pq.read_table(path)
        names = [name.removeprefix("logit:") for name in table.column_names if name.startswith("logit:")]
        kind = (table.schema.metadata or {})[b"kind"].decode()
        assert kind in ("multi_label", "multi_class")
        return Predictions(
            keys=table["key"].to_pylist(),
            patients=table["patient"].to_pylist(),
            findings=tuple(names),
            kind=kind,
            target_NC=_matrix(table, [f"target:{name}" for name in names]),
            logit_NC=_matrix(table, [f"logit:{name}" for name in names]),
        )
    except (OSError, KeyError, AssertionError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: no predictions there ({error!r}); make them with xpt-evaluate RUN"
        ) from error


def _matrix(table: pa.Table, columns: list[str]) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in columns], 1).astype(np.float64)
