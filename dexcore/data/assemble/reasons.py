"""Why a file or an image is not in the store."""

import os
import re
from dataclasses import dataclass, field

import numpy as np

from dexcore.data.readers import UnreadableFileError
from dexcore.data.readers.kind import Kind
from dexcore.data.readers.scan import RefusedError
from dexcore.extras import MissingExtraError

_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Reject:
    """A file, or a place in one, and why it was kept out. The reason's first words are what it is counted by.

    Where its pixels were read, ``image`` holds them, [height, width] or [height, width, 3] in [0, 1], until a picture
    is made of them.
    """

    path: str
    reason: str
    image: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def category(self) -> str:
        return category(self.reason)


def category(reason: str) -> str:
    """A reason as it is counted: without its figures and details."""
    return re.split(r"[,:;(]| of \d| \d", reason, maxsplit=1)[0].strip()


def reason_of(error: BaseException, kind: Kind | None, hide_paths: bool = False) -> str:
    """An error's reason, without what may come out of a file's header or name.

    The sentences of our own readers hold none; those of the libraries may repeat what the file says.

    Args:
        error: what a reader raised.
        kind: of the file, where it is known; DICOM's headers name patients.
        hide_paths: keep also messages of the system's out, which name files.
    """
    if isinstance(error, MissingExtraError):
        return f"needs a package: {error}"
    if isinstance(error, MemoryError):
        return "more memory needed than there is"
    if isinstance(error, OSError):
        return f"cannot be opened: {error.strerror or type(error).__name__}"
    if isinstance(error, UnreadableFileError):
        own = isinstance(error.__cause__, RefusedError) or error.__cause__ is None
        if own or (kind is not Kind.DICOM and not hide_paths):
            place = os.fsdecode(error.path)  # where this machine has it, or had it for a moment
            reason = error.reason
            for written in (repr(place), f"'{place}'", place):  # libraries write it with quotes, and escapes in them
                reason = reason.replace(written, "")
            reason = " ".join(reason.split())[:_MOST_CHARACTERS]
            return f"unreadable: {reason}"
        error = error.__cause__ or error
    return f"unreadable: {type(error).__name__}"


# By the first words of a reason. What is dropped as it should be has no sentence.
_REMEDIES = {
    "no modality": "add --modality X-ray, or write dataset.yaml with `modality: X-ray`",
    "shorter side": "--min-side PX, or min_side in dataset.yaml, keeps smaller ones",
    "near-copy": "without --drop-near-copies they stay",
    "text is burned in": "without --drop-burned-in they stay",
    "changed": "build again when nobody writes into the folder",
    "unreadable": "open the file in another program; if that fails too, get it anew",
    "cannot be opened": "give yourself the right to read it, and build again",
    "the folder cannot be read": "give yourself the right to read it, and build again",
    "more memory": "build again with fewer --jobs",
    "needs a package": "install the package that rejects.jsonl names, and build again",
    "no match of the source's expression": "mend group in dataset.yaml: it must match every path",
    "no row in the source's CSV file": "add the row, or take these files out by leave in dataset.yaml",
    "the source's CSV file has rows for it that differ": "mend the CSV file",
    "an archive inside an archive": "unpack the outer one",
    "no kind of image that is read": "convert them to one of the kinds that are read, DICOM, NIfTI or PNG for example",
}


def remedy(reason: str) -> str:
    """What would help what was dropped for a reason; "" where nothing needs help."""
    return next((sentence for words, sentence in _REMEDIES.items() if reason.startswith(words)), "")
