"""The rules against labels that others made: 1,000 synthetic reports that come with the package radlabels.

The package itself needs a language model to run; only its samples are read, from its wheel.
"""

import json
import re
import subprocess
import sys
import zipfile

import pytest

from xpt.text.findings import asserted_findings

RELEASE = "radlabels==0.2.0"  # its samples: another release may have others
ASSERTED = {"definitely present", "uncertain"}
NAMES = {
    "Nodule": {"lung_nodule_or_mass"},
    "Pleural Effusion": {"pleural_effusion"},
    "Consolidation": {"air_space_opacity", "consolidation", "pneumonia", "infiltration"},
    "Cardiomegaly": {"cardiomegaly"},
    "Pneumothorax": {"pneumothorax"},
    "Atelectasis": {"atelectasis", "lobar_segmental_collapse", "whole_lung_or_majority_collapse"},
    "Edema": {"pulmonary_edema", "pulmonary_congestion_pulmonary_venous_congestion"},
    "Emphysema": {"emphysema", "bullous_disease"},
    "Fracture": {"fracture_generic", "acute_rib_fracture", "non_acute_rib_fracture"},
}
"""Which of radlabels' findings each of ours is."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, str]]]:
    """Report and labels of each."""
    folder = tmp_path_factory.mktemp("radlabels")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        RELEASE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"{RELEASE} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        labels = json.loads(archive.read("radlabels/samples/synthetic_labels.json"))
        base = "radlabels/samples/synthetic_reports"
        return [(archive.read(f"{base}/{name}.txt").decode(), found) for name, found in labels.items()]


def told(report: str) -> str:
    """From the findings or the impression on: an indication names what is asked for."""
    heading = re.search(r"(?:findings|impression)\s*:", report, re.IGNORECASE)
    return report[heading.start() :] if heading else report


def test_agreement_with_radlabels(samples: list[tuple[str, dict[str, str]]]):
    assert len(samples) == 1000
    right, found, wanted = (dict.fromkeys(NAMES, 0) for _ in range(3))
    for report, labels in samples:
        asserted = asserted_findings(told(report), "en")
        for name, theirs in NAMES.items():
            is_found = name in asserted
            is_wanted = any(labels.get(other) in ASSERTED for other in theirs)
            right[name] += is_found and is_wanted
            found[name] += is_found
            wanted[name] += is_wanted
    f1 = {name: 2 * right[name] / (found[name] + wanted[name]) for name in NAMES}
    micro = 2 * sum(right.values()) / (sum(found.values()) + sum(wanted.values()))
    assert micro > 0.92, f1
    assert min(f1.values()) > 0.65, f1
