"""From a body and an exposure to a film: attenuation, scatter, quanta, film response, borders, marker."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float, UInt8, UInt16

from shards_tool.letterbox import contour_mask
from shards_tool.phantom.anatomy import Across, Body, Chest, Down, Field
from shards_tool.phantom.findings import CARDIOMEGALY, Finding
from shards_tool.phantom.skeleton import draw_ribs, draw_shoulders, draw_spine
from shards_tool.phantom.tissue import Tissue, draw_tissue, noise_field
from shards_tool.phantom.vessels import draw_bronchi, draw_hila, draw_vessels

WATER = 0.0175
"""Attenuation per mm of tissue at about 65 keV effective (NIST XCOM 0.020, less beam hardening)."""
WHITE = 4095


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How one film was taken."""

    view: str
    """"PA" or "AP"."""
    height: int
    width: int
    """Pixels at scale 1."""
    pixel_mm: float
    centre_mm: tuple[float, float]
    """Point of the body's frame (x, y) in the film's middle."""
    rotation_deg: float
    inspiration: float
    turn_mm: float
    quanta: float
    """X-ray quanta per square millimetre behind air."""
    scatter: float
    """Scattered over primary radiation behind the mean body."""
    latitude: float
    """Attenuation that takes the film from 12 to 88 per cent of its range."""
    harmonise: float
    """0 to 1: how much of the coarse contrast the image processor takes away."""
    sharpen: float
    """Gain of the edge enhancement."""
    border: str
    """"none", "black" (shutter) or "white" (unexposed rim)."""
    border_mm: tuple[float, float, float, float]
    """Top, right, bottom, left."""
    border_deg: float
    marker: str
    """"R", "L" or "": the letter at that side of the patient."""
    marker_place: tuple[float, float]
    """0 to 1 of the allowed strip."""
    noise_seed: int


@dataclass(frozen=True, kw_only=True)
class FilmSpec:
    body: Body
    pose: Pose
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class DrawnFinding:
    finding: Finding
    box: tuple[int, int, int, int]
    """Left, top, right, bottom (exclusive) in pixels of this film."""


@dataclass(frozen=True, kw_only=True)
class Film:
    pixels: UInt16[np.ndarray, "H W"]
    """12 bits, bright where the body is dense (MONOCHROME2)."""
    lung: UInt8[np.ndarray, "H W"]
    """255 in the two lung fields as a reader outlines them, else 0."""
    chest: UInt8[np.ndarray, "H W"]
    """255 in the convex hull of both lung fields, else 0."""
    exposed: UInt8[np.ndarray, "H W"]
    """255 inside the collimated field, else 0."""
    findings: tuple[DrawnFinding, ...]
    cardiothoracic_ratio: float

    def label_mask(self) -> UInt8[np.ndarray, "H W"]:
        """0 outside, 128 chest, 255 lung."""
        return contour_mask(self.lung, self.chest)


def chest_of(spec: FilmSpec) -> Chest:
    """The body in the film's pose, its heart as large as the findings say."""
    # In AP the heart lies far from the detector and is magnified.
    base = Chest(
        body=spec.body,
        inspiration=spec.pose.inspiration,
        turn_mm=spec.pose.turn_mm,
        heart_scale=1.08 if spec.pose.view == "AP" else 1.0,
    )
    wanted = [f.size for f in spec.findings if f.name == CARDIOMEGALY]
    if not wanted:
        # Without the finding a heart stays below the limit of 0.50 for PA films.
        scale = min(base.heart_scale, base.heart_scale * 0.495 / base.cardiothoracic_ratio())
        return replace(base, heart_scale=scale)
    chest = base
    for _ in range(6):
        chest = replace(chest, heart_scale=chest.heart_scale * wanted[0] / chest.cardiothoracic_ratio())
    return chest


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """OpenCV's filters round differently where its threads divide a picture."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@_one_opencv_thread()
def render_film(spec: FilmSpec, *, scale: float = 1.0) -> Film:
    """Renders `spec` with `scale` times its pixels per side; the same body, coarser or finer.

    Anatomy, findings and borders agree between scales; the quantum noise is another draw of the same
    strength per area.

    Raises:
        ValueError: `scale` is out of range or leaves fewer than 32 pixels to a side.
    """
    if not 0.05 <= scale <= 2:
        raise ValueError(f"render_film: scale is {scale}, wanted 0.05 to 2")
    pose = spec.pose
    height, width = round(pose.height * scale), round(pose.width * scale)
    if min(height, width) < 32:
        raise ValueError(f"render_film: the film has {height} x {width} pixels, wanted at least 32 x 32")
    pixel = pose.pixel_mm / scale
    chest = chest_of(spec)

    # The body is drawn upright on a canvas a little larger than the film, then turned onto it.
    margin = 8 + 0.5 * max(pose.height, pose.width) * pose.pixel_mm * abs(
        np.sin(np.deg2rad(pose.rotation_deg))
    )
    left = pose.centre_mm[0] - pose.width * pose.pixel_mm / 2 - margin
    top = pose.centre_mm[1] - pose.height * pose.pixel_mm / 2 - margin
    columns = 2 * int(np.ceil((width + 2 * margin / pixel) / 2))
    rows = 2 * int(np.ceil((height + 2 * margin / pixel) / 2))
    x = (left + (np.arange(columns) + 0.5) * pixel).astype(np.float32)
    y = (top + (np.arange(rows) + 0.5) * pixel).astype(np.float32)
    # Soft tissue has no edge sharper than half a millimetre, so half the pixels do.
    half_x, half_y = x.reshape(-1, 2).mean(axis=1), y.reshape(-1, 2).mean(axis=1)
    tissue = draw_tissue(chest, spec.findings, half_x, half_y)
    attenuation = _attenuation(spec, chest, tissue, x, y, half_x, half_y)

    to_canvas = _film_to_canvas(pose, pixel, (height, width), (left, top))
    to_half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]]) @ np.vstack([to_canvas, [0, 0, 1]])
    attenuation = _warp(attenuation, to_canvas, height, width)
    exposed = _exposed(pose, height, width, scale)
    pixels = _expose(attenuation, pose, pixel, exposed, scale)

    field = cv2.GaussianBlur(_warp(tissue.lung, to_half, height, width), (0, 0), 1.0 / pixel)
    lung = _two_largest((field > 0.5).astype(np.uint8) * np.uint8(255))
    drawn = []
    for finding, shown in zip(spec.findings, tissue.findings, strict=True):
        box = _box(_warp(shown, to_half, height, width), exposed)
        if box is not None:
            drawn.append(DrawnFinding(finding=finding, box=box))
    return Film(
        pixels=pixels,
        lung=lung,
        chest=_hull(lung),
        exposed=exposed,
        findings=tuple(drawn),
        cardiothoracic_ratio=chest.cardiothoracic_ratio(),
    )


def _attenuation(
    spec: FilmSpec,
    chest: Chest,
    tissue: Tissue,
    x: Across,
    y: Down,
    half_x: np.ndarray,
    half_y: np.ndarray,
) -> Field:
    """Line integrals over the axes `x` and `y`; what is smooth is drawn over the half axes."""
    size = (len(x), len(y))
    pa = spec.pose.view == "PA"
    wobble = noise_field((spec.body.texture_seed, 8), half_x, half_y, 16.0)
    coarse = draw_spine(chest, half_x, half_y) + draw_shoulders(
        chest, half_x, half_y, scapula_mm=18.0 if pa else -14.0, lift_mm=0.0 if pa else 12.0
    )
    coarse += np.float32(WATER) * (tissue.water_mm + 2 * tissue.vessels * draw_hila(chest, half_x, half_y))
    total = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    total += draw_ribs(chest, x, y, cv2.resize(wobble, size, interpolation=cv2.INTER_LINEAR))
    blood = draw_vessels(chest, x, y) * cv2.resize(tissue.vessels, size, interpolation=cv2.INTER_LINEAR)
    total += np.float32(2.1 * WATER) * blood
    if tissue.bronchi.any():
        air = draw_bronchi(chest, x, y) * cv2.resize(tissue.bronchi, size, interpolation=cv2.INTER_LINEAR)
        total -= np.float32(0.8 * WATER) * air
    return total


def _film_to_canvas(
    pose: Pose, pixel: float, shape: tuple[int, int], corner_mm: tuple[float, float]
) -> Float[np.ndarray, "2 3"]:
    """Affine map from film pixels to canvas pixels."""
    angle = np.deg2rad(pose.rotation_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    film_centre = np.array([shape[1], shape[0]]) / 2 - 0.5
    canvas_centre = (np.array(pose.centre_mm) - np.array(corner_mm)) / pixel - 0.5
    return np.column_stack([turn, canvas_centre - turn @ film_centre])


def _warp(field: np.ndarray, to_canvas: np.ndarray, height: int, width: int) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(field, to_canvas, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _exposed(pose: Pose, height: int, width: int, scale: float) -> UInt8[np.ndarray, "H W"]:
    out = np.zeros((height, width), np.uint8)
    if pose.border == "none":
        out[:] = 255
        return out
    top, right, bottom, left = (b / pose.pixel_mm * scale for b in pose.border_mm)
    corners = np.array(
        [(left, top), (width - right, top), (width - right, height - bottom), (left, height - bottom)]
    )
    angle = np.deg2rad(pose.border_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = corners.mean(axis=0)
    cv2.fillPoly(out, [np.rint(((corners - centre) @ turn.T + centre) * 16).astype(np.int32)], 255, shift=4)
    return out


def _expose(
    attenuation: Float[np.ndarray, "H W"],
    pose: Pose,
    pixel: float,
    exposed: UInt8[np.ndarray, "H W"],
    scale: float,
) -> UInt16[np.ndarray, "H W"]:
    height, width = attenuation.shape
    primary = np.exp(-attenuation)
    # Scatter is a broad blur of what passes; a sixteenth of the pixels is plenty for it.
    small = cv2.resize(primary, (max(width // 16, 8), max(height // 16, 8)), interpolation=cv2.INTER_AREA)
    broad = cv2.GaussianBlur(
        np.minimum(small, 0.35), (0, 0), 45 / (16 * pixel), borderType=cv2.BORDER_REPLICATE
    )
    dose = primary + np.float32(pose.scatter) * cv2.resize(
        broad, (width, height), interpolation=cv2.INTER_LINEAR
    )
    rng = np.random.default_rng(pose.noise_seed)
    noise = rng.standard_normal(dose.shape, dtype=np.float32)
    noise *= np.sqrt(dose * np.float32(1 / (pose.quanta * pixel * pixel)))
    # The detector's own blur correlates the noise of neighbours.
    dose += cv2.GaussianBlur(noise, (0, 0), 0.09 / pixel) if pixel < 0.4 else noise
    density = -np.log(np.maximum(dose, 1e-4))

    small = cv2.resize(density, (max(width // 16, 8), max(height // 16, 8)), interpolation=cv2.INTER_AREA)
    inside = cv2.resize(exposed, small.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    body = small[inside & (small > 0.6)]
    low, high = np.percentile(body if body.size else small, (6, 94))
    middle = 0.5 * (low + high)
    coarse = cv2.GaussianBlur(small, (0, 0), 36 / (16 * pixel), borderType=cv2.BORDER_REPLICATE)
    coarse = np.clip(coarse, low, high) - middle
    density -= np.float32(pose.harmonise) * cv2.resize(
        coarse, (width, height), interpolation=cv2.INTER_LINEAR
    )
    # Edge enhancement over a millimetre or two, as every digital system applies it.
    fine = cv2.resize(density, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    fine = cv2.GaussianBlur(fine, (0, 0), max(1.6 / (4 * pixel), 0.3))
    fine = density - cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)
    density += np.float32(pose.sharpen) * fine
    # A film's S-shaped response: contrast in the middle, a toe and a shoulder instead of clipping.
    grey = 1 / (1 + np.exp((np.float32(middle) - density) * np.float32(4 / pose.latitude)))
    pixels = np.float32(0.03 * WHITE) + np.float32(0.94 * WHITE) * grey
    _mark(pixels, pose, scale)
    if pose.border == "black":
        pixels[exposed == 0] = 0
    elif pose.border == "white":
        pixels[exposed == 0] = 0.985 * WHITE
    return np.clip(np.rint(pixels), 0, WHITE).astype(np.uint16)


def _mark(pixels: np.ndarray, pose: Pose, scale: float) -> None:
    """The lead letter beside the patient, at the height of the shoulder or below."""
    if not pose.marker:
        return
    height, width = pixels.shape
    letter_mm = 14
    size = letter_mm / pose.pixel_mm * scale
    face, thick = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(size / 8))
    (w, h), _ = cv2.getTextSize(pose.marker, face, size / 22, thick)
    margin = (max(pose.border_mm) + 6) / pose.pixel_mm * scale
    depth = margin + pose.marker_place[0] * 0.03 * width
    # The patient's right is at the film's left.
    at_x = depth if pose.marker == "R" else width - depth - w
    at_y = margin + h + pose.marker_place[1] * 0.16 * height
    letter = np.zeros(pixels.shape, np.uint8)
    cv2.putText(letter, pose.marker, (round(at_x), round(at_y)), face, size / 22, 255, thick, cv2.LINE_AA)
    share = letter.astype(np.float32) * np.float32(0.95 / 255)
    pixels += share * (np.float32(0.97 * WHITE) - pixels)


def _two_largest(mask: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """The two lungs; specks at the angles of heart and diaphragm are dropped."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = np.zeros_like(mask)
    cv2.drawContours(out, sorted(outlines, key=cv2.contourArea)[-2:], -1, 255, cv2.FILLED)
    return out


def _hull(mask: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    out = np.zeros_like(mask)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if outlines:
        cv2.fillConvexPoly(out, cv2.convexHull(np.concatenate(outlines)), 255)
    return out


def _box(shown: np.ndarray, exposed: np.ndarray) -> tuple[int, int, int, int] | None:
    inside = (shown > 0.35) & (exposed > 0)
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
