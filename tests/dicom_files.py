"""DICOM files built element by element with pydicom, full of what must never leave them."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)
"""Directions of a row and of a column, at right angles and along no axis of the patient."""
SECRETS = {
    "PatientName": "Quakenbush^Philomena",
    "PatientID": "QX7741900Z",
    "PatientBirthDate": "19370411",
    "InstitutionName": "Thistlewood Infirmary",
    "ReferringPhysicianName": "Umberleigh^Octavian",
    "StudyDate": "20190923",
    "StudyDescription": "Kneecap follow-up",
    "AccessionNumber": "ACC5550199",
    "StationName": "SCANNERZEBRA",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1111",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.2222",
}
SERIES = "1.2.826.0.1.3680043.8.498.3333"
NAME = "QUAKENBUSH_PHILOMENA_19370411"
"""Stem of a file as an export names it."""


def header(pixels, **elements):
    """A data set with the attributes of an image and all secrets; `elements` win, those that are None are left out."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    stated = {
        **SECRETS,
        "Modality": "MR",
        "SeriesInstanceUID": SERIES,
        "Rows": pixels.shape[-3 if colour else -2],
        "Columns": pixels.shape[-2 if colour else -1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "NumberOfFrames": len(pixels) if pixels.ndim > 2 + colour else None,
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(),
        **elements,
    }
    stated.setdefault("HighBit", stated["BitsStored"] - 1)
    for keyword, value in stated.items():
        if value is not None:
            setattr(data, keyword, value)
    data["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    return data


def write_file(path: Path, pixels, **elements) -> Path:
    """Write pixels `(rows, columns)`, `(frames, rows, columns)` or either with three samples behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header(pixels, **elements).save_as(path, enforce_file_format=True)
    return path


def place(number, direction=OBLIQUE, spacing=(0.7, 0.5), step=2.5, corner=(-30.0, 12.0, 7.5)):
    """Elements that put a slice `number` steps along the normal of the first."""
    normal = np.cross(direction[:3], direction[3:])
    return {
        "ImagePositionPatient": [round(float(value), 6) for value in np.array(corner) + number * step * normal],
        "ImageOrientationPatient": list(direction),
        "PixelSpacing": list(spacing),
        "SliceThickness": 1.0,  # thinner than the distance of the slices, as in scans with gaps
    }


def write_series(folder: Path, volume, names=None, places=None, **elements) -> Path:
    """Write a volume `(slices, rows, columns)`, file by file."""
    for number, pixels in enumerate(volume):
        name = names[number] if names else f"{NAME}_{number:03d}"
        where = places[number] if places else place(number)
        write_file(folder / f"{name}.dcm", pixels, **{"InstanceNumber": number + 1, **where, **elements})
    return folder
