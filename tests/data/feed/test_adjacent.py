"""Neighbouring slices as channels: of real volumes, at ends and gaps, and never of another volume."""

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from corpus import CORPUS, needs_corpus
from made_files import write_dicom
from made_folders import noise, write_picture, write_series
from made_stores import shards

from dexcore.data import build_store, open_mvu
from dexcore.data.feed.adjacent import adjacent_slices
from dexcore.data.feed.dataset import MVUDataset
from dexcore.data.feed.pretrain_view import PretrainView
from dexcore.data.modality import Modality
from dexcore.data.record import ImageRecord
from dexcore.data.store import ImageDecodeError, Store, StoreError, write_store


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def build(folder, out, **options):
    with ThreadPoolExecutor(1) as executor:
        build_store(folder, out, executor=executor, **options)
    return out


def records(paths, **fields):
    """A slice of noise for each path; ``fields`` of all of them."""
    for number, path in enumerate(paths):
        yield ImageRecord(
            image=noise((24, 20), number).astype(np.float32) / 255,
            **{"modality": Modality.CT, "source": "S", "anatomy": "", "normalization": "div255", "group": "P1"}
            | fields,
            path=path,
        )


def store_of(folder, paths, **fields):
    write_store(records(paths, **fields), folder, name="made")
    return folder


def shown(dataset, path):
    """The paths of the images that an image's channels are, one alone where all are equal; bit for bit."""
    alone = open_mvu(dataset._store.folder)
    of_pixels = {alone.read(row).tobytes(): name for row, name in enumerate(alone.path)}
    assert len(of_pixels) == len(alone)
    pixels = dataset.read(dataset.path.tolist().index(path))
    planes = [pixels] if pixels.ndim == 2 else [np.ascontiguousarray(plane) for plane in np.moveaxis(pixels, 2, 0)]
    return [of_pixels[plane.tobytes()] for plane in planes]


@needs_corpus
def test_the_channels_of_a_real_volume_are_its_slices_from_feet_to_head(tmp_path):
    for case in ("STS_008", "STS_015"):
        (tmp_path / "mr" / case).mkdir(parents=True)
        shutil.copy(CORPUS / "MR" / "ibsi-sts-nifti" / case / "MR_T1_image.nii.gz", tmp_path / "mr" / case)
    store = build(tmp_path / "mr", tmp_path / "store", modality="MR")
    alone, three = open_mvu(store), open_mvu(store, slices=3)
    rows = {path: row for row, path in enumerate(alone.path)}
    assert len(rows) == 28 + 46
    for path, row in rows.items():
        file, _, place = path.partition("#axial=")
        around = [rows.get(f"{file}#axial={int(place) + step}", row) for step in (-1, 0, 1)]
        assert (three.read(row) == np.stack([alone.read(one) for one in around], axis=2)).all()
    voxels = nibabel.as_closest_canonical(nibabel.load(tmp_path / "mr" / "STS_008" / "MR_T1_image.nii.gz")).get_fdata()
    planes = np.stack([plane.T[::-1, ::-1].ravel() for plane in voxels.transpose(2, 0, 1)])
    image = three.read(rows["STS_008/MR_T1_image.nii.gz#axial=14"])
    for channel, expected in enumerate((13, 14, 15)):
        alike = [np.corrcoef(image[..., channel].ravel(), plane)[0, 1] for plane in planes]
        assert (np.argmax(alike), max(alike) > 0.98) == (expected, True)


def test_a_dicom_series_is_in_the_order_of_positions_and_no_volume_leads_into_another(tmp_path):
    write_series(tmp_path / "ct" / "a", slices=4, patient="P1")
    write_series(tmp_path / "ct" / "b", slices=4, patient="P1", seed=1)
    for number in range(2):
        write_picture(tmp_path / "ct" / f"{number}.png", seed=number)
    dataset = open_mvu(build(tmp_path / "ct", tmp_path / "store", modality="CT"), slices=5)
    assert len(dataset) == 10
    for folder in "ab":
        names = [f"{folder}/004.dcm#axial={place}" for place in range(4)]  # the file of the lowest position
        assert shown(dataset, names[0]) == [names[place] for place in (0, 0, 0, 1, 2)]
        assert shown(dataset, names[1]) == [names[place] for place in (0, 0, 1, 2, 3)]
        assert shown(dataset, names[2]) == [names[place] for place in (0, 1, 2, 3, 3)]
        low = np.ascontiguousarray(dataset.read(dataset.path.tolist().index(names[0]))[..., 0])
        voxels = noise((72, 68), 0 if folder == "a" else 1000, 2000)
        assert np.corrcoef(low.ravel(), np.clip(voxels, 840, 1240).ravel())[0, 1] > 0.9
    assert shown(dataset, "0.png") == ["0.png"]


def test_where_a_slice_is_missing_the_last_one_before_it_is_repeated(tmp_path):
    voxels = noise((66, 70, 7), 0, 1000).astype(np.int16)
    voxels[..., 3] = 0  # air: the build drops it
    (tmp_path / "mr").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0])), tmp_path / "mr" / "a.nii")
    dataset = open_mvu(build(tmp_path / "mr", tmp_path / "store", modality="MR"), slices=5)
    assert [path[-1] for path in dataset.path] == ["0", "1", "2", "4", "5", "6"]
    assert [name[-1] for name in shown(dataset, "a.nii#axial=2")] == ["0", "1", "2", "2", "2"]
    assert [name[-1] for name in shown(dataset, "a.nii#axial=4")] == ["4", "4", "4", "5", "6"]


def test_frames_and_irregular_series_have_no_neighbours(tmp_path):
    write_series(tmp_path / "us" / "whole", slices=3)
    write_series(tmp_path / "us" / "torn", slices=5, seed=1)[2].unlink()  # the third position
    cine = np.stack([noise((72, 68), number) for number in range(100, 103)])
    write_dicom(tmp_path / "us" / "cine.dcm", cine, Modality="CT", SeriesInstanceUID="1.3", PixelSpacing=[1.0, 1.0])
    dataset = open_mvu(build(tmp_path / "us", tmp_path / "store", modality="CT"), slices=3)
    single = [path for path in dataset.path if path.startswith(("torn", "cine"))]
    assert len(single) == 4 + 3
    for path in single:
        assert shown(dataset, path) == [path]
    assert shown(dataset, "whole/003.dcm#axial=1") == [f"whole/003.dcm#axial={place}" for place in range(3)]


@pytest.mark.parametrize(
    "other",
    [
        lambda record: replace(record, source="T"),
        lambda record: replace(record, group="P2"),
        lambda record: replace(record, split="heldout"),
        lambda record: replace(record, image=record.image[:20]),
        lambda record: replace(record, image=record.image[:, :18]),
        lambda record: replace(record, normalization="hu_window", image=1 - record.image),  # stored with 16 bits
    ],
    ids=["source", "group", "split", "height", "width", "bit depth"],
)
def test_slices_of_other_volumes_are_not_told_by_their_paths_alone(tmp_path, other):
    one, two = records(["a#axial=1", "a#axial=2", "a#axial=3", "a#axial=4"]), []
    for number, record in enumerate(one):
        two.append(other(record) if number % 2 else record)
    two += records(["b#axial=7", "b#axial=8"], normalization="hu_window")
    write_store(two, tmp_path / "store", name="made")
    dataset = open_mvu(tmp_path / "store", slices=3)
    for place in range(1, 5):
        assert shown(dataset, f"a#axial={place}") == [f"a#axial={place}"]
    assert shown(dataset, "b#axial=7") == ["b#axial=7", "b#axial=7", "b#axial=8"]


def test_axes_and_time_points_of_a_file_are_volumes_of_their_own(tmp_path):
    paths = ["a#coronal=5", "a#axial=4", "a#axial=5", "a#1#axial=6", "a#1#axial=5", "a#6", "a#x=6", "a#axial=6.png"]
    dataset = open_mvu(store_of(tmp_path / "store", paths), slices=3)
    rows = {path: row for row, path in enumerate(dataset.path)}
    before, after = adjacent_slices(Store(tmp_path / "store"))
    own = np.arange(len(paths))
    expected_before, expected_after = own.copy(), own.copy()
    for first, second in (("a#axial=4", "a#axial=5"), ("a#1#axial=5", "a#1#axial=6")):
        expected_after[rows[first]], expected_before[rows[second]] = rows[second], rows[first]
    assert (before == expected_before).all()
    assert (after == expected_after).all()


def test_colour_becomes_gray_beside_slices(tmp_path):
    colour = np.random.default_rng(0).random((24, 20, 3), dtype=np.float32)
    (photo,) = records(["photo.png"], modality=Modality.PHOTO)
    images = [replace(photo, image=colour), *records(["a#axial=1", "a#axial=2"], normalization="div255")]
    write_store(images, tmp_path / "store", name="made")
    dataset = open_mvu(tmp_path / "store", slices=3)
    gray = dataset.read(dataset.path.tolist().index("photo.png"))
    assert (gray.shape, gray.dtype) == ((24, 20), np.uint8)
    assert np.abs(gray - 255 * colour @ np.array([0.299, 0.587, 0.114])).max() < 1.5


def test_a_store_without_slices_and_one_that_names_a_slice_twice_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no two images are neighbouring slices of a volume, expected slices = 1"):
        open_mvu(store_of(tmp_path / "pictures", ["a.png", "b#3", "b#4", "c#axial=1", "c#axial=3"]), slices=3)
    with pytest.raises(StoreError, match=r"row 1 .* and 3 are the same slice: a#axial=2"):
        open_mvu(store_of(tmp_path / "twice", ["a#axial=1", "a#axial=2", "b", "a#axial=2"]), slices=3)
    with pytest.raises(ValueError, match="slices must be odd, got 2"):
        open_mvu(tmp_path / "twice", slices=2)
    with pytest.raises(ValueError, match="slices must be at least 1, got 0"):
        open_mvu(tmp_path / "twice", slices=0)


def test_neighbours_are_decoded_once_and_kept_for_each_other(tmp_path, monkeypatch):
    paths = [f"a#axial={place}" for place in range(6)]
    dataset = MVUDataset(store_of(tmp_path / "store", paths), cache=1 << 20, slices=3)
    decoded = []
    image = dataset._store.image
    monkeypatch.setattr(dataset._store, "image", lambda row: decoded.append(row) or image(row))
    first = [dataset.read(row) for row in range(6)]
    assert sorted(decoded) == list(range(6))
    again = pickle.loads(pickle.dumps(dataset))
    assert (again.slices, again.fingerprint) == (3, dataset.fingerprint)
    assert all((one == again.read(row)).all() for row, one in enumerate(first))


def test_the_fingerprint_tells_which_slices_are_neighbours(tmp_path):
    """The paths, by which they are known, are not in the store's own."""
    paths = ["a#axial=1", "a#axial=2", "b#axial=1"]
    one = store_of(tmp_path / "one", paths)
    named = store_of(tmp_path / "named", [f"elsewhere/{path}" for path in paths])
    other = store_of(tmp_path / "other", [paths[0], paths[2], paths[1]])
    assert len({open_mvu(store).fingerprint for store in (one, named, other)}) == 1
    prints = [open_mvu(store, slices=3).fingerprint for store in (one, named, other)]
    assert prints[0] == prints[1] != prints[2]
    assert len({prints[0], open_mvu(one, slices=5).fingerprint, open_mvu(one).fingerprint}) == 3
    hashes = [open_mvu(store, slices=3).content_hash(0) for store in (one, named, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_all_channels_get_the_same_crop_flip_and_rotation(tmp_path):
    """Slices that are one picture at three brightnesses stay so in every view."""
    base = noise((48, 40), 0).astype(np.float32) / 255
    images = [
        replace(record, image=base * share)
        for record, share in zip(records([f"a#axial={place}" for place in range(3)]), (0.25, 1.0, 0.5), strict=True)
    ]
    images = [replace(record, normalization="hu_window") for record in images]  # 16 bits
    write_store(images, tmp_path / "store", name="made")
    dataset = open_mvu(tmp_path / "store", slices=3)
    view = PretrainView(dataset, np.array([1]), 16, seed=0, num_patches=4, router_shape=[2], statistics="gray")
    views = [view[(epoch, 0)]["image"].numpy() * 0.225 + 0.45 for epoch in range(20)]
    assert len({one.tobytes() for one in views}) == 20
    for one in views:
        assert np.abs(one[0] - 0.25 * one[1]).max() < 1e-4
        assert np.abs(one[2] - 0.5 * one[1]).max() < 1e-4


def test_a_neighbour_that_does_not_decode_has_the_image_replaced(tmp_path):
    dataset = open_mvu(store_of(tmp_path / "store", [f"a#axial={place}" for place in range(5)]), slices=3)
    (shard,) = shards(tmp_path / "store")
    image = bytes(Store(tmp_path / "store").encoded(4))
    shard.write_bytes(shard.read_bytes().replace(image, image[:50] + bytes(len(image) - 50)))
    dataset = open_mvu(tmp_path / "store", slices=3)
    with pytest.raises(ImageDecodeError, match="row 4"):
        dataset.read(3)
    view = PretrainView(dataset, np.arange(5), 16, seed=0, num_patches=4, router_shape=[2])
    items = [view[(0, row)] for row in range(5)]
    assert [item["replaced"] for item in items] == [False, False, False, True, True]
    assert all(item["sample_id"] < 3 for item in items)
