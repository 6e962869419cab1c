"""Where an enhanced file says something of a frame: the frame's own group, else the shared one, else the top."""

from collections.abc import Iterator
from typing import Any

from dexcore.data.readers.dicom_values import items
from dexcore.data.readers.scan import RefusedError


class Groups:
    """The functional groups of a data set.

    Args:
        dataset: any DICOM data set; without functional groups every look-up finds its top alone.
    """

    def __init__(self, dataset: Any) -> None:
        self._top = dataset
        self._shared = items(dataset, "SharedFunctionalGroupsSequence")
        self.per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")

    def check_frames(self, frames: int) -> None:
        """Refuse groups that are not one a frame.

        Raises:
            RefusedError: with both numbers.
        """
        if self.per_frame and len(self.per_frame) != frames:
            raise RefusedError(f"PerFrameFunctionalGroupsSequence has {len(self.per_frame)} items for {frames} frames")

    def places(self, frame: int, macro: str) -> Iterator[Any]:
        """Where to look for the elements of a functional group (``macro``, a sequence's keyword), nearest first."""
        for group in [*self.per_frame[frame : frame + 1], *self._shared]:
            yield from items(group, macro)
            yield group  # some writers leave out the inner sequence
        yield self._top
        yield from items(self._top, macro)
