"""Folders as users have them, small: a DICOM series, pictures with masks and sidecars, a volume, and what is none."""

from pathlib import Path

import nibabel
import numpy as np
from made_files import write_dicom
from PIL import Image


def noise(shape: tuple[int, ...], seed: int, high: int = 255) -> np.ndarray:
    """Uniform noise from 0 to ``high``: no two images of it are alike, none is dropped."""
    kind = np.uint8 if high < 256 else np.uint16
    return np.random.default_rng(seed).integers(0, high + 1, shape).astype(kind)


def write_picture(path: Path, shape: tuple[int, ...] = (70, 80), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(shape, seed)).save(path)
    return path


def write_mask(path: Path, shape: tuple[int, int] = (70, 80), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((noise(shape, seed) > 127) * 255).astype(np.uint8)).save(path)
    return path


def write_series(folder: Path, slices: int = 4, patient: str = "P1", seed: int = 0, **attributes: object) -> list[Path]:
    """CT slices of one series, 2 mm apart, in files whose names go the other way than their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(slices):
        pixels = noise((72, 68), 1000 * seed + index, 2000)
        path = folder / f"{slices - index:03d}.dcm"
        written = {
            "Modality": "CT",
            "PatientID": patient,
            "StudyInstanceUID": f"1.2.{seed + 1}",
            "SeriesInstanceUID": f"1.2.{seed + 1}.1",
            "SOPInstanceUID": f"1.2.{seed + 1}.1.{index + 1}",
            "FrameOfReferenceUID": f"1.2.{seed + 1}.9",
            "ImagePositionPatient": [0, 0, 2.0 * index],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1.0, 1.0],
            "RescaleSlope": 1,
            "RescaleIntercept": -1000,
            "RescaleType": "HU",
        }
        paths.append(write_dicom(path, pixels, **written | attributes))
    return paths


def write_volume(path: Path, shape: tuple[int, ...] = (66, 70, 3), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = noise(shape, seed, 1000).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0])), path)
    return path
