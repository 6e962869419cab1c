"""NumPy's .npy and .npz: one image or a stack, never a guess among several, never a pickle."""

import io
import time
import zipfile

import numpy as np
import pytest

from dexcore.data.readers import UnreadableFileError, read_file

_RNG = np.random.default_rng(0)
_GRAY = _RNG.integers(0, 256, (30, 40), dtype=np.uint8)
_RGB = _RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
_STACK = _RNG.normal(size=(5, 30, 40)).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (_GRAY, (1, 30, 40)),
        (_RGB, (1, 30, 40, 3)),
        (np.zeros((7, 30, 40), np.int16), (4, 30, 40)),
        (np.zeros((7, 30, 40, 3), np.uint8), (4, 30, 40, 3)),
        (np.ones((4, 4), bool), (1, 4, 4)),
    ],
)
def test_numpy_arrays_are_one_image_or_a_stack(tmp_path, array, shape):
    np.save(tmp_path / "a.npy", array)
    scan = read_file(tmp_path / "a.npy", every=2)
    assert scan.pixels.shape == shape
    np.testing.assert_array_equal(
        scan.pixels.ravel(), array[::2].ravel() if len(shape) == array.ndim else array.ravel()
    )


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array([{}]), "ValueError"),
        (np.zeros(5), "shape"),
        (np.zeros((2, 2, 2, 2)), "shape"),
        (np.zeros((30, 40, 4), np.uint8), r"\(30, 40, 4\), 4 channels"),
        (np.zeros((5, 30, 40, 2), np.uint8), "2 channels"),
        (np.zeros((0, 5)), "no pixel"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.full((2, 2), np.nan), "finite"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(tmp_path / "a.npy")


def test_one_gray_image_may_have_an_axis_of_one_channel(tmp_path):
    np.save(tmp_path / "a.npy", _GRAY[..., None])
    np.testing.assert_array_equal(read_file(tmp_path / "a.npy").pixels, _GRAY[None])


def test_an_array_in_fortran_s_order_is_read_as_it_is(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(_STACK))
    np.testing.assert_array_equal(read_file(tmp_path / "a.npy").pixels, _STACK)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("arrays", "chosen"),
    [
        ({"arr_0": _GRAY}, "arr_0"),
        ({"anything": _STACK, "spacing": np.ones(3), "affine": np.eye(4)}, "anything"),
        ({"image": _STACK, "label": _STACK > 0}, "image"),
        ({"ct": _STACK, "ct_mask": _STACK > 0}, "ct"),
        ({"Images": _STACK, "features": _RNG.normal(size=(5, 99))}, "Images"),
        ({"unlabeled": _GRAY}, "unlabeled"),
        ({"volume": _STACK[..., None]}, "volume"),
    ],
)
def test_the_only_array_of_images_or_the_one_called_so_is_read(tmp_path, save, arrays, chosen):
    save(tmp_path / "a.npz", **arrays)
    scan = read_file(tmp_path / "a.npz")
    np.testing.assert_array_equal(scan.pixels, arrays[chosen].reshape(scan.pixels.shape))
    assert scan.pixels.shape[-2:] == (30, 40)
    assert scan.levels == ((0.0, 255.0) if arrays[chosen].dtype == np.uint8 else None)


def test_numbered_images_are_one_stack_in_the_order_of_their_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", *np.repeat(_STACK, 3, axis=0))  # arr_0 ... arr_14: arr_10 comes after arr_9
    scan = read_file(tmp_path / "a.npz", every=2)
    np.testing.assert_array_equal(scan.pixels, np.repeat(_STACK, 3, axis=0)[::2])
    assert scan.frames == tuple(range(0, 15, 2))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"train_images": _STACK, "test_images": _STACK}, r"2 of 2 arrays .*train_images \(5, 30, 40\)"),
        ({"image": _GRAY, "data": _GRAY}, "2 of 2 arrays"),
        ({"arr_0": _GRAY, "arr_1": _GRAY[:20]}, "2 of 2 arrays"),
        ({"arr_0": _STACK, "arr_1": _STACK}, "2 of 2 arrays"),
        ({"mask": _GRAY}, "0 of 1 arrays"),
        ({"image": np.array([{}])}, "0 of 1 arrays"),
        ({"labels": np.arange(9)}, "0 of 1 arrays"),
    ],
)
def test_several_or_none_are_refused_with_their_names(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(tmp_path / "a.npz")


def _header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("shape", "body", "reason"),
    [
        ((300, 512, 512), 300 << 20, "inflate to 314572928"),  # as it says, but 300 KB
        ((100, 512, 512), 1000, "claims 104857600 bytes"),
        ((1 << 20, 1 << 20), 1000, "pixels, expected at most"),
    ],
)
def test_bombs_are_refused_before_memory_is_taken(tmp_path, shape, body, reason):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("arr_0.npy", "w") as file,
    ):
        file.write(_header(shape))
        for _ in range(0, body, 1 << 20):
            file.write(bytes(min(body, 1 << 20)))
    start = time.monotonic()
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(tmp_path / "a.npz")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "header",
    [
        "{'PATIENT-DOE': 1}",
        "{'descr': 'PATIENT-DOE', 'fortran_order': False, 'shape': (4, 4)}",
        "{'descr': '<f4', 'fortran_order': 'PATIENT-DOE', 'shape': (4, 4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 'PATIENT-DOE'}",
        "{'descr': [('PATIENT-DOE', '<f4')], 'fortran_order': False, 'shape': (4, 4)}",
        "'PATIENT-DOE'",
    ],
)
def test_words_of_a_broken_header_are_not_repeated(tmp_path, header):
    written = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    (tmp_path / "a.npy").write_bytes(written)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("image.npy", written)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UnreadableFileError) as error:
            read_file(tmp_path / name)
        assert "PATIENT" not in str(error.value)


def test_flipped_bytes_are_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", image=_STACK)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UnreadableFileError, match="CRC"):
        read_file(tmp_path / "a.npz")
