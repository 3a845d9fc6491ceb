"""Who comes to the department and how each film is taken: a pure function of (seed, patient number)."""

import datetime
from dataclasses import dataclass, replace

import numpy as np

from shards_tool.phantom.anatomy import Body, draw_body
from shards_tool.phantom.findings import LABELS, NO_FINDING, Finding, draw_findings, next_findings
from shards_tool.phantom.render import FilmSpec, Pose

# Invented people. What matters is that they look like identities to a search for leaked ones.
_FAMILY = (
    ("Phantomson", ""),
    ("Testerly", ""),
    ("Mockridge", ""),
    ("Specimenova", ""),
    ("Dummyfield", ""),
    ("Placeholdt", ""),
    ("Zhaoxiang", "赵相"),
    ("Qianmo", "钱模"),
    ("Sunni", "孙拟"),
    ("Lixu", "李虚"),
)
_GIVEN = {
    "F": (("Ada", "艾达"), ("Rosalind", "若兰"), ("Marie", "玛丽"), ("Irene", "依云"), ("Lanying", "兰影")),
    "M": (
        ("Wilhelm", "伟恒"),
        ("Godfrey", "高飞"),
        ("Allan", "安朗"),
        ("Felix", "菲力"),
        ("Guangming", "光明"),
    ),
}
_STREETS = ("Röntgen Street", "Collimator Lane", "Cassette Road", "Grid Avenue", "光影路")
HOSPITALS = ("Phantom General Hospital", "St. Simulacra Medical Center", "模拟市第一人民医院")
_DOCTORS = ("Virtua^Clara^^Dr.", "Fabrikant^Otto^^Dr.", "Nullman^Grace^^Dr.")


@dataclass(frozen=True, kw_only=True)
class Person:
    patient_id: str
    name: str
    """DICOM person name: family^given, with an ideographic group where there is one."""
    birth_date: datetime.date
    address: str
    telephone: str
    body: Body


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a study's device writes its files."""

    modality: str
    """"CR" or "DX"."""
    photometric: str
    """"MONOCHROME1" or "MONOCHROME2"."""
    slope: float
    intercept: float
    voi: str
    """"linear", "sigmoid" or "lut"."""
    transfer: str
    """"explicit", "rle" or "jpeg2000"."""


@dataclass(frozen=True, kw_only=True)
class Study:
    person: Person
    accession: str
    date: datetime.date
    time: str
    """HHMMSS."""
    hospital: str
    referrer: str
    spec: FilmSpec
    encoding: Encoding
    report_seed: int
    file: str
    """Path inside the archive, with forward slashes."""

    @property
    def age(self) -> int:
        """Whole years at the study."""
        birth = self.person.birth_date
        return self.date.year - birth.year - ((self.date.month, self.date.day) < (birth.month, birth.day))


def plan_patient(seed: int, number: int, *, side: int) -> tuple[Study, ...]:
    """All studies of one patient, in order of time; no other patient and no count enters into it."""
    rng = np.random.default_rng((seed, 1000 + number))
    body = draw_body(rng)
    site = int(np.random.default_rng((seed, 0)).integers(100, 1000))
    birth_year = 2021 - body.age
    birth = datetime.date(birth_year, 1, 1) + datetime.timedelta(days=int(rng.integers(365)))
    family, given = _FAMILY[rng.integers(len(_FAMILY))], _GIVEN[body.sex][rng.integers(5)]
    name = f"{family[0]}^{given[0]}"
    if family[1]:
        name += f"={family[1]}^{given[1]}"
    person = Person(
        patient_id=f"PHX{site}{number:06d}",
        name=name,
        birth_date=birth,
        address=f"{rng.integers(1, 400)} {_STREETS[rng.integers(len(_STREETS))]}",
        telephone=f"+00 555 {rng.integers(100, 1000)} {rng.integers(1000, 10000)}",
        body=body,
    )
    date = datetime.date(2021, 1, 1) + datetime.timedelta(days=int(rng.integers(365)))
    label = _first_label(seed, number)
    findings: tuple[Finding, ...] = ()
    studies = []
    for visit in range(int(rng.choice((1, 2, 3, 4), p=(0.45, 0.30, 0.15, 0.10)))):
        findings = draw_findings(label, rng) if visit == 0 else next_findings(findings, rng)
        accession = f"ACC{site}{number:06d}{visit + 1}"
        studies.append(
            Study(
                person=person,
                accession=accession,
                date=date,
                time=f"{rng.integers(7, 20):02d}{rng.integers(60):02d}{rng.integers(60):02d}",
                hospital=HOSPITALS[rng.integers(len(HOSPITALS))],
                referrer=_DOCTORS[rng.integers(len(_DOCTORS))],
                spec=FilmSpec(body=body, pose=draw_pose(rng, body, side=side), findings=findings),
                encoding=draw_encoding(rng),
                report_seed=int(rng.integers(2**32)),
                file=f"dicom/{person.patient_id}/{accession}/IM0001.dcm",
            )
        )
        date += datetime.timedelta(days=int(rng.integers(3, 240)))
    return tuple(studies)


def _first_label(seed: int, number: int) -> str:
    """What brings the patient in: in every eight patients three are well and each finding comes once.

    Small archives then hold every finding.
    """
    wheel = (NO_FINDING, NO_FINDING, *LABELS)
    turn, place = divmod(number, len(wheel))
    return wheel[np.random.default_rng((seed, 1, turn)).permutation(len(wheel))[place]]


def draw_pose(rng: np.random.Generator, body: Body, *, side: int) -> Pose:
    """A film whose longest side is within a tenth of `side` pixels, and which holds both lungs."""
    ap = rng.random() < 0.25
    width_mm = float(np.clip(2 * max(body.lung_half_width_mm) + rng.uniform(38, 95), 310, 430))
    height_mm = float(rng.uniform(345, 425))
    longest = rng.uniform(0.9, 1.1) * side
    pixel_mm = max(width_mm, height_mm) / longest
    border = str(rng.choice(("none", "black", "white"), p=(0.55, 0.27, 0.18)))
    top_room = 0.5 * height_mm
    return Pose(
        view="AP" if ap else "PA",
        height=8 * round(height_mm / pixel_mm / 8),
        width=8 * round(width_mm / pixel_mm / 8),
        pixel_mm=pixel_mm,
        # The apices stay at least 20 mm inside the upper edge.
        centre_mm=(float(rng.normal(0, 4)), float(min(rng.normal(134, 9), top_room - 38))),
        rotation_deg=float(np.clip(rng.normal(0, 1.2), -3, 3)),
        inspiration=float(np.clip(abs(rng.normal(0.35 if ap else 0.0, 0.25)), 0, 1)),
        turn_mm=float(np.clip(rng.normal(0, 4.5 if ap else 2.5), -9, 9)),
        quanta=float(np.exp(rng.normal(np.log(1.6e5), 0.5))) * (0.5 if ap else 1),
        scatter=float(rng.uniform(0.08, 0.22)) * (1.5 if ap else 1),
        latitude=float(rng.uniform(1.9, 2.9)),
        harmonise=float(rng.uniform(0.15, 0.45)),
        sharpen=float(rng.uniform(0.1, 0.7)),
        border=border,
        border_mm=tuple(float(b) for b in rng.uniform(2, 11, 4)),  # pyright: ignore[reportArgumentType]
        border_deg=float(rng.normal(0, 0.5)),
        marker=str(rng.choice(("R", "L", ""), p=(0.5, 0.4, 0.1))),
        marker_place=(float(rng.random()), float(rng.random())),
        noise_seed=int(rng.integers(2**32)),
    )


def draw_encoding(rng: np.random.Generator) -> Encoding:
    modality = "DX" if rng.random() < 0.5 else "CR"
    encoding = Encoding(
        modality=modality,
        photometric="MONOCHROME1" if rng.random() < 0.4 else "MONOCHROME2",
        slope=1.0,
        intercept=0.0,
        voi=str(rng.choice(("linear", "sigmoid", "lut"), p=(0.65, 0.2, 0.15))),
        transfer=str(rng.choice(("explicit", "rle", "jpeg2000"), p=(0.45, 0.30, 0.25))),
    )
    # The DX module fixes slope 1 and intercept 0 (DICOM PS3.3 C.8.11.3); computed radiography may rescale.
    if modality == "CR" and encoding.voi != "lut" and rng.random() < 0.5:
        slope, intercept = ((0.25, -128.0), (2.0, -1024.0), (1.5, 40.0))[rng.integers(3)]
        encoding = replace(encoding, slope=slope, intercept=intercept)
    return encoding
