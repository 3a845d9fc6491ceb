"""Small archives for the tests of the shard tool."""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from shards_tool.schema import QUARANTINE, SAMPLES
from shards_tool.settings import BuildSettings

SMALL = BuildSettings(side=64, shard_size=3, fractions=(0.6, 0.2, 0.2), contour="rect")


def picture(seed: int, height: int = 96, width: int = 80) -> np.ndarray:
    """A smooth uint8 picture that uses most of its range."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (6, 5)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(smooth, None, 5, 250, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]


def textured(seed: int) -> np.ndarray:
    """A uint8 picture, 400 x 320, with detail at all the scales that a film has."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((400, 320), dtype=np.float32)
    for size in (4, 8, 16, 32, 64):
        coarse = rng.normal(0, 1, (size, size)).astype(np.float32)
        layers += cv2.resize(coarse, (320, 400), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(layers, None, 5, 250, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]


def dataset_of(pixels: np.ndarray, *, seed: int = 0, **tags: Any) -> pydicom.Dataset:
    """An uncompressed single-frame CR image; `tags` replace or add attributes, None removes one."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[f"image {seed}"])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[f"study {seed}"])
    dataset.Modality = "CR"
    dataset.PatientID = f"MRN-{seed:05d}"
    dataset.PatientName = f"Doe^Jane{seed}"
    dataset.PatientSex = "F"
    dataset.PatientAge = "047Y"
    dataset.ViewPosition = "PA"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = 12 if dataset.BitsAllocated == 16 else dataset.BitsAllocated
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes()
    return dataset


def write_dicom(path: Path, pixels: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> None:
    dataset = dataset_of(pixels, **tags)
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def twelve_bit(seed: int) -> np.ndarray:
    return (picture(seed).astype(np.uint16) * 16).astype(np.uint16)


def write_archive(root: Path) -> None:
    """Eleven inputs: 7 films of 5 patients, one duplicate, two that cannot be read, one table.

    A table says that a.png and b.png are of one patient, and gives labels and reports.
    """
    root.mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "c.jpg", "d.jpg")):
        cv2.imwrite(str(root / name), picture(seed))
    for seed in range(3):
        tags: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}
        write_dicom(root / "dicom" / f"{seed}.dcm", twelve_bit(10 + seed), seed=seed // 2, **tags)
    (root / "dicom" / "again.dcm").write_bytes((root / "dicom" / "0.dcm").read_bytes())
    (root / "cut.jpg").write_bytes((root / "c.jpg").read_bytes()[:1500])
    (root / "empty.dcm").write_bytes(b"")
    (root / "table.csv").write_text(
        "file,patient,sex,age,view,labels,label:Nodule,report_en,report_zh,unknown\n"
        "a.png,PATIENT-77,F,93,PA,Edema|Effusion,1,Clear lungs.,双肺清晰。,x\n"
        "b.png,PATIENT-77,M,31,AP SUPINE,,-1,,,\n"
        "nowhere.png,PATIENT-99,M,31,,,0,,,\n",
        encoding="utf-8",
    )


INPUTS, FILMS = 11, 7


def write_key(path: Path) -> Path:
    path.write_text("0123456789abcdef" * 4)
    return path


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def records_of(data: Path) -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(data / SAMPLES).to_pylist()}


def quarantine_of(data: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in pq.read_table(data / QUARANTINE).to_pylist()}
