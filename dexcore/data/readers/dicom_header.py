"""What a DICOM file says about itself, read without its pixels."""

import os
from dataclasses import dataclass
from typing import BinaryIO

from dexcore.data.readers.dicom_file import DicomFile, naming, open_dicom
from dexcore.data.readers.dicom_geometry import Place, Vector, frame_place, pixel_spacing
from dexcore.data.readers.dicom_groups import Groups
from dexcore.data.readers.dicom_values import code, raw_value, text, whole

# SOP classes that hold pixels and are no pictures of a patient: segmentations, dose and other parametric overlays.
_NO_IMAGE = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose Storage
)
_NO_IMAGE_MODALITIES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "PR", "KO", "SR", "REG", "FID", "PLAN"}


@dataclass(frozen=True)
class Header:
    """What a DICOM file says about itself; what is missing or damaged is None.

    Attributes:
        modality: DICOM's code ("CT", "MR", "PT", ...).
        patient: the patient's identifier.
        study, series, instance: unique identifiers.
        frame_of_reference: unique identifier of the space in which positions are given.
        number: the instance's number in its series.
        position: mm, [3]; of a file of several frames, the first's.
        orientation: direction cosines along a row, then along a column, [6].
        frame_places: of a file of several frames, where each lies; empty where the file does not say it of all.
        rows, columns: the image's size.
        frames: how many the header claims, 1 where it does not say.
        spacing: (between rows, between columns), as `Scan.spacing`.
        units: the file's own word for what its values measure ("BQML", "HU", ...).
        image_type: its words, as ("ORIGINAL", "PRIMARY", "AXIAL").
        is_image: has pixels and is no segmentation, dose, structure set, presentation state or report.
        burned_in: whether text is burned into the pixels.
        body_part: DICOM's word ("CHEST").
    """

    modality: str | None
    patient: str | None
    study: str | None
    series: str | None
    instance: str | None
    frame_of_reference: str | None
    number: int | None
    position: Vector | None
    orientation: Vector | None
    frame_places: tuple[Place, ...]
    rows: int | None
    columns: int | None
    frames: int
    spacing: tuple[float, float] | None
    units: str | None
    image_type: tuple[str, ...]
    is_image: bool
    burned_in: bool | None
    body_part: str | None


def read_header(path: str | os.PathLike[str] | BinaryIO) -> Header:
    """Read a DICOM file up to its pixels (an open file in the place of a path stays open).

    Raises:
        UnreadableFileError: the file is missing or no DICOM; damaged elements are None instead.
    """
    with naming(path), open_dicom(path) as file:
        return header_of(file)


def header_of(file: DicomFile) -> Header:
    """What an open file says about itself."""
    dataset, groups = file.dataset, Groups(file.dataset)
    place, modality = frame_place(groups), code(dataset, "Modality")
    image_type = raw_value(dataset, "ImageType")
    words = [image_type] if isinstance(image_type, str) else list(image_type or ())
    no_image = text(dataset, "SOPClassUID") in _NO_IMAGE or modality in _NO_IMAGE_MODALITIES
    frames = max(1, whole(dataset, "NumberOfFrames") or 1)
    burned_in = code(dataset, "BurnedInAnnotation")
    return Header(
        modality=modality,
        patient=text(dataset, "PatientID"),
        study=text(dataset, "StudyInstanceUID"),
        series=text(dataset, "SeriesInstanceUID"),
        instance=text(dataset, "SOPInstanceUID"),
        frame_of_reference=text(dataset, "FrameOfReferenceUID"),
        number=whole(dataset, "InstanceNumber"),
        position=place.position if place else None,
        orientation=place.orientation if place else None,
        frame_places=_frame_places(groups, frames) if frames > 1 else (),
        rows=whole(dataset, "Rows"),
        columns=whole(dataset, "Columns"),
        frames=frames,
        spacing=pixel_spacing(groups),
        units=code(dataset, "Units") or code(dataset, "RescaleType"),
        image_type=tuple(str(word).upper() for word in words),
        is_image=file.keyword is not None and not no_image,
        burned_in={"YES": True, "NO": False}.get(burned_in or ""),
        body_part=text(dataset, "BodyPartExamined"),
    )


def _frame_places(groups: Groups, frames: int) -> tuple[Place, ...]:
    if not groups.per_frame or len(groups.per_frame) != frames:
        return ()
    places = [frame_place(groups, index) for index in range(frames)]
    return tuple(place for place in places if place) if all(places) else ()
