"""The body in front of the detector: sizes, and the curves that bound its organs.

Frame: millimetres at the detector. `x` runs to the right of the film, which is the patient's left, from
the midline; `y` runs down from the first thoracic vertebra. A side is -1 (the patient's right) or +1
(left); curves of one side take the distance `s = side * x` from the midline. The shapes follow an adult
PA film: 23 mm from vertebra to vertebra, hila at T6, right dome at the tenth posterior rib and higher
than the left one, costophrenic angles four to five centimetres deeper.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Curve = Float[np.ndarray, " n"]
Across = Float[np.ndarray, " w"]
Down = Float[np.ndarray, " h"]
Field = Float[np.ndarray, "h w"]
SIDES = (-1, 1)


@dataclass(frozen=True, kw_only=True)
class Body:
    """One patient, as every film of that patient shows them."""

    sex: str
    """"F" or "M"."""
    age: int
    """Years at the first study."""
    depth_mm: float
    """Front to back at the level of the heart."""
    wall_mm: float
    """Muscle and fat from the lung's edge to the skin."""
    lung_half_width_mm: tuple[float, float]
    """Widest lateral extent from the midline, right and left."""
    lung_depth_mm: float
    apex_y_mm: float
    dome_y_mm: tuple[float, float]
    """Top of the right and left diaphragm dome at full inspiration."""
    dome_height_mm: float
    """From the top of a dome to the costophrenic angle."""
    heart_size: float
    """1 is a heart that takes about 0.45 of the inner chest's width."""
    heart_turn_deg: float
    """Angle of the left ventricle's long axis below the horizontal; slim people have steep hearts."""
    knob_mm: float
    """Radius of the aortic arch's knob."""
    vertebra_mm: float
    spine_bend_mm: float
    rib_droop_mm: float
    """Fall of the sixth rib from the spine to the side."""
    rib_width_mm: float
    bone_density: float
    """1 in young adults; falls with age."""
    breast_mm: float
    """Thickness of the breast; 0 in men."""
    gastric_bubble_mm: float
    """Radius; 0 where no gas is seen."""
    texture_seed: int
    """Of everything irregular: vessels, rib jitter, tissue clouds."""


def draw_body(rng: np.random.Generator) -> Body:
    sex = "F" if rng.random() < 0.48 else "M"
    age = int(np.clip(rng.normal(54, 18), 18, 93))
    size = float(np.clip(rng.normal(1.0 if sex == "M" else 0.93, 0.045), 0.82, 1.12))
    stout = float(np.clip(rng.normal(0, 1), -1.8, 2.2))
    half_width = size * (138 + 3 * stout)
    dome = size * 219 + rng.normal(0, 6) - 5 * stout
    wide = rng.normal(0, 2.5)
    return Body(
        sex=sex,
        age=age,
        depth_mm=size * (222 + 20 * stout),
        wall_mm=max(22.0, 33 + 8 * stout),
        lung_half_width_mm=(half_width + wide, half_width - wide),
        lung_depth_mm=size * (163 + 6 * stout),
        apex_y_mm=size * -2 + rng.normal(0, 4),
        dome_y_mm=(dome, dome + rng.normal(11, 4)),
        dome_height_mm=size * float(np.clip(rng.normal(46, 6), 30, 60)),
        heart_size=size
        * float(np.clip(rng.normal(0.96 + 0.02 * stout + (age - 50) * 0.001, 0.045), 0.84, 1.04)),
        heart_turn_deg=float(np.clip(rng.normal(40 - 6 * stout, 5), 22, 56)),
        knob_mm=float(np.clip(rng.normal(15 + (age - 50) * 0.08, 1.5), 11, 22)),
        vertebra_mm=size * 23.5,
        spine_bend_mm=float(rng.normal(0, 3.5)),
        rib_droop_mm=size * float(np.clip(rng.normal(46, 6), 32, 60)),
        rib_width_mm=size * rng.uniform(10.5, 13.0),
        bone_density=float(np.clip(1.1 - (age - 40) * 0.006 + rng.normal(0, 0.08), 0.65, 1.25)),
        breast_mm=float(np.clip(rng.normal(30 + 7 * stout, 8), 12, 52)) if sex == "F" else 0.0,
        gastric_bubble_mm=float(rng.uniform(14, 30)) if rng.random() < 0.7 else 0.0,
        texture_seed=int(rng.integers(2**32)),
    )


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """An organ of which the beam sees an ellipse; all in mm, `tilt_deg` clockwise on the film."""

    x: float
    y: float
    rx: float
    ry: float
    tilt_deg: float = 0.0
    depth: float
    """Full thickness along the beam at the centre."""

    def radius2(self, x: Across, y: Down) -> Field:
        """Squared distance from the centre in units of the radii: 1 on the silhouette."""
        c, s = np.cos(np.deg2rad(self.tilt_deg)), np.sin(np.deg2rad(self.tilt_deg))
        dx, dy = (x - self.x)[None, :], (y - self.y)[:, None]
        u = np.float32(c / self.rx) * dx + np.float32(s / self.rx) * dy
        v = np.float32(c / self.ry) * dy - np.float32(s / self.ry) * dx
        return u * u + v * v

    def thickness(self, x: Across, y: Down) -> Field:
        """Millimetres along the beam."""
        return np.float32(self.depth) * np.sqrt(np.maximum(1 - self.radius2(x, y), 0))

    def half_width(self) -> float:
        a = np.deg2rad(self.tilt_deg)
        return float(np.hypot(self.rx * np.cos(a), self.ry * np.sin(a)))


@dataclass(frozen=True, kw_only=True)
class Chest:
    """A body at the moment of one exposure."""

    body: Body
    inspiration: float
    """0 is full; 1 lifts the diaphragm by one and a half rib spaces."""
    turn_mm: float
    """Shift of what lies in front of the spine when the patient is turned; positive to the film's right."""
    heart_scale: float
    """Enlargement of the heart by disease and by the beam's direction (AP)."""

    def lateral(self, y: Curve, side: int) -> Curve:
        """Distance of the lung's outer edge from the midline at heights `y`; the apex's centre above it."""
        width = self.body.lung_half_width_mm[side > 0]
        u = np.clip((y - self.body.apex_y_mm) / (1.18 * self.body.dome_y_mm[0]), 0, 1)
        return 38 + (width - 38) * (1 - (1 - u) ** 2.8) ** 0.56

    def medial(self, y: Curve, side: int) -> Curve:
        """Distance of the lung's inner edge from the midline at heights `y`."""
        u = np.clip((y - self.body.apex_y_mm) / 60, 0, 1)
        mediastinum = (15.0 if side < 0 else 17.0) + side * self.turn_mm
        # Great vessels at the thoracic inlet, and the lower lobe's edge beside the spine.
        inlet = 9.0 * np.exp(-(((y - 1.6 * self.body.vertebra_mm) / (1.4 * self.body.vertebra_mm)) ** 2))
        return 38 - (38 - mediastinum) * np.sqrt(1 - (1 - u) ** 2) + inlet

    def dome(self, s: Curve, side: int) -> Curve:
        """Height `y` of the diaphragm at distance `s` from the midline: the lung lies above (smaller y)."""
        body = self.body
        top = body.dome_y_mm[side > 0] - 36 * self.inspiration
        width = body.lung_half_width_mm[side > 0]
        centre = 0.50 * width
        outer = np.clip((s - centre) / (width - centre), 0, 1.2)
        inner = np.clip((centre - s) / centre, 0, 1)
        return top + body.dome_height_mm * outer**2.4 + (14 if side < 0 else 8) * inner**2

    def heart(self) -> tuple[Ellipsoid, ...]:
        """Right atrium and left ventricle."""
        k, dx, base = self.body.heart_size * self.heart_scale, self.turn_mm, self.dome(np.array([40.0]), 1)[0]
        tilt = self.body.heart_turn_deg - 16 * (self.heart_scale - 1)
        atrium = Ellipsoid(x=dx - 6 * k, y=base - 44, rx=37 * k, ry=51 * k**0.5, tilt_deg=-6.0, depth=72.0)
        ventricle = Ellipsoid(x=dx + 25 * k, y=base - 36, rx=73 * k, ry=47 * k, tilt_deg=tilt, depth=96.0)
        return atrium, ventricle

    def vessels_of_the_mediastinum(self) -> tuple[Ellipsoid, ...]:
        """Aortic arch, ascending aorta and superior vena cava, pulmonary trunk, left atrium's ear."""
        body, dx = self.body, self.turn_mm
        v = body.vertebra_mm
        return (
            Ellipsoid(x=dx + 20, y=3.7 * v, rx=body.knob_mm, ry=body.knob_mm * 1.05, depth=80.0),
            Ellipsoid(x=dx + 4, y=2.9 * v, rx=23.0, ry=3.1 * v, depth=75.0),
            Ellipsoid(x=dx - 11, y=4.3 * v, rx=23.0, ry=3.4 * v, tilt_deg=3.0, depth=80.0),
            Ellipsoid(x=dx + 22, y=5.3 * v, rx=24.0, ry=28.0, tilt_deg=20.0, depth=62.0),
            Ellipsoid(x=dx + 25, y=6.5 * v, rx=31.0, ry=38.0, tilt_deg=-30.0, depth=70.0),
        )

    def cardiothoracic_ratio(self) -> float:
        """Widest heart, right plus left of the midline, over the widest inner chest."""
        atrium, ventricle = self.heart()
        right = max(atrium.half_width() - atrium.x, ventricle.half_width() - ventricle.x)
        left = max(atrium.half_width() + atrium.x, ventricle.half_width() + ventricle.x)
        return (right + left) / sum(self.body.lung_half_width_mm)

    def hilum(self, side: int) -> tuple[float, float]:
        """`s` and `y` of the point where the vessels enter the lung; the left one lies higher."""
        return 43 + side * self.turn_mm, (5.35 if side < 0 else 4.95) * self.body.vertebra_mm
