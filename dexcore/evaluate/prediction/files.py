"""A file that a user asks about: its images, one after the other, and masks of a volume put back together."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.assemble.dicom_terms import modality_of
from dexcore.data.assemble.slices import acquired_axis, restacked
from dexcore.data.modality import Modality
from dexcore.data.readers import UnreadableFileError
from dexcore.data.readers.kind import Kind, file_kind
from dexcore.data.readers.nifti import like_nifti
from dexcore.data.readers.scan import unreadable
from dexcore.data.record import AXES
from dexcore.data.sources.schema import parse_modality
from dexcore.evaluate.prediction.images import plane_image
from dexcore.evaluate.tasks.pixels import PixelsError, places_in, read_plane
from dexcore.evaluate.tasks.places import located
from dexcore.models import TaskDescription


class AskedFile:
    """The images of one file, as a model of a task is shown them.

    Args:
        path: of a file, or of one image in it (``scan.nii.gz#axial=12``, ``stack.tif#3``).
        task: of the model.
        modality: of the images, where it is asked for; None: the task's, and of a task of several the file's own.
        axis: across which a volume is cut; None: as the task says, else that of its acquisition.
        spacing: mm between rows and between columns of its images, as a task's table says them; None: the file's own.

    Attributes:
        path: as given.
        file: without the place.
        modality: of the images.
        said: the modality that the file says it is of, which may be another; None where it does not say.
        images: their names, the path and the place in the file; one of a picture.
        is_volume: whether they are all slices of a volume, in order.
        volumes: how many the file holds, of which the first is read.
        doubtful: mm between rows and columns as the file says them, where the model learned from images of which a
            table said so; else None.

    Raises:
        PixelsError: the file is missing or cannot be read, or nobody says its modality, or how large its pixels are,
            where a table said it of the training's.
    """

    def __init__(
        self,
        path: str,
        task: TaskDescription,
        modality: Modality | None = None,
        axis: str | None = None,
        spacing: tuple[float, float] | None = None,
    ) -> None:
        self.path, self.task, self.spacing = path, task, spacing
        self.file, _, index = located(path)
        if self.file.is_dir():
            raise PixelsError(f"{path}: is a folder, expected files, as {self.file / '*'}")
        if index is not None:
            self.images: tuple[str, ...] = (path,)
        else:
            named = axis or task.axis
            wanted = AXES.index(named) if named else None
            self.images = tuple(f"{self.file}{place}" for place, _ in places_in(self.file, wanted))
        plane = read_plane(self.images[0])
        scan = plane.opened.scan
        self.doubtful = plane.spacing if task.table_spacing and spacing is None else None
        if task.table_spacing and spacing is None and plane.spacing is None:
            raise PixelsError(
                f"{path}: does not say how large its pixels are. The model learned from images of which a table said "
                "it (spacing_y, spacing_x), and saw their pixels as squares: say --spacing ROWS COLUMNS"
            )
        self.said, _ = modality_of(scan.metadata.get("Modality"))
        self.modality = self._modality(modality)
        self.volumes = scan.volumes
        self.is_volume = scan.layout == "volume" and index is None
        if self.is_volume:
            self._axis = acquired_axis(scan.spacing) if wanted is None else wanted

    def _modality(self, given: Modality | None) -> Modality:
        known = [Modality(name) for name in self.task.modalities]
        if given is not None or len(known) == 1:
            return given or known[0]
        if self.said in known:
            return self.said
        raise PixelsError(
            f"{self.path}: does not say which of {', '.join(known)} it is of, for which the model is: say --modality"
        )

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each image's name, and the image in [0, 1], float32 [H, W] or [H, W, 3].

        Raises:
            PixelsError: its values are not as the task's; the message names the file.
        """
        for name in self.images:
            yield name, self.image(name)

    def image(self, name: str) -> np.ndarray:
        """One of them."""
        return plane_image(read_plane(name), self.task, self.modality, self.spacing)

    @property
    def is_nifti(self) -> bool:
        """Whether its masks become a NIfTI volume."""
        return self.is_volume and file_kind(self.file) is Kind.NIFTI

    def volume(self, masks: Sequence[np.ndarray]) -> Any:
        """An image of nibabel's with the masks of all slices, unsigned integers, in the place of the file's voxels.

        Raises:
            PixelsError: the file has changed meanwhile.
        """
        try:
            with unreadable(self.file):
                return like_nifti(self.file, restacked(masks, self._axis))
        except UnreadableFileError as error:
            raise PixelsError(str(error)) from error


def asked_modality(task: TaskDescription, given: str) -> Modality:
    """The modality that a user names.

    Raises:
        ValueError: it is none of the task's.
    """
    try:
        found = parse_modality(given)
    except ValueError as error:
        raise ValueError(f"--modality {error}") from None
    if found is None or found.value not in task.modalities:
        raise ValueError(f"--modality is {given}, the model was fine-tuned on {', '.join(task.modalities)}")
    return found


def result_names(path: str) -> Iterator[str]:
    """Names for the results of a path, each other than those before: the file's own, then with more of the path."""
    file, inside, index = located(path)
    whole = file.name.removesuffix(".gz") if file.name.endswith(".nii.gz") else file.name
    stem = Path(whole).stem or whole
    place = "" if index is None else f"_{inside or ''}{index}"
    yield f"{stem}{place}"
    yield f"{file.name}{place}"
    yield "_".join([*file.parts[-3:-1], file.name]).replace(file.anchor or "\0", "") + place
    digest = hashlib.sha256(path.encode()).hexdigest()
    yield f"{stem}{place}_{digest[:8]}"
    yield f"{stem}{place}_{digest}"
