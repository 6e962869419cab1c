"""A record to a row of a shard: checked, quantised, encoded."""

import hashlib
import math
from numbers import Real
from typing import get_args

import numpy as np

from dexcore.checks import check_kind
from dexcore.data.modality import Modality
from dexcore.data.normalize import NORMALIZATIONS
from dexcore.data.record import ImageRecord, Split
from dexcore.data.store.codec import encode, quantize
from dexcore.data.store.manifest import Row
from dexcore.data.store.phash import perceptual_hash


def encode_row(record: ImageRecord, max_side: int) -> Row:
    """Check and encode one record, as `dexcore.data.store.write_store` says.

    Args:
        record: the image and what is known about it.
        max_side: the largest shorter side, pixels; what is larger is scaled down, and ``spacing`` with it.

    Returns:
        The row: ``image`` (bytes and path) and the columns of `dexcore.data.store.manifest`.

    Raises:
        TypeError: it is no `ImageRecord`, or ``max_side`` no whole number.
        ValueError: the record is not as `ImageRecord` says; the message names its path. Or ``max_side`` is below 1.
    """
    check_kind("records", record, ImageRecord, "images with what is known about them (ImageRecord)")
    problem = _problem(record)
    if problem is not None:
        raise ValueError(f"record {record.path!r}: {problem}")
    bit_depth = 8 if record.normalization == "div255" or record.image.ndim == 3 else 16
    pixels = quantize(record.image, bit_depth, max_side)
    data = encode(pixels)
    height, width = pixels.shape[:2]
    spacing = record.spacing
    if spacing is not None:
        before = record.image.shape[0] * record.image.shape[1]
        spacing = float(spacing) * math.sqrt(before / (height * width))
    return {
        "image": {"bytes": data, "path": record.path},
        "modality": Modality(record.modality).value,
        "source": record.source,
        "anatomy": record.anatomy,
        "normalization": record.normalization,
        "group": record.group,
        "synthetic": record.synthetic,
        "split": record.split,
        "height": height,
        "width": width,
        "bit_depth": bit_depth,
        "sha256": hashlib.sha256(data).digest(),
        "spacing": spacing,
        "burned_in": record.burned_in,
        "phash": perceptual_hash(pixels),
    }


def _problem(record: ImageRecord) -> str | None:
    """What is wrong with a record, if anything is."""
    image = record.image
    problem = _text_problem(record)
    if problem is not None:
        return problem
    if not isinstance(image, np.ndarray):
        return f"image is a {type(image).__name__}, expected a numpy array"
    if image.dtype != np.float32 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        return f"image is {image.dtype} {list(image.shape)}, expected float32 [H, W] or [H, W, 3]"
    if image.size == 0 or not (image.min() >= 0.0 and image.max() <= 1.0):  # NaN fails both
        return "image is empty, not finite or outside [0, 1]"
    if record.modality not in list(Modality):
        return f"modality is {record.modality!r}, expected one of {', '.join(Modality)}"
    if not isinstance(record.synthetic, bool):
        return f"synthetic is {record.synthetic!r}, expected True or False"
    if record.split not in get_args(Split):
        return f"split is {record.split!r}, expected one of {', '.join(get_args(Split))}"
    if record.burned_in not in (True, False, None):
        return f"burned_in is {record.burned_in!r}, expected True, False or None"
    spacing = record.spacing
    if spacing is not None and not (isinstance(spacing, Real) and 0 < spacing < math.inf):
        return f"spacing is {spacing!r}, expected mm between pixels, or None"
    return None


def _text_problem(record: ImageRecord) -> str | None:
    """What is wrong with a record's texts: a file's name that is not UTF-8, for example."""
    for name in ("path", "source", "anatomy", "normalization", "group"):
        text = getattr(record, name)
        if not isinstance(text, str):
            return f"{name} is {text!r}, expected a text"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"{name} is {text!r}, which UTF-8 cannot hold"
    if record.normalization not in NORMALIZATIONS:
        return f"normalization is {record.normalization!r}, expected one of {', '.join(NORMALIZATIONS)}"
    return None
