"""The ten modalities of Medical Vision Universe and its 44 sources."""

import csv
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources


class Modality(StrEnum):
    """The ten modalities, by the names of mvu_sources.csv."""

    CT = "CT"
    PET = "PET"
    MR = "MR"
    XRAY = "X-ray"
    ULTRASOUND = "Ultrasound"
    FUNDUS = "Fundus"
    OCT = "OCT"
    PATHOLOGY = "Pathology"
    ENDOSCOPY = "Endoscopy"
    PHOTO = "Photo"


@dataclass(frozen=True)
class Source:
    """One public data source of MVU (a row of mvu_sources.csv)."""

    name: str
    modality: Modality
    anatomy: str
    images: int
    normalization: str
    kind: str


def _read_sources() -> tuple[Source, ...]:
    text = resources.files("dexcore.data").joinpath("mvu_sources.csv").read_text(encoding="utf-8")
    return tuple(
        Source(
            name=row["name"],
            modality=Modality(row["modality"]),
            anatomy=row["anatomy"],
            images=int(row["images"]),
            normalization=row["normalization"],
            kind=row["kind"],
        )
        for row in csv.DictReader(text.splitlines())
    )


SOURCES: tuple[Source, ...] = _read_sources()
