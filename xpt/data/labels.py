"""From the labels of the shards to targets: which names count, what uncertain and missing mean.

Shape suffixes: N films, C findings or classes.

A target is a probability, or NaN where the film says nothing about the finding. Under `multi_class`
a row adds up to 1, or is NaN altogether.
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Kind = Literal["multi_label", "multi_class"]
Labels = Sequence[dict[str, float]]
UNCERTAIN = -1


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """The vocabulary of a data set, and what is learned of it."""

    findings: tuple[str, ...]
    kind: Kind = "multi_label"
    others: tuple[str, ...] = ()
    """Names that may occur besides."""

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.findings, *self.others)


_CHEXPERT = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
_COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five of the CheXpert competition."""
LABEL_MAPS = {
    "nih14": LabelMap(
        findings=(
            *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
            *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
            "Hernia",
        ),
        others=("No Finding",),
    ),
    # The others by --recognition.findings.
    "chexpert": LabelMap(
        findings=_COMPETITION, others=("No Finding", *(n for n in _CHEXPERT if n not in _COMPETITION))
    ),
    "mimic": LabelMap(findings=_CHEXPERT, others=("No Finding",)),
    "rsna": LabelMap(
        findings=("Normal", "No Lung Opacity / Not Normal", "Lung Opacity"),
        kind="multi_class",
        others=("Pneumonia",),
    ),
    "phantom": LabelMap(
        findings=("Nodule", "Pleural Effusion", "Consolidation", "Cardiomegaly", "Pneumothorax"),
        others=("No Finding",),
    ),
    "free": LabelMap(findings=()),
}


def label_map(
    name: str, findings: tuple[str, ...], kind: Literal["auto", "multi_label", "multi_class"]
) -> LabelMap:
    """The map `name`, narrowed to `findings` where there are any.

    Raises ValueError for a finding that it does not have; `free` takes any.
    """
    base = LABEL_MAPS[name]
    chosen = findings or base.findings
    unknown = [f for f in chosen if name != "free" and f not in base.known]
    if unknown:
        raise ValueError(
            f"--recognition.findings {unknown[0]}: not in the label map {name}. "
            f"{_near(unknown[0], base.known)}It has: {', '.join(base.known)}. "
            "Or set --recognition.label_map free."
        )
    others = tuple(f for f in base.known if f not in chosen)
    return LabelMap(findings=chosen, kind=base.kind if kind == "auto" else kind, others=others)


def check_names(labels: Labels, mapped: LabelMap, *, split: str, ignore_others: bool) -> None:
    """Raises ValueError for a finding that no film has a label for, and for labels outside the map."""
    seen = {name for film in labels for name in film}
    for finding in mapped.findings:
        if finding not in seen:
            raise ValueError(
                f"finding {finding}: no film of split {split} has a label of that name. "
                f"{_near(finding, seen)}The shards have: {', '.join(sorted(seen)) or 'no labels'}. Set "
                "--recognition.findings, or build the shards with the right table: xpt-shards build --meta."
            )
    outside = sorted(seen - set(mapped.known))
    if outside and not ignore_others:
        raise ValueError(
            f"label {outside[0]}: {len(outside)} labels of split {split} are outside the label map: "
            f"{', '.join(outside)}. {_near(outside[0], mapped.known)}Choose another --recognition.label_map, "
            "or set --recognition.other_labels ignore."
        )


def _near(name: str, known: Sequence[str] | set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}? " if near else ""


def targets(
    labels: Labels,
    mapped: LabelMap,
    *,
    uncertain: float,
    missing: Literal["ignore", "zeros"],
    keys: Sequence[str],
) -> Float[np.ndarray, "N C"]:
    """Targets of films; `uncertain` is what -1 becomes (NaN: unknown).

    Raises ValueError where, under `multi_class`, a film has several classes.
    """
    absent = np.nan if missing == "ignore" else 0.0
    value_NC = np.array(
        [[film.get(name, absent) for name in mapped.findings] for film in labels], dtype=np.float64
    ).reshape(len(labels), len(mapped.findings))
    value_NC = np.where(value_NC == UNCERTAIN, uncertain, value_NC)
    if mapped.kind == "multi_label":
        return value_NC
    present_N = (value_NC == 1).sum(1)
    if (present_N > 1).any():
        film = int(np.argmax(present_N > 1))
        names = [n for n, v in zip(mapped.findings, value_NC[film], strict=True) if v == 1]
        raise ValueError(
            f"film {keys[film]}: has the classes {', '.join(names)}; wanted one of each film, as the kind is "
            "multi_class. Set --recognition.kind multi_label, or choose classes that exclude each other."
        )
    return np.where((present_N == 1)[:, None], (value_NC == 1).astype(np.float64), np.nan)


def check_both(target_NC: Float[np.ndarray, "N C"], mapped: LabelMap, split: str) -> None:
    """Raises ValueError for a finding that no film of the split has, or (multi-label) that all have."""
    for finding, target_N in zip(mapped.findings, target_NC.T, strict=True):
        known_N = target_N[~np.isnan(target_N)]
        for what, there in (("positive", (known_N > 0.5).any()), ("negative", (known_N < 0.5).any())):
            if not there:
                raise ValueError(
                    f"finding {finding}: no {what} film in split {split}, of {len(known_N)} whose label is "
                    "known. Leave it out with --recognition.findings, raise --recognition.fraction, divide "
                    "the patients otherwise (xpt-shards split), or, if findings that your table leaves out "
                    "are absent, set --recognition.missing zeros."
                )


def chosen_patients(patients: Sequence[str], fraction: float, seed: int) -> Bool[np.ndarray, "N"]:
    """True for the films of `fraction` of the patients, at least one.

    Patients are ranked by a hash, so a smaller fraction is part of a larger one, whatever their order.
    """
    names = sorted(set(patients), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    chosen = set(names[: max(1, round(fraction * len(names)))])
    return np.array([patient in chosen for patient in patients])


def check_disjoint(patients: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError where a patient is in two splits."""
    splits = list(patients)
    for place, one in enumerate(splits):
        for other in splits[place + 1 :]:
            shared = set(patients[one]) & set(patients[other])
            if shared:
                raise ValueError(
                    f"patient {min(shared)}: in the splits {one} and {other}, with {len(shared) - 1} more. "
                    "Every score would be too good. Divide the films by patient: xpt-shards split."
                )
