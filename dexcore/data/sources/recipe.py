"""What is known of a source of images: `Recipe`. `dexcore.data.sources.schema` reads it from YAML."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dexcore.data.modality import Modality

HELDOUT_SHARE = 0.1  # of the groups, where nothing else is said

GroupName = Literal["patient", "study", "volume", "file"]
Units = Literal["HU", "SUV"]


class RecipeError(ValueError):
    """A source's YAML is not as `Recipe` says; the message names file, line, key and what was expected."""


@dataclass(frozen=True)
class Column:
    """Columns of a CSV file.

    Attributes:
        csv: where it is: below the source's folder, or a glob over what lies there (`walk` finds the file).
        file: names the column with the images' paths, names or stems.
        column: names the columns with the values.
    """

    csv: Path
    file: str
    column: tuple[str, ...]


@dataclass(frozen=True)
class InFile:
    """Groups that stand in an HDF5 file itself: a text an image in another array, of which ``match`` is the group."""

    array: str
    match: re.Pattern[str]


@dataclass(frozen=True)
class Drawing:
    """What `SyntheticMVU` is to draw: how many images, of which side in pixels, seed and modalities (none: all ten)."""

    images: int
    size: int = 256
    seed: int = 0
    modalities: tuple[Modality, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A source of images, as its YAML describes it.

    Attributes:
        name: of the source, in the store.
        modality: of its images; None where DICOM says it.
        anatomy: the body part, in the words of mvu_sources.csv.
        take, leave: globs over the paths below the source's folder (`globs.matcher`); nothing to take means all.
        group: what must never be torn between splits: the name of a level, a regular expression over the path (its
            groups together, else all of it), a column, or an array beside the images.
        cohort: sources of one cohort share their patients: who is held out of one is held out of all.
        split: the share of the groups that is held out, or the split of all images, or globs of the held-out ones, or a
            column with its values that mean held out.
        units: of the values of files that do not say it.
        normalization: a name of `dexcore.data.normalize`; None: by modality.
        min_side: pixels of the smallest shorter side that is kept; None: `filter.MIN_SIDE`.
        axes: 0 sagittal, 1 coronal, 2 axial; None: the plane in which the volume was acquired.
        every: of frames, one in this many is kept; None: 30 of videos, else all.
        volume: which of a 4-D file's.
        mpp: microns per pixel of the tiles of whole slides.
        array: of an HDF5 file, the one that holds the images, [images, height, width] or with 3 channels; read one by
            one.
        hash_paths: hashes stand in the store in place of paths.
        home: where the source is to be had.
        layout: how its files lie, in words; ``confirmed``: it was seen so, and not only described.
        terms: under which the images may be used.
        synthetic: no file is read: these images are drawn.
        public: one of Medical Vision Universe: groups are hashed without a key, so that splits agree everywhere.
    """

    name: str
    modality: Modality | None = None
    anatomy: str = ""
    take: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    group: GroupName | re.Pattern[str] | Column | InFile = "patient"
    cohort: str | None = None
    split: float | Literal["train", "heldout"] | tuple[str, ...] | tuple[Column, frozenset[str]] = HELDOUT_SHARE
    units: Units | None = None
    normalization: str | None = None
    min_side: int | None = None
    axes: tuple[int, ...] | None = None
    every: int | None = None
    volume: int | Literal["first", "all"] = "first"
    mpp: float = 0.5
    array: str | None = None
    hash_paths: bool = False
    home: str = ""
    layout: str = ""
    confirmed: bool = True
    terms: str = ""
    synthetic: Drawing | None = None
    public: bool = False
