"""Soft tissue and air: how many millimetres of water-like tissue each beam crosses."""

from dataclasses import dataclass

import cv2
import numpy as np

from shards_tool.phantom.anatomy import SIDES, Across, Chest, Down, Ellipsoid, Field
from shards_tool.phantom.findings import CARDIOMEGALY, LUNG_DENSITY, Finding, Lung, add_to_lung, smooth_step


@dataclass(frozen=True, kw_only=True)
class Tissue:
    water_mm: Field
    """Tissue along each beam, millimetres of water; bones and lung vessels not yet in it."""
    vessels: Field
    """Where lung vessels show, 0 to 1."""
    bronchi: Field
    lung: Field
    """1 in the lung fields as a reader outlines them (above the diaphragm, beside heart and mediastinum)."""
    findings: tuple[Field, ...]
    """Where each finding shows, 0 to 1, in the order given."""


def noise_field(seed: tuple[int, ...], x: Across, y: Down, grain_mm: float) -> Field:
    """Smooth noise of about unit variance that depends on the place in the body, not on the pixel size."""
    rng = np.random.default_rng(seed)
    # 640 mm x 720 mm of body around the chest; the grid never depends on the film.
    columns, rows = int(640 / grain_mm) + 4, int(720 / grain_mm) + 4
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    # An affine warp samples the grid at each pixel's place; cubic keeps it smooth.
    step_x, step_y = (x[-1] - x[0]) / (len(x) - 1), (y[-1] - y[0]) / (len(y) - 1)
    to_grid = np.array(
        [
            [step_x / grain_mm, 0, (x[0] + 320) / grain_mm + 1],
            [0, step_y / grain_mm, (y[0] + 220) / grain_mm + 1],
        ]
    )
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    size = (len(x), len(y))
    return cv2.warpAffine(grid, to_grid, size, flags=flags, borderMode=cv2.BORDER_REFLECT) * np.float32(1.25)


def draw_tissue(chest: Chest, findings: tuple[Finding, ...], x: Across, y: Down) -> Tissue:
    """Fields over the axes `x` and `y` (mm in the body's frame)."""
    body = chest.body
    seed = body.texture_seed
    heart = _heart_thickness(chest, x, y)
    middle = int(np.searchsorted(x, 0.0))
    rough = 0.35 * noise_field((seed, 1), x, y, 7.0) + 0.94 * noise_field((seed, 5), x, y, 22.0)
    fine = noise_field((seed, 2), x, y, 1.3) + noise_field((seed, 3), x, y, 3.0)

    shape = (len(y), len(x))
    air, vessels, bronchi, extra, lungs = (np.zeros(shape, np.float32) for _ in range(5))
    shown = [np.zeros(shape, np.float32) for _ in findings]
    for side in SIDES:
        half = slice(middle, None) if side > 0 else slice(0, middle)
        s = side * x[half]
        lung, field = _lung(chest, side, s, y, heart[:, half])
        for i, finding in enumerate(findings):
            if finding.side == side:
                shown[i][:, half] = add_to_lung(finding, chest, lung, rough[:, half])
        parenchyma = lung.vessels * np.sqrt(lung.gas_mm)
        air[:, half] = lung.gas_mm * (1 - lung.density)
        extra[:, half] = lung.tissue_mm + 0.035 * fine[:, half] * parenchyma
        vessels[:, half] = lung.vessels * smooth_step(lung.gas_mm / 50)
        bronchi[:, half] = lung.bronchi
        lungs[:, half] = field
    for i, finding in enumerate(findings):
        if finding.name == CARDIOMEGALY:
            shown[i] = np.maximum.reduce([(e.radius2(x, y) < 1).astype(np.float32) for e in chest.heart()])

    trunk = _trunk(chest, x, y)
    clouds = 1.5 * rough + 3.0 * noise_field((seed, 4), x, y, 34.0)
    trunk += clouds * smooth_step(trunk / 120)
    trunk += _chest_wall(chest, x, y)
    water = trunk + _breasts(chest, x, y) - _airways(chest, x, y) - _gas(chest, x, y)
    water = np.maximum(water - air + extra, 0)
    return Tissue(
        water_mm=water.astype(np.float32),
        vessels=vessels,
        bronchi=bronchi,
        lung=lungs,
        findings=tuple(shown),
    )


def _heart_thickness(chest: Chest, x: Across, y: Down) -> Field:
    atrium, ventricle = (e.thickness(x, y) for e in chest.heart())
    heart = np.maximum(atrium, ventricle) + 0.25 * np.minimum(atrium, ventricle)
    for vessel in chest.vessels_of_the_mediastinum():
        heart = np.maximum(heart, vessel.thickness(x, y))
    # The descending aorta runs behind the heart, so it adds to it.
    v = chest.body.vertebra_mm
    offset = (
        x[None, :] - (chest.turn_mm * 0.3 + 20 - 8 * np.clip((y[:, None] - 8 * v) / (4 * v), 0, 1))
    ) / 13
    aorta = 26 * np.sqrt(np.maximum(1 - offset**2, 0)) * smooth_step((y[:, None] - 3.2 * v) / (1.2 * v))
    # It beats during the exposure.
    return cv2.GaussianBlur((heart + aorta).astype(np.float32), (0, 0), 1.1 / float(x[1] - x[0]))


def _lung(chest: Chest, side: int, s: Across, y: Down, heart: Field) -> tuple[Lung, Field]:
    body = chest.body
    outer, inner = chest.lateral(y, side)[:, None], chest.medial(y, side)[:, None]
    t = (s[None, :] - inner) / np.maximum(outer - inner, 1)
    below_apex = np.clip((y - body.apex_y_mm) / (0.5 * body.dome_y_mm[0]), 0, 1)
    depth = body.lung_depth_mm * (0.26 + 0.74 * (1 - (1 - below_apex) ** 2))
    depth = (depth * (y > body.apex_y_mm))[:, None]
    shape = np.sqrt(np.maximum(1 - np.clip(t, 0, 1) ** 2.3, 0)) * np.sqrt(
        np.clip((s[None, :] - inner) / 22, 0, 1)
    )
    # Below the dome's top some lung lies in front of and behind it, down to the costophrenic angle.
    dome = chest.dome(s, side)[None, :]
    angle = chest.dome(np.array([body.lung_half_width_mm[side > 0]]), side)[0]
    under = (y[:, None] - dome) / (8 + np.maximum(angle - dome, 0))
    above = 1 - np.clip(under, 0, 1) ** 0.36
    # The recess is deep at the sides; towards the heart little lung reaches below the dome.
    recess = 0.15 + 0.85 * smooth_step((s / outer.max() - 0.4) / 0.4)[None, :]
    above *= 1 - (1 - recess) * smooth_step((y[:, None] - dome) / 2.2)
    cavity = depth * shape * above
    gas = np.maximum(cavity - heart, 0).astype(np.float32)
    field = (t > 0) & (t < 1) & (under < 0) & (y > body.apex_y_mm)[:, None] & (heart < 30)
    lung = Lung(
        side=side,
        s=s,
        y=y,
        gas_mm=gas,
        density=np.full_like(gas, LUNG_DENSITY),
        vessels=gas / np.maximum(cavity, 1),
        tissue_mm=np.zeros_like(gas),
        bronchi=np.zeros_like(gas),
    )
    return lung, field.astype(np.float32)


def _trunk(chest: Chest, x: Across, y: Down) -> Field:
    """The body without its air: trunk, neck, shoulders and arms."""
    body = chest.body
    v, wall = body.vertebra_mm, body.wall_mm
    widest = max(body.lung_half_width_mm)
    ax = np.abs(x)[None, :]
    yy = y[:, None]
    # Shoulders narrow to the chest wall at the armpit, about T4.
    shoulder = widest + wall + 52
    waist = widest + wall
    half_width = waist + (shoulder - waist) * (1 - smooth_step((yy - 2.0 * v) / (2.6 * v)))
    depth = body.depth_mm * (0.86 + 0.20 * smooth_step((yy - 4 * v) / (10 * v)))
    trunk = depth * (1 - np.clip(ax / half_width, 0, 1) ** 2.7) ** 0.5
    # The trapezius slopes from the neck to the shoulder's tip; thin near its edge.
    slope = -5.5 * v + 6.0 * v * np.clip((ax - 46) / (shoulder - 46), 0, 1) ** 0.45
    trunk *= np.sqrt(np.clip((yy - slope) / (3.2 * v), 0, 1)) * (
        0.62 + 0.38 * smooth_step((yy - v) / (4 * v))
    )
    neck = 122 * np.maximum(1 - (ax / 62) ** 2, 0) ** 0.8 * smooth_step((2.5 * v - yy) / (5 * v))
    # The upper arm: a tapering cylinder that leaves the shoulder outwards.
    centre = shoulder - 30 + 0.13 * np.maximum(yy - 2 * v, 0)
    radius = 44 + 0.25 * wall
    arm = 1.7 * radius * np.sqrt(np.maximum(1 - ((ax - centre) / radius) ** 2, 0))
    arm = arm * np.sqrt(np.clip((yy - 1.1 * v) / (1.6 * v), 0, 1))
    return np.maximum(np.hypot(trunk, 0.9 * neck), np.maximum(arm, 0.6 * arm + 0.75 * trunk)).astype(
        np.float32
    )


def _chest_wall(chest: Chest, x: Across, y: Down) -> Field:
    """Muscle and pleura around the lungs, denser than the fat outside: bright where seen edge-on."""
    body = chest.body
    out = np.zeros((len(y), len(x)), np.float32)
    flat = 0.6 * body.lung_depth_mm / max(body.lung_half_width_mm)
    for side in SIDES:
        half = side * x > 0
        s = (side * x[half])[None, :]
        inner = chest.lateral(y, side)[:, None]
        chord = np.sqrt(np.maximum((inner + 7) ** 2 - s**2, 0)) - np.sqrt(np.maximum(inner**2 - s**2, 0))
        out[:, half] = 0.45 * flat * chord * (y > body.apex_y_mm)[:, None]
    return out


def _breasts(chest: Chest, x: Across, y: Down) -> Field:
    body = chest.body
    v = body.vertebra_mm
    total = np.zeros((len(y), len(x)), np.float32)
    if body.breast_mm == 0:
        # Pectoral muscles: soft, without a lower edge.
        for side in SIDES:
            muscle = Ellipsoid(x=side * 98.0, y=4.6 * v, rx=66.0, ry=58.0, tilt_deg=side * -20.0, depth=16.0)
            total += np.float32(muscle.depth) * np.maximum(1 - muscle.radius2(x, y), 0)
        return total
    radius = 48 + 0.55 * body.breast_mm
    for side in SIDES:
        breast = Ellipsoid(
            x=side * (0.62 * max(body.lung_half_width_mm)),
            y=7.3 * v + 0.4 * body.breast_mm + side * 2,
            rx=radius * 1.05,
            ry=radius * 0.95,
            depth=body.breast_mm,
        )
        # Softer than an ellipsoid's edge: it hangs away from the chest wall.
        profile = np.float32(breast.depth) * np.maximum(1 - breast.radius2(x, y), 0) ** np.float32(0.7)
        total += profile * smooth_step((y - breast.y + radius)[:, None] / (1.3 * radius))
    return total


def _airways(chest: Chest, x: Across, y: Down) -> Field:
    """Larynx, trachea, carina at T5 and the main bronchi; the right one is the steeper."""
    v, dx = chest.body.vertebra_mm, chest.turn_mm
    step = float(x[1] - x[0])
    carina = (dx * 0.7 + 3, 4.3 * v)
    lines = (
        ((dx * 0.2, -6 * v), (dx * 0.4, 0.5 * v), 16.0, 15.0),
        ((dx * 0.4, 0.5 * v), carina, 17.0, 15.0),
        (carina, (dx - 24, 5.5 * v), 13.0, 12.0),
        (carina, (dx + 36, 5.7 * v), 11.0, 11.0),
        ((dx - 24, 5.5 * v), (dx - 36, 6.6 * v), 9.0, 8.0),
    )
    canvas = np.zeros((len(y), len(x)), np.float32)
    for start, end, width, depth in lines:
        one = np.zeros((len(y), len(x)), np.uint8)
        points = [(round((p[0] - x[0]) / step * 16), round((p[1] - y[0]) / step * 16)) for p in (start, end)]
        cv2.line(one, points[0], points[1], 255, max(1, round(width / step)), cv2.LINE_AA, 4)
        canvas = np.maximum(canvas, one.astype(np.float32) * np.float32(depth / 255))
    return cv2.GaussianBlur(canvas, (0, 0), 2.2 / step)


def _gas(chest: Chest, x: Across, y: Down) -> Field:
    """Gas in the stomach's fundus and the colon's bend, flat and below the left dome."""
    radius = chest.body.gastric_bubble_mm
    gas = np.zeros((len(y), len(x)), np.float32)
    if radius == 0:
        return gas
    dome = float(chest.dome(np.array([62.0]), 1)[0])
    rng = np.random.default_rng((chest.body.texture_seed, 6))
    bubble = Ellipsoid(
        x=64.0, y=dome + 9 + 0.75 * radius, rx=1.25 * radius, ry=0.72 * radius, tilt_deg=6.0, depth=34.0
    )
    gas += bubble.thickness(x, y)
    for _ in range(int(rng.integers(0, 3))):
        small = radius * rng.uniform(0.35, 0.7)
        loop = Ellipsoid(
            x=64 + rng.uniform(-1, 2.4) * radius,
            y=dome + rng.uniform(25, 60),
            rx=small,
            ry=0.7 * small,
            depth=20.0,
        )
        gas = np.maximum(gas, loop.thickness(x, y))
    return gas
