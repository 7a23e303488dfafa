"""A synthetic scan as a study of DICOM files, as NSCLC-Radiomics has them."""

import datetime
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from covid_jax.data.geometry import Volume


def write_study(folder: Path, patient: str, image: Volume) -> None:
    """Writes a CT series of the volume, and an RTSTRUCT beside it, into `folder`."""
    _write_series(folder / "0.000000-CT", patient, image)
    structure = _dicom_file(RTStructureSetStorage, patient)
    (folder / "3.000000-RTSTRUCT").mkdir(parents=True)
    structure.save_as(folder / "3.000000-RTSTRUCT" / "1-1.dcm", enforce_file_format=True)


def _write_series(folder: Path, patient: str, image: Volume) -> None:
    """The volume as axial CT slices, which DICOM describes in mm to the left, back and head."""
    folder.mkdir(parents=True)
    depth, height, width = image.spacing_mm
    series, frame = generate_uid(entropy_srcs=[patient, "series"]), generate_uid(None, [patient])
    for index, voxels in enumerate(image.voxels):
        file = _dicom_file(CTImageStorage, patient, f"slice {index}")
        file.SeriesInstanceUID = series
        file.FrameOfReferenceUID = frame
        file.Modality = "CT"
        file.InstanceNumber = index + 1
        file.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        file.ImagePositionPatient = [0.0, 0.0, float(depth * index)]
        file.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        file.PixelSpacing = [float(height), float(width)]
        file.SliceThickness = float(depth)
        file.Rows, file.Columns = voxels.shape
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.PixelRepresentation = 1
        file.RescaleSlope, file.RescaleIntercept = 1, 0
        file.PixelData = np.ascontiguousarray(voxels, np.int16).tobytes()
        file.save_as(folder / f"1-{index + 1:03d}.dcm", enforce_file_format=True)


def _dicom_file(kind: pydicom.uid.UID, patient: str, part: str = "") -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[patient, kind, part])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID = generate_uid(entropy_srcs=[patient, "study"])
    file.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, kind])
    file.PatientID, file.PatientName = patient, "SYNTHETIC"
    file.StudyDate = datetime.date(2008, 1, 1).strftime("%Y%m%d")
    file.StudyID, file.StudyTime, file.SeriesNumber = "", "", 1
    file.PatientBirthDate, file.PatientSex = "", ""
    file.AccessionNumber, file.ReferringPhysicianName, file.Manufacturer = "", "", "covid_jax"
    return file
