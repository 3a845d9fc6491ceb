"""A rendered film as the DICOM file that a hospital's archive would hold."""

import hashlib
import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from shards_tool.phantom.render import WHITE, Film
from shards_tool.phantom.study import Study

_WRITER_UID = UID("1.2.826.0.1.3680043.8.498.1")


def uid(*parts: str) -> UID:
    """A UUID-derived UID (DICOM PS3.5 B.2) that the same parts always give."""
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def encode_dicom(study: Study, film: Film) -> bytes:
    """The complete file: preamble, header, pixels (compressed where the study says so).

    Bright is dense on a MONOCHROME2 film; a MONOCHROME1 film stores the inverse.
    """
    ds = _header(study)
    stored = WHITE - film.pixels if study.encoding.photometric == "MONOCHROME1" else film.pixels
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = study.encoding.photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    _add_window(ds, study, film, stored)
    ds.PixelData = np.ascontiguousarray(stored, dtype="<u2").tobytes()
    ds["PixelData"].VR = "OW"
    # Named plugins, so that the bytes do not depend on what else is installed.
    if study.encoding.transfer == "rle":
        ds.compress(RLELossless, encoding_plugin="gdcm", generate_instance_uid=False)
    elif study.encoding.transfer == "jpeg2000":
        ds.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _header(study: Study) -> Dataset:
    person, pose, encoding = study.person, study.spec.pose, study.encoding
    sop_class = (
        DigitalXRayImageStorageForPresentation
        if encoding.modality == "DX"
        else ComputedRadiographyImageStorage
    )
    instance = uid(person.patient_id, study.accession, "instance")
    date, birth = study.date.strftime("%Y%m%d"), person.birth_date.strftime("%Y%m%d")

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = instance
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = _WRITER_UID
    ds.file_meta.ImplementationVersionName = "XPT_PHANTOM"

    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL" if encoding.modality == "CR" else "DERIVED", "PRIMARY"]
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, instance
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = date
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = study.time
    ds.AccessionNumber = study.accession
    ds.Modality = encoding.modality
    ds.Manufacturer = "Phantom Imaging"
    ds.ManufacturerModelName = f"Parametric {encoding.modality}"
    ds.InstitutionName = study.hospital
    ds.ReferringPhysicianName = study.referrer
    ds.StudyDescription, ds.SeriesDescription = "Chest radiograph", f"Chest {pose.view}"
    ds.PatientName, ds.PatientID = person.name, person.patient_id
    ds.PatientBirthDate, ds.PatientSex = birth, person.body.sex
    ds.PatientAge = f"{study.age:03d}Y"
    ds.PatientAddress, ds.PatientTelephoneNumbers = person.address, person.telephone
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", pose.view
    ds.ImagerPixelSpacing = [f"{pose.pixel_mm:.5f}"] * 2
    ds.StudyInstanceUID = uid(person.patient_id, study.accession, "study")
    ds.SeriesInstanceUID = uid(person.patient_id, study.accession, "series")
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = study.accession[-4:], "1", "1"
    ds.PatientOrientation = ["L", "F"]
    ds.BurnedInAnnotation = "NO"
    if encoding.modality == "DX":
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.PixelIntensityRelationship = "LOG"
        # -1: the larger the value, the less radiation came through (DICOM PS3.3 C.8.11.3.1.2).
        ds.PixelIntensityRelationshipSign = 1 if encoding.photometric == "MONOCHROME1" else -1
        ds.PresentationLUTShape = "INVERSE" if encoding.photometric == "MONOCHROME1" else "IDENTITY"
        ds.LossyImageCompression = "00"
    return ds


def _add_window(ds: Dataset, study: Study, film: Film, stored: np.ndarray) -> None:
    """Rescale and VOI attributes that show the exposed field's greys from dark to bright."""
    encoding = study.encoding
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = str(encoding.slope), str(encoding.intercept), "US"
    low, high = np.percentile(stored[film.exposed > 0][::7], (0.5, 99.5))
    if encoding.voi == "lut":
        # A gentle S-curve over all 4,096 stored values, as film-like presentations use.
        x = np.clip((np.arange(WHITE + 1) - low) / (high - low), 0, 1)
        lut = Dataset()
        lut.LUTDescriptor = [WHITE + 1, 0, 12]
        lut.LUTExplanation = "FILM LIKE"
        lut.LUTData = np.rint((0.7 * x + 0.3 * x * x * (3 - 2 * x)) * WHITE).astype("<u2").tobytes()
        lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "OW"
        ds.VOILUTSequence = Sequence([lut])
        return
    low, high = low * encoding.slope + encoding.intercept, high * encoding.slope + encoding.intercept
    width = high - low
    if encoding.voi == "sigmoid":
        # 1 / (1 + exp(-4 (x - c) / w)): a narrower width gives the linear window's slope in the middle.
        ds.VOILUTFunction, width = "SIGMOID", 0.8 * width
    else:
        ds.VOILUTFunction = "LINEAR"
    ds.WindowCenter, ds.WindowWidth = f"{0.5 * (low + high):.1f}", f"{width:.1f}"
