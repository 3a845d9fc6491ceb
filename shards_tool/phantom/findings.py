"""Findings: what can be wrong with a chest, how it changes between studies, and how it is drawn.

A finding is drawn into the physics of one lung (tissue instead of air, fluid, missing vessels), never
painted onto the picture.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from shards_tool.phantom.anatomy import Across, Chest, Down, Field

NODULE, EFFUSION, CONSOLIDATION = "Nodule", "Pleural Effusion", "Consolidation"
CARDIOMEGALY, PNEUMOTHORAX, NO_FINDING = "Cardiomegaly", "Pneumothorax", "No Finding"
FINDINGS = (NODULE, EFFUSION, CONSOLIDATION, CARDIOMEGALY, PNEUMOTHORAX)
LABELS = (*FINDINGS, NO_FINDING)

LUNG_DENSITY = 0.25
"""Tissue per volume of an inflated lung (Hounsfield -750, as in CT of normal lungs)."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    name: str
    side: int
    """-1 the patient's right, +1 left, 0 for the heart."""
    zone: str
    """"upper", "middle" or "lower" third of the lung; "" where the finding has no zone."""
    size: float
    """Nodule: diameter in mm. Cardiomegaly: cardiothoracic ratio. Otherwise 0 (small) to 1 (large)."""
    across: float = 0.5
    """Centre, 0 at the mediastinum to 1 at the ribs."""
    down: float = 0.5
    """Centre, 0 at the apex to 1 at the diaphragm."""

    def degree(self) -> int:
        """0, 1, 2: small, moderate, large; for the heart mild, moderate, marked."""
        low, high = (0.60, 0.65) if self.name == CARDIOMEGALY else (0.34, 0.70)
        return int(self.size > low) + int(self.size > high)


def draw_finding(name: str, rng: np.random.Generator) -> Finding:
    side = int(rng.choice((-1, 1)))
    if name == CARDIOMEGALY:
        return Finding(name=name, side=0, zone="", size=float(rng.uniform(0.56, 0.69)))
    if name in (EFFUSION, PNEUMOTHORAX):
        return Finding(name=name, side=side, zone="", size=float(rng.uniform(0.05, 1)))
    zone = str(rng.choice(("upper", "middle", "lower")))
    down = {"upper": (0.20, 0.30), "middle": (0.40, 0.62), "lower": (0.71, 0.86)}[zone]
    size = rng.uniform(7, 25) if name == NODULE else rng.uniform(0.1, 1)
    # The lower left zone's inner half is the heart.
    inner = 0.58 if zone == "lower" and side > 0 else 0.38
    return Finding(
        name=name,
        side=side,
        zone=zone,
        size=float(size),
        across=float(rng.uniform(inner, 0.80)),
        down=float(rng.uniform(*down)),
    )


def draw_findings(label: str, rng: np.random.Generator) -> tuple[Finding, ...]:
    """A first study's findings: none for "No Finding", else the one asked for and in a quarter another."""
    if label == NO_FINDING:
        return ()
    names = [label]
    if rng.random() < 0.25:
        names.append(str(rng.choice([name for name in FINDINGS if name != label])))
    return _apart(tuple(draw_finding(name, rng) for name in names))


def next_findings(before: tuple[Finding, ...], rng: np.random.Generator) -> tuple[Finding, ...]:
    """The patient's findings at the next study: each persists and changes or clears; a new one may come."""
    kept = []
    for finding in before:
        # Hearts and nodules do not go away within months.
        if finding.name not in (CARDIOMEGALY, NODULE) and rng.random() < 0.35:
            continue
        low, high = {NODULE: (7, 25), CARDIOMEGALY: (0.56, 0.69)}.get(finding.name, (0.05, 1))
        step = rng.normal(0, 0.15) * (high - low)
        kept.append(replace(finding, size=float(np.clip(finding.size + step, low, high))))
    if len(kept) < 2 and rng.random() < 0.25:
        absent = [name for name in FINDINGS if name not in {f.name for f in kept}]
        kept.append(draw_finding(str(rng.choice(absent)), rng))
    return _apart(tuple(kept))


def _apart(found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Two findings of the lungs go to different sides, so that neither hides the other."""
    if len(found) < 2 or found[0].side == 0 or found[0].side != found[1].side:
        return found
    other = found[1]
    if other.side < 0 and other.zone == "lower":
        other = replace(other, across=max(other.across, 0.58))
    return found[0], replace(other, side=-other.side)


@dataclass(kw_only=True)
class Lung:
    """One half of the chest while it is being drawn; fields over (y, s), s growing away from the midline."""

    side: int
    s: Across
    y: Down
    gas_mm: Field
    """Extent of lung or gas along the beam."""
    density: Field
    """Tissue per volume in `gas_mm`."""
    vessels: Field
    """0 where no vessels run, 1 where they do."""
    tissue_mm: Field
    """Solid tissue that was added inside the lung."""
    bronchi: Field
    """0 to 1: how far air-filled bronchi show against what surrounds them."""


def lung_point(chest: Chest, finding: Finding) -> tuple[float, float]:
    """`s` and `y` of the finding's centre in mm."""
    apex = chest.body.apex_y_mm
    middle = 0.5 * chest.body.lung_half_width_mm[finding.side > 0]
    y = apex + finding.down * (float(chest.dome(np.array([middle]), finding.side)[0]) - apex)
    at = np.array([y])
    inner, outer = float(chest.medial(at, finding.side)[0]), float(chest.lateral(at, finding.side)[0])
    return inner + finding.across * (outer - inner), y


def add_to_lung(finding: Finding, chest: Chest, lung: Lung, noise: Field) -> Field:
    """Changes `lung` and returns where the finding shows, 0 to 1.

    `noise` is smooth, of unit variance, and roughens the outlines.
    """
    draw = {
        NODULE: _nodule,
        CONSOLIDATION: _consolidation,
        EFFUSION: _effusion,
        PNEUMOTHORAX: _pneumothorax,
    }[finding.name]
    # Where the beam meets next to no lung, the finding does not show.
    return draw(finding, chest, lung, noise) * smooth_step(lung.gas_mm / 14)


def smooth_step(x: np.ndarray) -> np.ndarray:
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


def _nodule(finding: Finding, chest: Chest, lung: Lung, noise: Field) -> Field:
    s0, y0 = lung_point(chest, finding)
    radius = finding.size / 2
    distance = np.hypot(lung.s[None, :] - s0, lung.y[:, None] - y0) / radius + 0.06 * noise
    # Small nodules that films show at all are dense; large ones are soft tissue with a soft rim.
    dense = 1 + 1.1 * np.clip((18 - finding.size) / 10, 0, 1)
    chord = finding.size * np.sqrt(np.maximum(1 - np.minimum(distance, 1) ** 2, 0))
    lung.tissue_mm += (chord * dense * (1 - LUNG_DENSITY)).astype(np.float32)
    return (distance < 1).astype(np.float32)


def _consolidation(finding: Finding, chest: Chest, lung: Lung, noise: Field) -> Field:
    s0, y0 = lung_point(chest, finding)
    rx, ry = 20 + 22 * finding.size, 17 + 24 * finding.size
    distance = np.hypot((lung.s[None, :] - s0) / rx, (lung.y[:, None] - y0) / ry) + 0.20 * noise
    filled = (1 - smooth_step((distance - 0.3) / 0.9)) * (lung.gas_mm > 0)
    share = (0.40 + 0.22 * finding.size) * filled  # of the lung's depth that is airless
    lung.density += share * (0.95 - lung.density)
    lung.vessels *= 1 - 0.7 * filled
    lung.bronchi = np.maximum(lung.bronchi, filled)
    return filled.astype(np.float32)


def _effusion(finding: Finding, chest: Chest, lung: Lung, noise: Field) -> Field:
    side = lung.side
    angle = float(chest.dome(np.array([chest.body.lung_half_width_mm[side > 0]]), side)[0])
    height = 36 + 110 * finding.size
    # The meniscus: highest along the ribs, lowest towards the mediastinum.
    t = np.clip(lung.s[None, :] / chest.lateral(lung.y, side)[:, None], 0, 1)
    inner = float(np.clip((height - 45) / 110, 0, 0.6))
    level = angle - height * (inner + (1 - inner) * t**3)
    fluid = smooth_step((lung.y[:, None] - level + 1.5 * noise) / (8 + 0.28 * height))
    fluid = fluid * (lung.gas_mm > 0)
    lung.density += fluid * 0.97 * (1 - lung.density)
    lung.vessels *= 1 - fluid
    return fluid.astype(np.float32)


def _pneumothorax(finding: Finding, chest: Chest, lung: Lung, noise: Field) -> Field:
    body, side = chest.body, lung.side
    inside = (lung.s[None, :] < chest.lateral(lung.y, side)[:, None]) & (lung.y[:, None] > body.apex_y_mm)
    pixel = abs(float(lung.s[1] - lung.s[0]))
    from_ribs = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * pixel
    # Above the apex the lung's own top bounds the space; towards the midline nothing does.
    down = np.clip((lung.y - body.apex_y_mm) / (body.dome_y_mm[0] - body.apex_y_mm), 0, 1)[:, None]
    gap = (9 + 30 * finding.size) * (1 - (0.92 - 0.5 * finding.size) * down**1.2)
    depth = cv2.GaussianBlur(from_ribs - gap - 1.2 * noise, (0, 0), 1.2 / pixel)
    outside = smooth_step(0.5 - depth / 1.6) * (lung.gas_mm > 0)
    lung.density *= 1 - outside
    lung.density += (1 - outside) * 0.05 * finding.size * (lung.gas_mm > 0)  # the lung has lost volume
    lung.vessels *= 1 - outside
    line = np.exp(-0.5 * (depth / 0.7) ** 2) * (lung.gas_mm > 4)
    lung.tissue_mm += (4.5 * line).astype(np.float32)
    return outside.astype(np.float32)
