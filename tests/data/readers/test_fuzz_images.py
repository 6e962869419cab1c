"""Broken PNG, JPEG, BMP, TIFF and NIfTI files, in more forms than test_fuzz.py has, are read or refused."""

import gzip

import nibabel
import numpy as np
import pytest
import tifffile
from fuzz import read_mutations
from made_files import write_png
from PIL import Image

_RNG = np.random.default_rng(0)
_GRAY = _RNG.integers(0, 256, (64, 64), dtype=np.uint8)
_RGB = _RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def _write_images(folder):
    Image.fromarray(_RGB).save(folder / "rgb.png")
    Image.fromarray(_GRAY).convert("P").save(folder / "palette.png", transparency=bytes([9, 200]))
    write_png(folder / "deep.png", _RNG.integers(0, 65536, (32, 32, 4), dtype=np.uint16), 16)
    write_png(folder / "trns.png", _RNG.integers(0, 65536, (32, 32), dtype=np.uint16), 16, [7])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_RGB).save(folder / "rgb.jpg", exif=exif)
    Image.fromarray(_RGB).convert("CMYK").save(folder / "cmyk.jpg", progressive=True)
    Image.fromarray(_RGB).save(folder / "mpo.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(_GRAY)])
    Image.fromarray(_RGB).save(folder / "rgb.bmp")
    Image.fromarray(_GRAY).save(folder / "gray.bmp")


def _write_tiffs(folder):
    def write(name, pixels, **options):
        tifffile.imwrite(folder / name, pixels, **{"photometric": "minisblack", **options})

    write("plain.tif", _GRAY, metadata=None)
    write("big.tif", _RGB, photometric="rgb", bigtiff=True, byteorder=">")
    write("lzw.tif", _RGB, photometric="rgb", compression="lzw", predictor=True, rowsperstrip=8)
    write("deflate.tif", _GRAY.astype(np.float32), compression="deflate", predictor=True, tile=(32, 32))
    write("zstd.tif", _GRAY.astype(np.uint16), compression="zstd")
    write("jpeg.tif", _RGB, photometric="rgb", compression="jpeg", tile=(32, 32))
    write("jpeg2000.tif", _RGB, photometric="rgb", compression="jpeg2000")
    write("webp.tif", _RGB, photometric="rgb", compression="webp")
    write("png.tif", _RGB, photometric="rgb", compression="png")
    write("palette.tif", _GRAY, photometric="palette", colormap=_RNG.integers(0, 65536, (3, 256), dtype=np.uint16))
    write(
        "imagej.tif", np.stack([_GRAY] * 3), photometric=None, imagej=True, resolution=(2, 2), metadata={"unit": "mm"}
    )
    write("volumetric.tif", np.stack([_GRAY] * 4), volumetric=True)
    write("ome.tif", np.stack([_GRAY] * 3), ome=True, metadata={"PhysicalSizeX": 0.5})
    with tifffile.TiffWriter(folder / "shaped.tif") as file:
        file.write(np.stack([_GRAY] * 3), photometric="minisblack", truncate=True)
    Image.fromarray(_GRAY > 127).save(folder / "fax.tif", compression="group4")


def _write_volumes(folder):
    affine = np.array([[0, -1, 0, 0], [0, 0, 2, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(_RNG.integers(-999, 999, (12, 13, 14, 2), dtype=np.int16), affine)
    image.set_qform(affine, 1)
    nibabel.save(image, folder / "int16.nii")
    (folder / "gzip.nii").write_bytes(gzip.compress((folder / "int16.nii").read_bytes()))
    nibabel.save(nibabel.Nifti2Image(_RNG.random((12, 13, 14), np.float32), affine), folder / "float32.nii")
    color = np.zeros((12, 13, 14), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(color, affine), folder / "rgb.nii")


@pytest.mark.slow  # test_fuzz.py has some of each kind for every run
def test_mutated_files_are_read_or_refused(tmp_path):
    sources, mutated = tmp_path / "sources", tmp_path / "mutated"
    sources.mkdir()
    mutated.mkdir()
    for write in (_write_images, _write_tiffs, _write_volumes):
        write(sources)
    outcomes = read_mutations(sorted(sources.iterdir()), mutated, 500)  # of each reader's files at least 2,000
    assert all(outcome["refused"] for outcome in outcomes.values()), outcomes
    # Checksums find nearly every change of a small PNG.
    assert sum(outcome["read"] > 0 for outcome in outcomes.values()) > 20, outcomes
