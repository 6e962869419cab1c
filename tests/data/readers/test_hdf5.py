"""HDF5: the one dataset of images, no link out of the file, no bomb."""

import time

import h5py
import numpy as np
import pytest

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.hdf5 import hdf5_values, iterate_hdf5

_RNG = np.random.default_rng(0)
_STACK = _RNG.normal(size=(7, 30, 40)).astype(np.float32)
_GRAY = _RNG.integers(0, 256, (30, 40), dtype=np.uint8)
_RGB = _RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)


def _write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name.replace("__", "/"), data=data)
    return path


@pytest.mark.parametrize(
    ("datasets", "chosen"),
    [
        ({"anything": _GRAY}, "anything"),
        ({"a__b__rgb": _RGB, "a__spacing": np.ones(3)}, "a__b__rgb"),
        ({"image": _STACK, "mask": _STACK > 0, "annot_id": np.array([b"1_", b"2_"])}, "image"),
        ({"data": _STACK[..., None], "features": _RNG.normal(size=(7, 99))}, "data"),
        ({"kspace": _STACK * 1j, "reconstruction_esc": _STACK + 1, "reconstruction_rss": _STACK}, "reconstruction_rss"),
        ({"kspace": _STACK * 1j, "reconstruction_esc": _STACK}, "reconstruction_esc"),
    ],
)
def test_the_dataset_of_images_is_read(tmp_path, datasets, chosen):
    scan = read_file(_write(tmp_path / "a.h5", **datasets))
    assert scan.layout == "frames"
    np.testing.assert_array_equal(scan.pixels, datasets[chosen].reshape(scan.pixels.shape))
    assert scan.pixels.shape[1:3] == (30, 40)
    assert scan.levels == ((0.0, 255.0) if datasets[chosen].dtype == np.uint8 else None)


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 30, 40), "compression": "gzip"}, {"compression": "lzf"}])
def test_one_image_in_every_three_is_read(tmp_path, options):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=_STACK, **options)
    scan = read_file(tmp_path / "a.h5", every=3)
    assert scan.frames == (0, 3, 6)
    np.testing.assert_array_equal(scan.pixels, _STACK[::3])


@pytest.mark.parametrize(
    ("image", "axes"),
    [(_GRAY, (1, 0)), (_STACK, (0, 2, 1)), (_RGB, (2, 1, 0)), (np.stack([_RGB, _RGB[::-1]]), (0, 3, 2, 1))],
)
def test_what_matlab_wrote_is_not_lying_on_its_side(tmp_path, image, axes):
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file.create_dataset("img", data=image.transpose(axes)).attrs["MATLAB_class"] = np.bytes_(str(image.dtype))
    np.testing.assert_array_equal(
        read_file(tmp_path / "a.mat").pixels, image if image.ndim > 3 or image is _STACK else image[None]
    )


@pytest.mark.parametrize(
    ("datasets", "reason"),
    [
        ({"one": _STACK, "two": _STACK}, r"2 of 2 arrays .*one \(7, 30, 40\) float32"),
        ({"one": _GRAY, "other": _STACK}, "2 of 2 arrays"),
        ({"mask": _GRAY}, "0 of 1 arrays"),
        ({"jpeg": np.array([b"\xff\xd8"])}, "no dataset of numbers"),
        ({"x": np.zeros(0)}, "0 of 1 arrays"),
    ],
)
def test_several_or_none_are_refused(tmp_path, datasets, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(_write(tmp_path / "a.h5", **datasets))


def test_nothing_outside_of_the_file_is_read(tmp_path):
    _write(tmp_path / "other.h5", image=_GRAY)
    (tmp_path / "raw").write_bytes(_GRAY.tobytes())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["image"] = h5py.ExternalLink("other.h5", "/image")
        file["soft"] = h5py.SoftLink("/image")
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("image", (30, 40), "u1", external=[(str(tmp_path / "raw"), 0, 1200)])
    layout = h5py.VirtualLayout((30, 40), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "image", (30, 40))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("image", layout)
    for name, reason in (
        ("link", "no dataset of numbers"),
        ("external", "lie in other files"),
        ("virtual", "lie in other files"),
    ):
        with pytest.raises(UnreadableFileError, match=reason):
            read_file(tmp_path / f"{name}.h5")


def test_groups_in_a_circle_end(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/image"] = _GRAY
        file["a/b/again"] = file["a"]
    np.testing.assert_array_equal(read_file(tmp_path / "a.h5").pixels, [_GRAY])


def test_bombs_are_refused_before_memory_is_taken(tmp_path):
    def zeros(name, shape, chunks, **options):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("image", shape, "u1", chunks=chunks, **options)[:1, :1] = 1

    zeros("chunk", (64, 64), (1 << 14, 1 << 13), maxshape=(None, None), compression="gzip")
    zeros("sparse", (8000, 8000, 3), (100, 100, 3))
    zeros("huge", (1 << 20, 1 << 20), (64, 64))
    start = time.monotonic()
    for name, reason in (
        ("chunk", "chunks of 134217728 bytes for 4096"),
        ("sparse", "expected at most 200 times"),
        ("huge", "pixels, expected at most"),
    ):
        with pytest.raises(UnreadableFileError, match=reason):
            read_file(tmp_path / f"{name}.h5")
    assert time.monotonic() - start < 2


def test_a_dataset_that_was_never_written_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (30, 40), "u1", chunks=(30, 40))
    with pytest.raises(UnreadableFileError, match="never written"):
        read_file(tmp_path / "a.h5")


def test_a_filter_that_needs_a_plugin_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((30, 40))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Zstandard
        space = h5py.h5s.create_simple((30, 40))
        dataset = h5py.h5d.create(file.id, b"image", h5py.h5t.NATIVE_UINT8, space, properties)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, _GRAY)
    with pytest.raises(UnreadableFileError, match="stored through filter 32015"):
        read_file(tmp_path / "a.h5")


def test_a_stack_that_fits_no_memory_is_given_image_by_image(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("clips/image", (17_412, 802, 1054), "u1", chunks=(1, 802, 1054))
        for number in (0, 10, 20):
            file["clips/image"][number, :30, :40] = _GRAY + np.uint8(number)
        file["clips/mask"] = _GRAY
    given = iterate_hdf5(tmp_path / "a.h5", "clips/image", every=10)
    for number in (0, 10, 20):
        index, image = next(given)
        assert index == number
        np.testing.assert_array_equal(image[:30, :40], _GRAY + np.uint8(number))
        assert image.shape == (802, 1054)


def test_the_images_of_a_small_stack_are_those_of_the_scan(tmp_path):
    _write(tmp_path / "a.h5", image=_STACK, label=np.zeros((7, 30, 40)))
    scan = read_file(tmp_path / "a.h5", every=3)
    given = list(iterate_hdf5(tmp_path / "a.h5", every=3))
    assert tuple(index for index, _ in given) == scan.frames
    np.testing.assert_array_equal([image for _, image in given], scan.pixels)
    with pytest.raises(UnreadableFileError, match="no dataset clips/image"):
        next(iterate_hdf5(tmp_path / "a.h5", "clips/image"))
    with pytest.raises(ValueError, match="every must be at least 1"):
        next(iterate_hdf5(tmp_path / "a.h5", every=0))


def test_what_a_file_says_about_each_image_is_read_as_text(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["annot_id"] = np.array([b"7_1", b"12_"])
        file["text"] = ["größe", "b"]
        file["frame"] = np.array([0, 3])
        file["image"] = _STACK
        file["link"] = h5py.ExternalLink("other.h5", "/image")
    assert hdf5_values(tmp_path / "a.h5", "annot_id") == ["7_1", "12_"]
    assert hdf5_values(tmp_path / "a.h5", "text") == ["größe", "b"]
    assert hdf5_values(tmp_path / "a.h5", "frame") == ["0", "3"]
    for name, reason in (
        ("image", "no list"),
        ("link", "no dataset"),
        ("missing", "no dataset"),
        ("../a", "no dataset"),
    ):
        with pytest.raises(UnreadableFileError, match=reason):
            hdf5_values(tmp_path / "a.h5", name)
