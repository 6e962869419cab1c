"""What a file is, by its content: real files of every kind at hand, and made first bytes."""

import gzip
import io
import os
import struct
import tarfile
import zipfile

import nibabel
import numpy as np
import pytest
from made_files import PYDICOM, package_folder
from PIL import Image

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.kind import Kind, file_kind

_NIBABEL = package_folder("nibabel") / "tests" / "data"


def _named(path, content):
    path.write_bytes(content)
    return path


def _pillow(form):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form)
    return file.getvalue()


def _numpy(save, **arrays):
    file = io.BytesIO()
    save(file, *([np.zeros(3)] if not arrays else []), **arrays)
    return file.getvalue()


def _zip(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return file.getvalue()


_NIFTI = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes()
_NIFTI2 = nibabel.Nifti2Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (_pillow("PNG"), Kind.PNG),
        (_pillow("JPEG"), Kind.JPEG),
        (_pillow("BMP"), Kind.BMP),
        (_pillow("TIFF"), Kind.TIFF),
        (_numpy(np.save), Kind.NUMPY),
        (_numpy(np.savez, image=np.zeros(3)), Kind.NPZ),
        (_NIFTI, Kind.NIFTI),
        (_NIFTI2, Kind.NIFTI),
        (gzip.compress(_NIFTI), Kind.NIFTI),
        (gzip.compress(_NIFTI2), Kind.NIFTI),
        (gzip.compress(_tar()), Kind.TAR),
        (gzip.compress(b"a text"), Kind.GZIP),
        (_tar(), Kind.TAR),
        (_zip("a.png"), Kind.ZIP),
        (_zip(), Kind.ZIP),
        (b"NRRD0004\n# Complete", Kind.NRRD),
        (b"ObjectType = Image\nNDims = 3\n", Kind.METAIMAGE),
        (b"NDims=3\n", Kind.METAIMAGE),
        (b"RIFF\0\0\0\0AVI LIST", Kind.VIDEO),
        (b"\0\0\0\x20ftypisom", Kind.VIDEO),
        (b"\0\0\0\x20ftypheic", None),
        (b"\x89HDF\r\n\x1a\n", Kind.HDF5),
        (b"MATLAB 7.3".ljust(512) + b"\x89HDF\r\n\x1a\n", Kind.HDF5),
        (b"HSF-OCT-103\0", Kind.HEIDELBERG),
        (b"BMW and other cars, in a text of some length", None),
        (b"Comment on a scan", None),
        (b"", None),
        (b"\x1f\x8b\x08", Kind.GZIP),
        (bytes(4096), None),
    ],
    # Not the bytes themselves, which hold the second they were made at: all workers must name a test alike.
    ids=lambda value: "bytes" if isinstance(value, bytes) else str(value),
)
def test_the_kind_is_told_by_the_first_bytes(tmp_path, content, kind):
    assert file_kind(_named(tmp_path / "scan", content)) is kind
    assert file_kind(_named(tmp_path / "scan.nii", content)) is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CT_small.dcm", Kind.DICOM),
        ("ExplVR_BigEndNoMeta.dcm", Kind.DICOM),
        ("ExplVR_LitEndNoMeta.dcm", Kind.DICOM),
        ("rtstruct.dcm", Kind.DICOM),  # implicit VR, no preamble
        ("README.txt", None),
        ("test1.json", None),
        ("crayons.icc", None),
    ],
)
def test_dicom_is_known_also_without_its_preamble(name, kind):
    assert file_kind(PYDICOM / name) is kind


@pytest.mark.parametrize("name", ["nifti1.hdr", "nifti2.hdr", "anatomical.nii", "example4d.nii.gz"])
def test_nifti_is_known_with_its_pairs_header(name):
    assert file_kind(_NIBABEL / name) is Kind.NIFTI


def _tiff(width, following, tiled, big, photometric=2, description=b""):
    """Directories of a TIFF without pixels: one of ``width`` and one of each of ``following``."""
    content = bytearray(b"II+\0\x08\0\0\0" + bytes(8) if big else b"II*\0" + bytes(4))
    link = 8 if big else 4
    for side in (width, *following):
        text_at = len(content)
        content += description.ljust(8, b"\0")
        tags = {256: side, 257: side, 262: photometric, 270: text_at, **({322: 16} if tiled else {})}
        struct.pack_into("<Q" if big else "<I", content, link, len(content))
        content += struct.pack("<Q" if big else "<H", len(tags))
        for tag, value in tags.items():
            content += struct.pack("<HHQQ" if big else "<HHII", tag, 4, 1, value)
        link = len(content)
        content += bytes(8 if big else 4)
    return bytes(content)


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
def test_a_tiled_picture_in_several_sizes_is_a_slide(tmp_path, big):
    for kind, content in [
        (Kind.SLIDE, _tiff(4096, [2048, 1024], True, big)),
        (Kind.SLIDE, _tiff(4096, [], True, big, description=b"Aperio Image")),
        (Kind.TIFF, _tiff(4096, [2048], False, big)),
        (Kind.TIFF, _tiff(4096, [4096], True, big)),  # a stack
        (Kind.TIFF, _tiff(4096, [2048], True, big, photometric=1)),
        (Kind.TIFF, _tiff(4096, [2048], True, big)[:100]),
    ]:
        assert file_kind(_named(tmp_path / "scan", content)) is kind


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFileError, match="no regular file"):
        read_file(tmp_path / "pipe")


def test_a_path_of_bytes_is_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.png"  # no UTF-8
    with open(path, "wb") as file:
        file.write(_pillow("PNG"))
    assert read_file(path).pixels.shape == (1, 8, 8, 3)
    assert file_kind(path) is Kind.PNG
    with pytest.raises(UnreadableFileError) as caught:
        read_file(os.fsencode(tmp_path / "missing.png"))
    assert str(tmp_path / "missing.png") in str(caught.value)
