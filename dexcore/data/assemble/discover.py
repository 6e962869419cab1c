"""What the files of a source are: its images, each with its modality, group and split, and what is no image.

`inspect` looks into files (in any process); `classify` puts what it found together.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from dexcore.data.assemble.dicom_terms import anatomy_of, modality_of
from dexcore.data.assemble.examples import smallest
from dexcore.data.assemble.hand import Hand
from dexcore.data.assemble.masks import named_like_a_mask, paired_masks
from dexcore.data.assemble.reasons import Reject, reason_of, remedy
from dexcore.data.assemble.split import Grouping, UnplacedError
from dexcore.data.assemble.walk import Found, SourceFiles
from dexcore.data.modality import Modality
from dexcore.data.readers import UnreadableFileError
from dexcore.data.readers.dicom_header import Header, read_header
from dexcore.data.readers.kind import Kind, file_kind
from dexcore.data.readers.series import group_series
from dexcore.data.record import Split
from dexcore.data.sources.recipe import InFile, Recipe

# What lies beside images and says something about them; told by the name where the content is no image's.
SIDECARS = frozenset(
    [
        ".bib",
        ".bval",
        ".bvec",
        ".cfg",
        ".csv",
        ".doc",
        ".docx",
        ".fcsv",
        ".htm",
        ".html",
        ".ini",
        ".json",
        ".jsonl",
        ".log",
        ".md",
        ".pdf",
        ".py",
        ".rst",
        ".rtf",
        ".stl",
        ".tsv",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
    ]
)
_SIDECAR_NAMES = frozenset(["license", "licence", "readme", "copying", "attribution", "notice", "dicomdir"])
KIND_NAMES = {
    Kind.DICOM: "DICOM",
    Kind.NIFTI: "NIfTI",
    Kind.PNG: "PNG",
    Kind.JPEG: "JPEG",
    Kind.BMP: "BMP",
    Kind.TIFF: "TIFF",
    Kind.NUMPY: "NumPy",
    Kind.NPZ: "NumPy .npz",
    Kind.NRRD: "NRRD",
    Kind.METAIMAGE: "MetaImage",
    Kind.VIDEO: "video",
    Kind.HDF5: "HDF5",
    Kind.HEIDELBERG: "Heidelberg .vol",
    Kind.SLIDE: "slide",
    Kind.ZIP: "zip",
    Kind.TAR: "tar",
    Kind.SYNTHETIC: "synthetic",
}
ARCHIVES = (Kind.ZIP, Kind.TAR)
_PAIRED = "a mask: an image has the same name"


@dataclass(frozen=True, slots=True)  # there are millions
class Inspected:
    """What a file is: its kind (None for none of ours), its header (DICOM), or why it cannot be told."""

    kind: Kind | None = None
    header: Header | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)  # there are millions
class Item:
    """What is read at a time: a file, or the files of a volume.

    Attributes:
        files: by path; of a volume, in the order of its slices.
        kind: of the files.
        modality: of the images; None in an archive, whose files are told apart when it is read.
        group, split: as `Grouping.place` says; of an archive, of its files without a header.
        anatomy: in the words of mvu_sources.csv.
        burned_in: whether text is burned into the pixels, where DICOM says so.
        volume: the files are the slices of one volume.
        place: gives group and split of each image of the file, by what the file says of it; the item has none then.
        named_mask: its name speaks for a mask, and its values have to say.
        dropped: why it is no image; it is read for a picture in the report alone.
    """

    files: tuple[Found, ...]
    kind: Kind
    modality: Modality | None
    group: str
    split: Split
    anatomy: str = ""
    burned_in: bool | None = None
    volume: bool = False
    place: Callable[[str], tuple[str, Split]] | None = None
    named_mask: bool = False
    dropped: str = ""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass
class Classified:
    """The items of a source in order, what is kept out, and what was passed by (by the endings of its names).

    Of ``masks``, which are kept out, some are read for a picture in the report.
    """

    items: Sequence[Item] = ()
    rejects: list[Reject] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    masks: list[Item] = field(default_factory=list)


def inspect(task: tuple[str, Sequence[Found]], hand: Hand) -> list[Inspected]:
    """Look into the files below a folder: what does not open is told, never raised."""
    root, files = task
    found = []
    for index, file in enumerate(files):
        dead = hand.take(index, file.size)
        found.append(Inspected(error=dead) if dead else look_into(Path(root) / file.path))
        hand.drop()
    return found


def look_into(path: Path) -> Inspected:
    """What one file is; what does not open is told, never raised."""
    try:
        kind = file_kind(path)
        return Inspected(kind, read_header(path) if kind is Kind.DICOM else None)
    except (UnreadableFileError, OSError) as error:
        return Inspected(error=reason_of(error, Kind.DICOM))


def classify(
    source: SourceFiles, inspected: Mapping[str, Inspected], grouping: Grouping, shown: Callable[[str], str]
) -> Classified:
    """Put the files of a source together to items: DICOM series to volumes, all others alone.

    Args:
        source: its files.
        inspected: by their paths.
        grouping: of the source.
        shown: a path as it stands in the store.
    """
    result = Classified()
    images: list[Found] = []
    paired: dict[str, Item] = {}
    masks = paired_masks(source.below(file.path) for file in source.files if inspected[file.path].kind)
    for file in source.files:
        seen = inspected[file.path]
        name = file.path.rpartition("/")[2].lower()
        if seen.error is not None:
            result.rejects.append(Reject(shown(file.path), seen.error))
        elif seen.kind is None and file.size == 0:
            result.rejects.append(Reject(shown(file.path), "empty file"))
        elif _is_sidecar(name, seen):
            ending = os.path.splitext(name)[1]
            result.ignored[ending if ending in SIDECARS else name.split(".")[0]] += 1
        elif seen.kind is None or seen.kind is Kind.GZIP:
            result.rejects.append(Reject(shown(file.path), "no kind of image that is read"))
        elif seen.header is not None and not seen.header.is_image:
            result.rejects.append(Reject(shown(file.path), "no image: a DICOM structure set, segmentation or report"))
        elif source.below(file.path) in masks:
            result.rejects.append(Reject(shown(file.path), _PAIRED))
            burned_in = seen.header.burned_in if seen.header else None
            paired[shown(file.path)] = Item(
                (file,), seen.kind, source.recipe.modality, "", "train", burned_in=burned_in, dropped=_PAIRED
            )
        else:
            images.append(file)
    result.masks = [paired[path] for path in smallest(paired)]
    volumes, alone = _volumes(images, inspected)
    items: list[Item] = []
    for files, volume in [*((files, True) for files in volumes), *(([file], False) for file in alone)]:
        item = _item(source, files, inspected[files[0].path], grouping)
        if isinstance(item, Item):
            items.append(replace(item, volume=volume))
        else:
            result.rejects += [Reject(shown(file.path), item) for file in files]
    result.items = sorted(items, key=lambda item: min(os.fsencode(file.path) for file in item.files))
    result.rejects.sort(key=lambda reject: reject.path)
    return result


def _is_sidecar(name: str, seen: Inspected) -> bool:
    if seen.kind not in (None, Kind.GZIP):
        return False
    return os.path.splitext(name)[1] in SIDECARS or name.split(".")[0] in _SIDECAR_NAMES


def _volumes(images: list[Found], inspected: Mapping[str, Inspected]) -> tuple[list[list[Found]], list[Found]]:
    """DICOM series that are volumes, and all other files."""
    by_path = {file.path: file for file in images}
    headers = {path: inspected[path].header for path in by_path}
    volumes: list[list[Found]] = []
    taken: set[str] = set()
    for series in group_series({path: header for path, header in headers.items() if header is not None}):
        if series.volume:
            volumes.append([by_path[path] for path in series.paths])
            taken.update(series.paths)
    return volumes, [file for file in images if file.path not in taken]


def _item(source: SourceFiles, files: Sequence[Found], seen: Inspected, grouping: Grouping) -> Item | str:
    """An item, or the reason why its files are kept out."""
    assert seen.kind is not None
    path, header = source.below(files[0].path), seen.header
    archive = seen.kind in ARCHIVES
    modality: Modality | None = None
    if not archive:
        found = modality_for(source.recipe, seen.kind, header)
        if not isinstance(found, Modality):
            return found
        modality = found
    later = isinstance(source.recipe.group, InFile)
    group: str = ""
    split: Split = "train"
    try:
        if not later:
            group, split = grouping.place(path, header)
    except UnplacedError as error:
        return str(error)
    return Item(
        files=tuple(files),
        kind=seen.kind,
        modality=modality,
        group=group,
        split=split,
        anatomy=source.recipe.anatomy or (anatomy_of(header.body_part) if header else ""),
        burned_in=header.burned_in if header else None,
        place=partial(grouping.place, path, header) if later else None,
        named_mask=named_like_a_mask(path),
    )


def modality_for(recipe: Recipe, kind: Kind, header: Header | None) -> Modality | str:
    """The modality of a file's images: DICOM's, else the recipe's; or why there is none."""
    if header is not None:
        modality, problem = modality_of(header.modality)
        if problem:
            return problem
        if recipe.public and None not in (modality, recipe.modality) and modality != recipe.modality:
            return f"another modality than the source's: {modality}"
        if modality is not None:
            return modality
    if recipe.modality is not None:
        return recipe.modality
    return f"no modality ({KIND_NAMES[kind]})"


def advice(classified: Sequence[Classified]) -> list[str]:
    """Sentences that would help what was kept out because nothing says its modality."""
    kinds = Counter(
        reject.reason.removeprefix("no modality (").removesuffix(")")
        for one in classified
        for reject in one.rejects
        if reject.reason.startswith("no modality (")
    )
    return [
        f"{count} {kind} {'files have' if count > 1 else 'file has'} no modality: {remedy('no modality')}"
        for kind, count in sorted(kinds.items())
    ]
