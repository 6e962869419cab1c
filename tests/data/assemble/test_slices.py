"""Slices are turned as radiologists look at them."""

import numpy as np
import pytest

from dexcore.data.assemble.slices import slices

# Brighter to the right, to the front and to the head, by different steps.
_X, _Y, _Z = np.meshgrid(np.arange(3), np.arange(4), np.arange(5), indexing="ij")
_VOLUME = 100 * _X + 10 * _Y + _Z


@pytest.mark.parametrize(
    ("axis", "shape", "across", "down"),
    [
        (0, (5, 4), -10, -1),  # looks to the left: the front is left, the head on top
        (1, (5, 3), -100, -1),  # the patient's right is on the left
        (2, (4, 3), -100, -10),
    ],
)
def test_directions(axis, shape, across, down):
    planes = list(slices(_VOLUME, axis))
    assert len(planes) == _VOLUME.shape[axis]
    for plane in planes:
        assert plane.shape == shape
        assert (np.diff(plane, axis=1) == across).all()
        assert (np.diff(plane, axis=0) == down).all()


@pytest.mark.parametrize(
    ("volume", "axis", "error", "message"),
    [
        (_VOLUME, 3, ValueError, "axis must be from 0 to 2, got 3"),
        (_VOLUME, -1, ValueError, "axis must be from 0 to 2, got -1"),
        (_VOLUME, 1.0, TypeError, "axis must be a whole number"),
        (_VOLUME[0], 0, ValueError, "volume has shape .*, expected 3 axes"),
        (_VOLUME.tolist(), 0, TypeError, "volume must be a numpy array"),
    ],
)
def test_what_cannot_be_cut_is_refused(volume, axis, error, message):
    with pytest.raises(error, match=message):
        list(slices(volume, axis))
