"""DICOM series: which files belong together, which are a volume, and the volume itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_files import write_dicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dexcore.data.readers import UnreadableFileError
from dexcore.data.readers.dicom_header import read_header
from dexcore.data.readers.series import group_series, read_series

AXIAL = [1, 0, 0, 0, 1, 0]


def write_slices(folder, positions, orientation=AXIAL, rows=3, columns=4, **attributes):
    """One file a position, in the order given; the pixels of file i are 100 i + (0, 1, 2, ...)."""
    paths = []
    for index, position in enumerate(positions):
        pixels = (100 * index + np.arange(rows * columns)).reshape(rows, columns).astype(np.uint16)
        geometry = {
            "SeriesInstanceUID": "1.2.3",
            "ImagePositionPatient": list(position),
            "ImageOrientationPatient": list(orientation),
            "PixelSpacing": [2, 0.5],
            "InstanceNumber": index,
        }
        path = write_dicom(folder / f"{index}.dcm", pixels, **(geometry | attributes))
        paths.append(str(path))
    return paths


def grouped(paths):
    return group_series({path: read_header(path) for path in paths})


def test_slices_become_one_volume_in_the_order_of_their_positions_not_of_names_or_numbers(tmp_path):
    paths = write_slices(tmp_path, [(0, 0, z) for z in (6, 0, 9, 3)])
    (series,) = grouped(paths)
    assert series.volume, series.reason
    assert series.paths == (paths[1], paths[3], paths[0], paths[2])
    scan = read_series(paths)
    assert scan.layout == "volume"
    assert scan.pixels.dtype == np.int16
    assert scan.pixels.shape == (4, 3, 4)
    assert scan.spacing == (0.5, 2, 3)
    # DICOM's rows run from right to left and from front to back: x and y are turned.
    assert [scan.pixels[3, 2, z] for z in range(4)] == [100, 300, 0, 200]
    assert scan.pixels[2, 2, 0] == 101
    assert scan.pixels[3, 1, 0] == 104


@pytest.mark.parametrize(
    ("orientation", "step", "spacing"),
    [
        ([0, 1, 0, 0, 0, -1], (-1, 0, 0), (1, 0.5, 2)),  # sagittal: rows to the back, columns to the feet
        ([1, 0, 0, 0, 0, -1], (0, 1, 0), (0.5, 1, 2)),  # coronal
        ([0.96, 0.28, 0, -0.28, 0.96, 0], (0, 0, 1), (0.5, 2, 1)),  # oblique: nearest axes
    ],
)
def test_any_orientation_runs_to_the_right_the_front_and_the_head(tmp_path, orientation, step, spacing):
    paths = write_slices(tmp_path, [np.multiply(step, index) for index in range(3)], orientation)
    scan = read_series(paths)
    assert scan.spacing == spacing
    to_ras = np.array([-1, -1, 1])
    row, column = np.array(orientation[:3]) * to_ras, np.array(orientation[3:]) * to_ras

    def corner(slice_index, row_index, column_index):
        at = np.multiply(step, slice_index) * to_ras + row * 0.5 * column_index + column * 2 * row_index
        return at

    for voxel, other in (((0, 0, 0), (2, 2, 3)), ((0, 0, 3), (2, 2, 0)), ((0, 2, 0), (2, 0, 3))):
        values = [100 * s + 4 * r + c for s, r, c in (voxel, other)]
        places = [np.argwhere(scan.pixels == value)[0] * spacing for value in values]
        # The oblique slices are turned by 16 degrees: their corners lie up to 1.2 mm aside, turned over 1.8.
        np.testing.assert_allclose(places[1] - places[0], corner(*other) - corner(*voxel), atol=1.3)


def along(*heights):
    return [(0, 0, z) for z in heights]


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        (along(0, 3, 6, 12), "3 to 6 mm apart"),
        (along(0, 3, 6, 0, 3, 6), "several slices at one position"),
        (along(0, 3), "2 slices"),
        ([(0, 0, 0), (0, 1, 3), (0, 2, 6)], "tilted"),
    ],
)
def test_irregular_positions_are_no_volume_and_the_reason_is_said(tmp_path, positions, reason):
    paths = write_slices(tmp_path, positions)
    (series,) = grouped(paths)
    assert not series.volume
    assert reason in series.reason
    with pytest.raises(UnreadableFileError, match=reason):
        read_series(paths)


def test_slices_of_another_size_orientation_or_without_a_position_are_no_volume(tmp_path):
    paths = write_slices(tmp_path, along(0, 3, 6))
    for change, reason in (
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "orientation"),
        ({"ImagePositionPatient": None}, "1 of 4 slices have no position"),
        ({"PixelSpacing": [1, 1]}, "spacing"),
    ):
        (odd,) = write_slices(tmp_path / "..", along(9), **change)
        (series,) = grouped([*paths, odd])
        assert not series.volume
        assert reason in series.reason
    (localizer,) = write_slices(tmp_path / "..", along(9), rows=8)
    assert "rows" in grouped([*paths, localizer])[0].reason


def test_series_are_told_apart_by_their_identifiers_and_other_objects_left_out(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    first = write_slices(tmp_path / "a", along(0, 1, 2))
    second = write_slices(tmp_path / "b", along(0, 1, 2), SeriesInstanceUID="1.2.4")
    masks = write_slices(tmp_path / "c", along(0), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    assert [series.paths for series in grouped([*first, *second, *masks])] == [tuple(first), tuple(second)]


def test_a_copy_of_a_series_in_another_folder_leaves_both_volumes(tmp_path):
    paths = write_slices(tmp_path, along(0, 3, 6))
    (tmp_path / "copy").mkdir()
    copies = [shutil.copy(path, tmp_path / "copy") for path in paths]
    both = grouped([*paths, *map(str, copies)])
    assert [series.volume for series in both] == [True, True]
    assert [series.paths for series in both] == [tuple(paths), tuple(map(str, copies))]


def groups_of(positions):
    per_frame = []
    for position in positions:
        plane, group = Dataset(), Dataset()
        plane.ImagePositionPatient = list(position)
        group.PlanePositionSequence = Sequence([plane])
        per_frame.append(group)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = AXIAL
    measures.PixelSpacing = [2, 0.5]
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    return {
        "PerFrameFunctionalGroupsSequence": Sequence(per_frame),
        "SharedFunctionalGroupsSequence": Sequence([shared]),
    }


def test_an_enhanced_file_with_regular_positions_is_a_volume(tmp_path):
    stored = np.arange(36, dtype=np.uint16).reshape(3, 3, 4)
    path = write_dicom(tmp_path / "a.dcm", stored, **groups_of(along(5, 0, 10)))
    (series,) = grouped([str(path)])
    assert series.volume, series.reason
    scan = read_series([path])
    assert scan.spacing == (0.5, 2, 5)
    np.testing.assert_array_equal(scan.pixels[3, 2], [12, 0, 24])
    again = write_dicom(tmp_path / "b.dcm", stored, **groups_of(along(5, 0, 5)))
    assert "one position" in grouped([str(again)])[0].reason


def test_a_broken_slice_is_named(tmp_path):
    paths = write_slices(tmp_path, along(0, 1, 2))
    broken = Path(paths[1])
    broken.write_bytes(broken.read_bytes()[:-4])
    with pytest.raises(UnreadableFileError, match=r"1\.dcm"):
        read_series(paths)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_slices_with_and_without_a_sigmoid_are_no_volume_unless_their_values_stay(tmp_path, modality):
    (tmp_path / "bent").mkdir()
    attributes = {"Modality": modality, "WindowCenter": 100, "WindowWidth": 101}
    raw = write_slices(tmp_path, along(0, 1, 2), **attributes)
    bent = write_slices(tmp_path / "bent", along(3, 4, 5), VOILUTFunction="SIGMOID", **attributes)
    if modality == "CT":
        assert read_series(raw + bent).pixels.max() == 211
        return
    assert read_series(bent).levels == (0, 1)
    with pytest.raises(UnreadableFileError, match=r"0\.dcm: the slices of the series differ in what bends"):
        read_series(raw + bent)


def test_levels_of_a_volume_lose_nothing_of_any_slice(tmp_path):
    paths = write_slices(tmp_path, along(0, 1, 2), WindowCenter=100, WindowWidth=101)
    paths[2:] = write_slices(tmp_path / "..", along(2), WindowCenter=500, WindowWidth=101)
    assert read_series(paths).levels == (49.5, 549.5)
