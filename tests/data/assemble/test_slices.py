"""Slices are turned as radiologists look at them."""

import numpy as np
import pytest

from dexcore.data.assemble.slices import acquired_axis, plane_spacing, slices, square

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


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [
        (None, 2),
        ((1.0, 1.0, 1.0), 2),
        ((0.7, 0.7, 5.0), 2),
        ((3.0, 0.5, 0.5), 0),
        ((0.9, 4.0, 0.9), 1),
        ((4.0, 4.0, 3.0), 2),  # PET: no side is larger than both others
        ((0.7, 0.7, 0.75), 2),
        ((1.1, 1.0, 1.0), 2),
    ],
)
def test_a_volume_is_cut_as_it_was_acquired(spacing, axis):
    assert acquired_axis(spacing) == axis


def test_pixels_that_are_not_square_become_as_fine_as_their_finer_side():
    rows = np.linspace(0, 1, 11, dtype=np.float32)[:, None] * np.ones((1, 7), np.float32)
    image, spacing = square(rows, (5.0, 1.0))
    assert (image.shape, spacing) == ((55, 7), 1.0)
    assert np.allclose(image[2::5], rows, atol=1e-6)  # a pixel's centre stays where it was
    assert (np.diff(image[:, 0]) >= 0).all()
    image, spacing = square(np.dstack([rows.T] * 3), (1.0, 2.0))
    assert (image.shape, spacing) == ((7, 22, 3), 1.0)


def test_square_pixels_stay_as_they_are():
    image = np.random.default_rng(0).random((9, 9), np.float32)
    assert square(image, (0.5, 0.5))[0] is image
    assert square(image, (0.5, 0.503))[0] is image
    assert square(image, None) == (image, None)
    with pytest.raises(ValueError, match=r"pixels are 0.1 x 50 mm, expected nearly square ones"):
        square(image, (0.1, 50.0))


def test_the_spacing_of_a_plane_is_that_of_its_rows_and_columns():
    volume = np.zeros((4, 5, 6), np.float32)
    spacing = (0.4, 0.5, 0.6)  # mm; the axes are as long as their number times ten
    for axis in range(3):
        plane = next(slices(volume, axis))
        rows, columns = plane_spacing(spacing, axis)
        assert plane.shape == (round(rows * 10), round(columns * 10))
