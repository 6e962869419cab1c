"""Broken files of every kind are read or refused: no crash, no hang, no GiB, nothing on the terminal."""

import shutil
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from fuzz import read_mutations
from made_files import PYDICOM
from made_kinds import write_video, write_vol
from PIL import Image

_READING = """
from dexcore.data.readers.archive import each_member
from dexcore.data.readers.slide import iterate_tiles

def read(path):
    if path.suffix == ".tif":
        return list(iterate_tiles(path, None, 64))
    if path.suffix not in (".zip", ".tar", ".tgz"):
        return read_file(path)
    for _, member in each_member(path):
        if isinstance(member, UnreadableFileError):
            raise member
"""
_RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(tmp_path, count):
    sources, mutated = tmp_path / "sources", tmp_path / "mutated"
    sources.mkdir()
    mutated.mkdir()
    stack = _RNG.integers(0, 999, (5, 30, 40), dtype=np.int16)
    np.save(sources / "array.npy", stack)
    np.savez(sources / "arrays.npz", image=stack, spacing=np.ones(3))
    np.savez_compressed(sources / "compressed.npz", *stack)
    volume = sitk.GetImageFromArray(stack)
    for name in ("raw.nrrd", "detached.nhdr", "raw.mha", "detached.mhd"):
        sitk.WriteImage(volume, sources / name)
    for name in ("gzip.nrrd", "zlib.mha"):
        sitk.WriteImage(volume, sources / name, True)
    frames = np.repeat(stack.astype(np.uint8)[..., None], 3, axis=3)[:, :16, :32]
    write_video(sources / "mjpeg.avi", frames)
    write_video(sources / "h264.mp4", frames, "libx264", "yuv420p")
    write_video(sources / "vp9.webm", frames, "libvpx-vp9", "yuv420p")
    write_video(sources / "mpeg2.mpg", frames, "mpeg2video", "yuv420p")
    with h5py.File(sources / "plain.h5", "w") as file:
        file["image"] = stack
    with h5py.File(sources / "chunked.h5", "w") as file:
        file.create_dataset("a/image", data=stack, chunks=(1, 30, 40), compression="gzip", fletcher32=True)
        file["a/spacing"] = np.ones(3)
    with zipfile.ZipFile(sources / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(sources / "array.npy", "a/array.npy")
        archive.writestr("2.txt", "none")
    for name, mode in (("images.tar", "w"), ("images.tgz", "w:gz")):
        with tarfile.open(sources / name, mode) as archive:
            archive.add(sources / "array.npy", "array.npy")
            archive.add(sources / "images.zip", "inner.zip")
    pink = np.full((128, 192, 3), (220, 120, 180), np.uint8)
    for name, compression in (("jpeg.tif", "jpeg"), ("zlib.tif", "zlib")):
        with tifffile.TiffWriter(sources / name) as tiff:
            for level in (pink, pink[::2, ::2]):
                tiff.write(level, tile=(64, 64), photometric="rgb", compression=compression, metadata=None)
    Image.fromarray(frames[0]).save(sources / "rgb.png")
    Image.fromarray(frames[0]).save(sources / "photo.jpg")
    Image.fromarray(frames[0]).save(sources / "picture.bmp")
    Image.fromarray(stack[0].astype(np.uint16)).save(sources / "lzw.tiff", compression="tiff_lzw")
    tifffile.imwrite(sources / "stack.tiff", stack, imagej=True)
    sitk.WriteImage(volume, sources / "volume.nii.gz")
    sitk.WriteImage(volume, sources / "volume.nii")
    for name in ("CT_small.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        shutil.copy(PYDICOM / name, sources / name)
    files = [
        *sorted(path for path in sources.iterdir() if path.suffix != ".raw"),
        write_vol(sources / "heidelberg.vol", _RNG.random((3, 20, 30), np.float32)),
    ]
    outcomes = read_mutations(files, mutated, count, _READING)
    assert all(outcome["refused"] for outcome in outcomes.values()), outcomes
    assert sum(outcome["read"] for outcome in outcomes.values()), outcomes
