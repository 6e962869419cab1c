"""Why a file or an image is not in the store."""

import re
from dataclasses import dataclass

from dexcore.data.readers import UnreadableFileError
from dexcore.data.readers.kind import Kind
from dexcore.data.readers.scan import RefusedError
from dexcore.extras import MissingExtraError

_MOST_CHARACTERS = 300


@dataclass(frozen=True)
class Reject:
    """A file, or a place in one, and why it was kept out. The reason's first words are what it is counted by."""

    path: str
    reason: str

    @property
    def category(self) -> str:
        """The reason without its figures and details."""
        return re.split(r"[,:;(]| of \d| \d", self.reason, maxsplit=1)[0].strip()


def reason_of(error: BaseException, kind: Kind, hide_paths: bool = False) -> str:
    """An error's reason, without what may come out of a file's header or name.

    The sentences of our own readers hold none; those of the libraries may repeat what the file says.

    Args:
        error: what a reader raised.
        kind: of the file; DICOM's headers name patients.
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
            reason = " ".join(error.reason.split())[:_MOST_CHARACTERS]
            return f"unreadable: {reason}"
        error = error.__cause__ or error
    return f"unreadable: {type(error).__name__}"
