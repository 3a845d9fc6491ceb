"""Bones and vessels: thin structures whose edges make a film look sharp.

Ribs are bands on the surface of the rib cage. A rib is a tilted ring around the chest: with the angle
`a` from the spine (0) over the side (90 degrees) to the breastbone (180 degrees), rib k runs at
y = y_k + e_k sin(a) + d_k (1 - cos(a)). With e and d linear in k this inverts in closed form, so every
pixel knows at which rib coordinate its beam enters (back) and leaves (front) the cage, and all ribs are
one function of that coordinate. Along the side the beam runs within the bone, which makes the bright
edges of the chest wall.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from shards_tool.phantom.anatomy import SIDES, Across, Chest, Down, Field
from shards_tool.phantom.findings import smooth_step

CORTEX, MARROW = 0.040, 0.010
"""Attenuation per mm beyond that of tissue, of cortical and of spongy bone, at about 65 keV effective
(NIST XCOM: bone 0.6 /cm, water 0.2 /cm; spongy bone at a fifth of the mineral)."""


def draw_ribs(chest: Chest, x: Across, y: Down, wobble: Field) -> Field:
    """Extra attenuation of the ribs; `wobble` (unit variance, smooth) makes them irregular."""
    out = np.zeros((len(y), len(x)), np.float32)
    v, reach = chest.body.vertebra_mm, max(chest.body.lung_half_width_mm) + 8
    rows = slice(int(np.searchsorted(y, -1.5 * v)), int(np.searchsorted(y, 14 * v)))
    for side in SIDES:
        inner, outer = np.searchsorted(x, (min(side * reach, 0), max(side * reach, 0)))
        half = slice(int(inner), int(outer))
        out[rows, half] = _half_cage(chest, side, side * x[half], y[rows], wobble[rows, half])
    return out


def _half_cage(chest: Chest, side: int, s: Across, y: Down, wobble: Field) -> Field:
    body = chest.body
    v = body.vertebra_mm
    width = chest.lateral(np.maximum(y, body.apex_y_mm), side) + 4.5
    width = np.maximum(width, 46 + 0.2 * (y - body.apex_y_mm))[:, None]
    sine = s[None, :] / width
    on_cage = sine < 1
    sine = np.minimum(sine, 1)
    cosine = np.sqrt(1 - sine * sine)
    # The path through a shell grows as the surface turns along the beam, up to the chord of the bone.
    slant = 0.75 / np.maximum(cosine, 0.45)
    e0, e1 = np.float32(2.0), np.float32(1.2)
    d0, d1 = np.float32(0.10 * body.rib_droop_mm), np.float32(0.15 * body.rib_droop_mm)
    height = y[:, None] + np.float32(0.6) * wobble + np.float32(1.1 * v)
    rng = np.random.default_rng((body.texture_seed, 10, side > 0))
    centre = np.arange(256) + np.pad(rng.normal(0, 0.05, 16), (0, 240))
    sharpness = 2 / (body.rib_width_mm * np.pad(rng.normal(1, 0.06, 16), (0, 240), constant_values=1))
    section = _rib_section(body.bone_density, body.rib_width_mm)
    # Where the bone gives way to cartilage; the last two ribs hardly leave the spine.
    end = np.full(256, 2.0)
    end[1:13] = np.cos(np.deg2rad((148, 146, 144, 142, 140, 137, 133, 128, 122, 116, 60, 50)))
    total = np.zeros_like(cosine)
    for front in (False, True):
        turn = 1 + cosine if front else 1 - cosine
        spacing = np.float32(v) + e1 * sine + d1 * turn
        k = (height - e0 * sine - d0 * turn) / spacing
        rib = np.clip(np.rint(k), 0, 15).astype(np.uint8)
        across = (k - _look_up(centre, rib)) * spacing * _look_up(sharpness, rib)
        # Front ends are flatter and broader.
        steps = np.float32(_SECTION_STEPS * (0.9 if front else 1.0))
        bone = _look_up(section, np.clip(across * steps + 128, 0, 255).astype(np.uint8))
        toward_back = -cosine if front else cosine
        bone *= np.clip((toward_back - _look_up(end, rib)) * 20, 0, 0.70 if front else 1)
        total += bone
    return np.where(on_cage, total * slant, 0) * _soft(s[None, :], 14.0, 4.0)


def _look_up(table: np.ndarray, index: UInt8[np.ndarray, "h w"]) -> Field:
    """`table[index]` for a table of 256 numbers; OpenCV's is several times faster than numpy's."""
    return cv2.LUT(index, table.astype(np.float32))


_SECTION_STEPS = 102
"""Table entries per half-width of a rib, so that 256 of them reach to 1.25 half-widths on either side."""


def _rib_section(density: float, width_mm: float) -> Float[np.ndarray, "256"]:
    """Attenuation through a hollow oval, across it from the upper to the lower edge."""
    v = (np.arange(256) - 128) / _SECTION_STEPS
    cortex = 1.1 / (width_mm / 2)
    outer = np.sqrt(np.maximum(1 - v**2, 0)) * 6.5
    inner = np.sqrt(np.maximum(1 - (v / (1 - cortex)) ** 2, 0)) * 4.9
    table = (CORTEX * (outer - inner) + MARROW * inner) * density
    table = np.convolve(np.pad(table, 3, mode="edge"), np.full(7, 1 / 7), mode="valid")
    # The lower edge is the sharper, denser one: it carries the groove of the vessels.
    return table * (1 + 0.35 * np.clip(v, -1, 1))


def _soft(distance: np.ndarray, edge: np.ndarray | float, width: float) -> np.ndarray:
    """0 below `edge`, 1 above, over `width`."""
    return smooth_step((distance - edge) / width + 0.5)


def draw_spine(chest: Chest, x: Across, y: Down) -> Field:
    """Vertebral bodies with end plates, pedicles, transverse and spinous processes."""
    body = chest.body
    v = body.vertebra_mm
    near = np.abs(x) < 62
    out = np.zeros((len(y), len(x)), np.float32)
    lean = body.spine_bend_mm * np.sin(y / (5.5 * v) + body.texture_seed % 7)
    u = x[near][None, :] - lean[:, None].astype(np.float32) + np.float32(0.25 * chest.turn_mm)
    level = (y / v)[:, None].astype(np.float32)
    place = level - np.rint(level)
    half = (13.0 + 0.55 * np.clip(level, -4, 14)).astype(np.float32)
    side = np.abs(u)

    waist = half - 2.2 * np.cos(np.pi * place) ** 2
    inside = _soft(waist - side, 0.0, 1.6)
    plate = np.abs(place) - 0.42 + 0.02 * np.cos(np.pi * side / half)
    bodies = inside * (
        MARROW * (5 + 9 * _soft(-plate, 0.0, 0.10)) + CORTEX * 2.0 * np.exp(-((plate / 0.04) ** 2))
    )
    bodies += CORTEX * 1.5 * np.exp(-(((side - waist) / 1.2) ** 2)) * (np.abs(place) < 0.42)
    px, py = (side - 0.66 * half) / 3.6, (place + 0.10) * v / 5.6
    r = np.sqrt(px * px + py * py)
    pedicles = CORTEX * 2.6 * np.exp(-(((r - 1) / 0.26) ** 2)) + MARROW * 4 * (r < 1)
    spinous = np.sqrt((u / 2.8) ** 2 + ((place - 0.28) * v / 6.5) ** 2)
    processes = CORTEX * 3.2 * np.exp(-((spinous / 0.95) ** 4))
    bar = (
        np.exp(-((((place + 0.12) * v + 0.10 * side) / 3.6) ** 2))
        * _soft(side, half, 4.0)
        * _soft(31 - side, 0.0, 3.0)
    )
    lamina = MARROW * 9 * np.exp(-(((place - 0.12) * v / 7.0) ** 2)) * _soft(half - 3 - side, 0.0, 3.0)
    bones = bodies + pedicles + processes + MARROW * 7 * bar + lamina
    # Nothing of the spine touches the detector: the focal spot blurs it.
    bones = cv2.GaussianBlur(bones.astype(np.float32), (0, 0), 0.9 / float(x[1] - x[0]))
    out[:, near] = bones * np.float32(body.bone_density)
    return out


def draw_shoulders(chest: Chest, x: Across, y: Down, *, scapula_mm: float, lift_mm: float) -> Field:
    """Clavicles, scapulae and upper arms.

    `scapula_mm` moves the shoulder blades outwards (PA) or over the lungs (AP, negative); `lift_mm`
    raises the outer ends of the clavicles.
    """
    out = np.zeros((len(y), len(x)), np.float32)
    for side in SIDES:
        out += _clavicle(chest, x, y, side, lift_mm)
        out += _blade_and_arm(chest, x, y, side, scapula_mm)
    return out * np.float32(chest.body.bone_density)


def _clavicle(chest: Chest, x: Across, y: Down, side: int, lift_mm: float) -> Field:
    body = chest.body
    v = body.vertebra_mm
    start = 12 + side * chest.turn_mm
    length = max(body.lung_half_width_mm) + 36 - start
    out = np.zeros((len(y), len(x)), np.float32)
    s = side * x
    columns = np.flatnonzero((s > start - 3) & (s < start + length + 3))
    t = ((s[columns] - start) / length)[None, :].astype(np.float32)
    low, high = 2.6 * v, 0.75 * v - lift_mm
    centre = (
        low
        + (high - low) * np.sin(0.5 * np.pi * np.clip(t, 0, 1)) ** 0.9
        - 5 * np.sin(2 * np.pi * t) * (1 - 0.5 * t)
    )
    half = 6.0 + 3.6 * np.exp(-((t / 0.10) ** 2)) + 2.4 * t**4
    slope = np.gradient(centre[0], s[columns].astype(np.float64)).astype(np.float32)[None, :]
    rows = slice(int(np.searchsorted(y, high - 40)), int(np.searchsorted(y, low + 40)))
    across = (y[rows, None] - centre) / np.sqrt(1 + slope**2) / half
    a = np.minimum(np.abs(across), 1)
    outer = np.sqrt(1 - a * a) * 12.5
    inner = np.sqrt(np.maximum(1 - (a / (1 - 1.9 / half)) ** 2, 0)) * 8.0
    ends = _soft(t * length, 0.0, 2.5) * _soft((1 - t) * length, 4.0, 8.0)
    out[rows, columns[0] : columns[-1] + 1] = (CORTEX * (outer - inner) + MARROW * inner) * ends
    return out


def _blade_and_arm(chest: Chest, x: Across, y: Down, side: int, scapula_mm: float) -> Field:
    v = chest.body.vertebra_mm
    edge = max(chest.body.lung_half_width_mm)
    step = float(x[1] - x[0])

    def pixels(points: np.ndarray) -> np.ndarray:
        px = np.stack([(side * points[:, 0] - x[0]) / step, (points[:, 1] - y[0]) / step], axis=1)
        return np.rint(px * 16).astype(np.int32)

    plate, rim = (np.zeros((len(y), len(x)), np.uint8) for _ in range(2))
    g = edge + scapula_mm  # x of the socket is g + 34
    across = np.array((-26, -34, -24, -12, -4, 12, 30, 34, 26, 4)) + g
    down = np.array((1.5, 3.2, 6.4, 8.5, 8.2, 5.6, 3.3, 2.1, 1.5, 1.9)) * v
    blade = np.column_stack([across, down])
    blade = _rounded(blade)
    cv2.fillPoly(plate, [pixels(blade)], 60, cv2.LINE_AA, 4)
    cv2.polylines(rim, [pixels(blade)], True, 90, max(1, round(2.2 / step)), cv2.LINE_AA, 4)
    spine = np.array([(g - 30, 2.9 * v), (g + 4, 1.75 * v), (g + 36, 0.95 * v)])
    cv2.polylines(rim, [pixels(spine)], False, 70, max(1, round(5 / step)), cv2.LINE_AA, 4)
    # Humerus: head, and a hollow shaft that follows the arm.
    head = np.array([(g + 54, 2.35 * v)])
    shaft = np.array([(g + 60, 2.6 * v), (g + 62 + 0.12 * 12 * v, 15 * v)])
    centre = (int(pixels(head)[0, 0]), int(pixels(head)[0, 1]))
    cv2.circle(plate, centre, round(23 / step * 16), 120, -1, cv2.LINE_AA, 4)
    cv2.circle(rim, centre, round(23 / step * 16), 90, max(1, round(1.6 / step)), cv2.LINE_AA, 4)
    cv2.polylines(rim, [pixels(shaft)], False, 170, max(1, round(25 / step)), cv2.LINE_AA, 4)
    cv2.polylines(rim, [pixels(shaft)], False, 75, max(1, round(14 / step)), cv2.LINE_AA, 4)
    bone = cv2.GaussianBlur(plate, (0, 0), 2.0 / step).astype(np.float32) * np.float32(20 * MARROW / 255)
    return bone + cv2.GaussianBlur(rim, (0, 0), 0.9 / step).astype(np.float32) * np.float32(11 * CORTEX / 255)


def _rounded(polygon: np.ndarray) -> np.ndarray:
    """Chaikin's corner cutting, twice."""
    for _ in range(2):
        after = np.roll(polygon, -1, axis=0)
        polygon = np.stack([0.75 * polygon + 0.25 * after, 0.25 * polygon + 0.75 * after], axis=1).reshape(
            -1, 2
        )
    return polygon
