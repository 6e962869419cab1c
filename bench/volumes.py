"""One made volume in every kind of file that holds volumes, written plane by plane: for bench/memory.py.

int16 [planes, rows, columns]; rows run from front to back, columns from right to left, planes from feet to head, 1 mm
apart each, so that every kind is cut to the same images.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from dexcore.extras import require

Shape = tuple[int, int, int]
_TEXTS = {"StudyInstanceUID": "1.2.1", "SeriesInstanceUID": "1.2.1.1", "FrameOfReferenceUID": "1.2.1.9"}
_ORIENTATION, _SPACING = [1, 0, 0, 0, 1, 0], [1.0, 1.0]


def planes(shape: Shape) -> Iterator[np.ndarray]:
    """The planes: a body that grows from one to the next, with noise; from -1024 to about 3000."""
    count, rows, columns = shape
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    radius = np.hypot(1.2 * y, x)
    noise = np.random.default_rng(0).normal(0, 20, (rows, columns))
    for number in range(count):
        body = radius < 0.5 + 0.4 * number / count
        texture = 1000 + 900 * np.sin(9 * x + number / 7) * np.cos(7 * y)
        yield np.where(body, texture + np.roll(noise, number, axis=1), -1024).astype("<i2")


def _write_planes(file: IO[bytes], shape: Shape) -> None:
    for plane in planes(shape):
        file.write(plane.tobytes())


def _dicom(path: Path, shape: Shape, **elements: Any) -> None:
    """A DICOM file without its pixels, which are to be added."""
    pydicom = require("pydicom", "data")
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.MRImageStorage, pydicom.uid.generate_uid()
    dataset.Modality, dataset.PatientID = "MR", "1"
    dataset.Rows, dataset.Columns = shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    for keyword, value in (_TEXTS | elements).items():
        setattr(dataset, keyword, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    size = int(np.prod(shape)) * 2
    with path.open("ab") as file:
        file.write(b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little"))


def _series(folder: Path, shape: Shape, slope: float = 1.0) -> None:
    for number, plane in enumerate(planes(shape)):
        path = folder / f"{number:04d}.dcm"
        place = {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": _ORIENTATION}
        scale = {"RescaleSlope": slope, "RescaleIntercept": 0}
        _dicom(path, (1, *shape[1:]), **place, **scale, PixelSpacing=_SPACING, InstanceNumber=number + 1)
        with path.open("ab") as file:
            file.write(plane.tobytes())


def _multi_frame(folder: Path, shape: Shape) -> None:
    dataset_of, sequence = require("pydicom", "data").Dataset, require("pydicom.sequence", "data").Sequence

    def item(**elements: Any) -> Any:
        made = dataset_of()
        for keyword, value in elements.items():
            setattr(made, keyword, value)
        return made

    def macro(keyword: str, **elements: Any) -> dict[str, Any]:
        return {keyword: sequence([item(**elements)])}

    orientation = macro("PlaneOrientationSequence", ImageOrientationPatient=_ORIENTATION)
    spacing = macro("PixelMeasuresSequence", PixelSpacing=_SPACING)
    frames = [item(**macro("PlanePositionSequence", ImagePositionPatient=[0, 0, number])) for number in range(shape[0])]
    path = folder / "frames.dcm"
    _dicom(
        path,
        shape,
        NumberOfFrames=shape[0],
        SharedFunctionalGroupsSequence=sequence([item(**orientation, **spacing)]),
        PerFrameFunctionalGroupsSequence=sequence(frames),
    )
    with path.open("ab") as file:
        _write_planes(file, shape)


def _nifti(folder: Path, shape: Shape, slope: float = 1.0, thickness: float = 1.0) -> None:
    header = require("nibabel", "data").Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape[::-1])
    header.set_sform(np.diag([-1, -1, thickness, 1]), 1)
    header.set_slope_inter(slope, 0)
    header.set_data_offset(352)
    header["magic"] = b"n+1"
    with (folder / "volume.nii").open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        _write_planes(file, shape)


def _nrrd(folder: Path, shape: Shape) -> None:
    sizes = " ".join(map(str, shape[::-1]))
    with (folder / "volume.nrrd").open("wb") as file:
        file.write(
            f"NRRD0004\ntype: int16\ndimension: 3\nsizes: {sizes}\nspace: left-posterior-superior\nencoding: raw\n"
            "endian: little\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n\n".encode()
        )
        _write_planes(file, shape)


def _metaimage(folder: Path, shape: Shape) -> None:
    sizes = " ".join(map(str, shape[::-1]))
    with (folder / "volume.mha").open("wb") as file:
        file.write(
            f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = {sizes}\n"
            "ElementSpacing = 1 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode()
        )
        _write_planes(file, shape)


def _npy(folder: Path, shape: Shape) -> None:
    with (folder / "stack.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i2", "fortran_order": False, "shape": shape})
        _write_planes(file, shape)


# By name: what writes it into a folder, and lines of the folder's dataset.yaml beside the modality.
KINDS: dict[str, tuple[Callable[[Path, Shape], None], str]] = {
    "DICOM series": (_series, ""),
    "multi-frame DICOM": (_multi_frame, ""),
    "NIfTI": (_nifti, ""),
    "NRRD": (_nrrd, ""),
    "MetaImage": (_metaimage, ""),
    ".npy": (_npy, ""),
    "DICOM series, slope 0.5": (lambda folder, shape: _series(folder, shape, 0.5), ""),
    "NIfTI, slope 0.5": (lambda folder, shape: _nifti(folder, shape, 0.5), ""),
    "NIfTI, resampled": (lambda folder, shape: _nifti(folder, shape, thickness=1.5), "axes: [sagittal]\n"),
}


def write(kind: str, folder: Path, shape: Shape) -> None:
    """Write the volume as ``kind``, one of `KINDS`, into a folder that `dexcore mvu build` takes."""
    folder.mkdir(parents=True)
    make, lines = KINDS[kind]
    make(folder, shape)
    (folder / "dataset.yaml").write_text(f"modality: MR\nmin_side: 16\n{lines}", encoding="utf-8")
