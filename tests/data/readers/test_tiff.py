"""TIFF: every sample format, compression, page type and colour, made by tifffile, Pillow or byte by byte."""

import contextlib
import struct
import sys
import tracemalloc
import zlib
from itertools import product

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from dexcore.data.normalize import normalize
from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.scan import MAX_FRAME_PIXELS
from dexcore.extras import MissingExtraError

_RNG = np.random.default_rng(0)
_GRAY = _RNG.integers(0, 256, (32, 48), dtype=np.uint8)
_GRAY_16 = _RNG.integers(0, 65536, (32, 48), dtype=np.uint16)
_RGB = _RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)
_RGB_16 = _RNG.integers(0, 65536, (32, 48, 3), dtype=np.uint16)
_TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


def _write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **{"metadata": None, "photometric": "minisblack", **options})
    return path


def _tags(width, height, bits, photometric=1, **others):
    named = {"samples": 277, "rows": 278, "compression": 259, "palette": 320, "extra": 338, "format": 339}
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 278: height}
    return tags | {named.get(name, name): value for name, value in others.items()}


def _raw(path, strips, tags, order="<", counts=None):
    """A TIFF of one directory from its strips and tags (numbers of 16 or 32 bits, or text)."""
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    offsets = []
    for strip in strips:
        offsets.append(len(content))
        content += strip
    tags = dict(tags) | {273: offsets, 279: counts or [len(strip) for strip in strips]}
    entries = b""
    for tag, value in sorted((tag, value) for tag, value in tags.items() if value is not None):
        values = value if isinstance(value, list | bytes) else [value]
        code, kind = ("B", 2) if tag == 270 else ("I", 4) if tag in (256, 257, 273, 278, 279) else ("H", 3)
        code, kind = ("I", 5) if tag == 532 else (code, kind)  # ratios
        count = len(values) // 2 if kind == 5 else len(values)
        data = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(data) > 4:
            entries += struct.pack(f"{order}HHII", tag, kind, count, len(content))
            content += data
        else:
            entries += struct.pack(f"{order}HHI", tag, kind, count) + data.ljust(4, b"\0")
    struct.pack_into(f"{order}I", content, 4, len(content))
    content += struct.pack(f"{order}H", len(entries) // 12) + entries + bytes(4)
    path.write_bytes(content)
    return path


def _read(path, **options):
    return read_file(path, **options).pixels


# Sample formats


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", _TYPES)
def test_every_sample_format_keeps_its_values_in_both_byte_orders(tmp_path, kind, order):
    ends = np.finfo(kind) if kind.startswith("f") else np.iinfo(kind)
    pixels = np.array([[ends.min, 0, 1], [2, 3, ends.max]], kind)
    scan = read_file(_write(tmp_path / "a.tif", pixels, byteorder=order))
    assert scan.pixels.dtype == np.dtype(kind)
    np.testing.assert_array_equal(scan.pixels[0], pixels)
    short = np.dtype(kind).itemsize <= 2 and kind[0] != "f"
    assert scan.levels == ((float(ends.min), float(ends.max)) if short else None)
    if kind[0] == "u":
        np.testing.assert_allclose(normalize(scan.pixels[0], "div255", scan.levels)[[0, 1], [0, 2]], [0, 1])


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14, 24])
def test_odd_depths_have_the_levels_of_their_bits(tmp_path, bits):
    values = [(1 << bits) - 1, 0, (1 << bits) // 2, 1] * 6
    packed = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8, "big")
    scan = read_file(_raw(tmp_path / "a.tif", [packed], _tags(24, 1, bits)))
    if bits == 1:
        values = [255 * value for value in values]
    np.testing.assert_array_equal(scan.pixels[0, 0], values)
    assert scan.levels == (0.0, 255.0 if bits == 1 else float((1 << bits) - 1))
    np.testing.assert_allclose(normalize(scan.pixels, "div255", scan.levels).max(), 1)


def test_bigtiff_tiles_and_planes_of_colour_read_as_the_plain_file(tmp_path):
    for number, options in enumerate(
        [{"bigtiff": True}, {"tile": (16, 16)}, {"planarconfig": "separate"}, {"rowsperstrip": 5}, {"byteorder": ">"}]
    ):
        planar = "planarconfig" in options
        pixels = np.moveaxis(_RGB_16, -1, 0) if planar else _RGB_16
        path = _write(tmp_path / f"{number}.tif", pixels, photometric="rgb", **options)
        np.testing.assert_array_equal(_read(path)[0], _RGB_16)
        assert read_file(path).levels == (0.0, 65535.0)


_ARGUMENTS = {"webp": {"level": 100, "lossless": True}, "jpeg2000": {"level": 0, "reversible": True}}


@pytest.mark.parametrize(
    ("compression", "predictor"),
    [*product(["lzw", "deflate", "zstd", "lzma"], [None, True]), *product(["packbits", "png", *_ARGUMENTS], [None])],
)
def test_lossless_compressions_give_their_pixels(tmp_path, compression, predictor):
    options = {"compression": compression, "compressionargs": _ARGUMENTS.get(compression), "predictor": predictor}
    np.testing.assert_array_equal(_read(_write(tmp_path / "a.tif", _RGB, photometric="rgb", **options))[0], _RGB)


def test_fax_is_black_on_white(tmp_path):
    black = _GRAY > 200
    for compression in ("group4", "group3", "tiff_ccitt"):
        Image.fromarray(~black).save(tmp_path / "a.tif", compression=compression)
        np.testing.assert_array_equal(_read(tmp_path / "a.tif")[0], np.where(black, 0, 255))


# Orientation, white, colour, transparency


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("pixels", [_GRAY, _GRAY_16, _RGB_16, _GRAY.astype(np.float32)], ids=lambda p: str(p.dtype))
def test_orientation_is_applied(tmp_path, pixels, compression):
    shown = [
        pixels,
        pixels[:, ::-1],
        pixels[::-1, ::-1],
        pixels[::-1],
        pixels.swapaxes(0, 1),
        np.rot90(pixels, -1),
        pixels[::-1, ::-1].swapaxes(0, 1),
        np.rot90(pixels, 1),
    ]
    for orientation, expected in enumerate([pixels, *shown, pixels]):  # 0 and 9 are no orientations
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        tag = [(274, "H", 1, orientation, True)]
        path = _write(tmp_path / "a.tif", pixels, compression=compression, photometric=photometric, extratags=tag)
        np.testing.assert_array_equal(_read(path)[0], expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_white_is_zero_is_turned_over_at_every_depth(tmp_path, order):
    for pixels, expected in [
        (_GRAY, 255 - _GRAY),
        (_GRAY_16, 65535 - _GRAY_16),
        (_GRAY_16.astype(np.uint32), np.uint32(2**32 - 1) - _GRAY_16),
        (_GRAY.view(np.int8), -1 - _GRAY.view(np.int8)),
    ]:
        path = _write(tmp_path / "a.tif", pixels, photometric="miniswhite", byteorder=order)
        assert _read(path).dtype == pixels.dtype
        np.testing.assert_array_equal(_read(path)[0], expected)


def test_floats_where_white_is_small_are_turned_over_about_their_ends(tmp_path):
    pixels = np.array([[[0, 0.25], [0.5, np.nan]], [[0.75, 1], [0.5, 0.5]]], np.float32)
    path = _write(tmp_path / "a.tif", pixels, photometric="miniswhite")
    np.testing.assert_allclose(_read(path), [[[1, 0.75], [0.5, 0]], [[0.25, 0], [0.5, 0.5]]])


def test_a_missing_photometric_interpretation_is_black_is_zero_or_rgb(tmp_path):
    gray = _raw(tmp_path / "a.tif", [bytes([0, 9, 200])], _tags(3, 1, 8, None))
    np.testing.assert_array_equal(_read(gray)[0], [[0, 9, 200]])
    rgb = _raw(tmp_path / "b.tif", [bytes([1, 2, 3])], _tags(1, 1, [8, 8, 8], None, samples=3))
    np.testing.assert_array_equal(_read(rgb)[0], [[[1, 2, 3]]])


def test_a_palette_becomes_colour_of_the_palettes_depth(tmp_path):
    palette = _RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    path = _write(tmp_path / "a.tif", _GRAY, photometric="palette", colormap=palette)
    scan = read_file(path)
    assert scan.levels == (0.0, 65535.0)
    np.testing.assert_array_equal(scan.pixels[0], np.moveaxis(palette[:, _GRAY], 0, -1))
    for scaled in (257, 256, 1):  # as the specification says, by a shift, and not at all
        path = _write(tmp_path / "a.tif", _GRAY, photometric="palette", colormap=(palette >> 8) * np.uint16(scaled))
        scan = read_file(path)
        assert scan.pixels.dtype == np.uint8
        np.testing.assert_array_equal(scan.pixels[0], np.moveaxis(palette[:, _GRAY] >> 8, 0, -1))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_colours_is_as_bright_as_one_of_many(tmp_path, bits):
    palette = _RNG.integers(0, 256, (3, 1 << bits))
    row = bytes([0b11100100])  # 1 1 1 0 0 1 0 0, or 3 2 1 0, or 14 4
    indices = {1: [1, 1, 1, 0, 0, 1, 0, 0], 2: [3, 2, 1, 0], 4: [14, 4]}[bits]
    tags = _tags(len(indices), 1, bits, 3, palette=(palette * 257).ravel().tolist())
    scan = read_file(_raw(tmp_path / "a.tif", [row], tags))
    assert scan.levels == (0, 255)
    np.testing.assert_array_equal(scan.pixels[0, 0], palette.T[indices])


def test_alpha_behind_a_palette_is_laid_over_black(tmp_path):
    palette = np.tile(np.arange(256) * 257, 3).tolist()
    tags = _tags(2, 1, [8, 8], 3, samples=2, palette=palette, extra=2)
    scan = read_file(_raw(tmp_path / "a.tif", [bytes([200, 255, 200, 51])], tags))
    np.testing.assert_array_equal(scan.pixels[0, 0], [[200] * 3, [40] * 3])


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("color", [False, True], ids=["gray", "RGB"])
def test_alpha_is_laid_over_black_at_full_depth(tmp_path, kind, color):
    opaque = 1 if kind == "float32" else np.iinfo(kind).max
    pixels = (_RNG.random((32, 48, 4 if color else 2)) * opaque).astype(kind)
    pixels[:, :9, -1], pixels[:, 9:18, -1] = 0, opaque
    colour = (pixels[..., :3] if color else pixels[..., 0]).astype(np.float64)
    options = {"photometric": "rgb" if color else "minisblack", "planarconfig": "contig"}
    for extra, expected in [
        ("unassalpha", colour * (pixels[..., 3:] if color else pixels[..., 1]) / opaque),
        ("assocalpha", colour),  # multiplied already
        ("unspecified", colour),
    ]:
        scan = read_file(_write(tmp_path / "a.tif", pixels, extrasamples=[extra], **options))
        assert scan.pixels.dtype == np.dtype(kind)
        np.testing.assert_allclose(scan.pixels[0], expected, atol=1e-6 if kind == "float32" else 0.5)


def test_cmyk_becomes_rgb_at_full_depth(tmp_path):
    cmyk = _RNG.integers(0, 256, (32, 48, 4), dtype=np.uint8)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    expected = np.asarray(Image.open(tmp_path / "a.tif").convert("RGB"))
    assert np.abs(_read(tmp_path / "a.tif")[0].astype(int) - expected).max() <= 1
    path = _write(tmp_path / "b.tif", np.array([[[0, 65535, 32768, 0]]], np.uint16), photometric="separated")
    np.testing.assert_array_equal(_read(path)[0], [[[65535, 0, 32767]]])


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_in_tiff_becomes_rgb(tmp_path, subsampling):
    smooth = np.dstack([np.add.outer(np.arange(64), np.arange(64)), np.full((64, 64), 60), np.full((64, 64), 200)])
    smooth = smooth.astype(np.uint8)
    path = _write(
        tmp_path / "a.tif", smooth, photometric="rgb", compression="jpeg", subsampling=subsampling, tile=(32, 32)
    )
    assert np.abs(_read(path)[0].astype(int) - smooth).max() < 12


def test_ycbcr_without_jpeg_becomes_rgb_or_is_refused(tmp_path):
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    tags = _tags(4, 1, [8, 8, 8], 6, samples=3)
    path = _raw(tmp_path / "a.tif", [ycbcr.tobytes()], {**tags, 530: [1, 1]})
    assert np.abs(_read(path)[0].astype(int) - rgb).max() <= 2
    video = np.round((ycbcr - (0.0, 128, 128)) * (219 / 255, 224 / 255, 224 / 255) + (16, 128, 128)).astype(np.uint8)
    reference = [value for end in (16, 235, 128, 240, 128, 240) for value in (end, 1)]  # ReferenceBlackWhite
    path = _raw(tmp_path / "a.tif", [video.tobytes()], {**tags, 530: [1, 1], 532: reference})
    assert np.abs(_read(path)[0].astype(int) - rgb).max() <= 3
    with pytest.raises(UnreadableFileError, match="subsampled YCbCr"):
        read_file(_raw(tmp_path / "b.tif", [ycbcr.tobytes()], {**tags, 530: [2, 2]}))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (_tags(2, 1, 8, 32803), "PhotometricInterpretation 32803"),
        (_tags(2, 1, 8, 4), "PhotometricInterpretation 4"),
        (
            _tags(1, 1, [8, 8], 2, samples=2),
            "2 samples a pixel under PhotometricInterpretation 2, expected 3 and alpha",
        ),
        (_tags(1, 1, [8, 8, 8], 1, samples=3), "3 samples a pixel"),
        (_tags(1, 1, [5, 6, 5], 2, samples=3), r"samples of \(5, 6, 5\) bits, expected one depth"),
        (_tags(1, 1, 64, format=6), "sample format 6"),
        (_tags(1, 1, 7, format=3), "sample format 3 of 7 bits"),
        (_tags(2, 1, 8, 3), "no palette of 256 colours"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_tags(tmp_path, tags, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(_raw(tmp_path / "a.tif", [bytes(16)], tags))


# Pages and stacks


def test_one_page_in_two_is_read(tmp_path):
    stack = _RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8)
    scan = read_file(_write(tmp_path / "a.tif", stack), every=2)
    np.testing.assert_array_equal(scan.pixels, stack[::2])
    assert scan.frames == (0, 2, 4)


def test_reduced_pages_and_masks_are_left_out(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for pixels, kind in [(_GRAY[::4, ::4], 1), (_GRAY, 0), (_GRAY > 9, 4), (_GRAY[::2, ::2], 1), (_GRAY, 0)]:
            file.write(pixels, subfiletype=kind, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(_read(tmp_path / "a.tif"), [_GRAY, _GRAY])


def test_a_lone_page_is_read_also_where_it_calls_itself_reduced(tmp_path):
    np.testing.assert_array_equal(_read(_write(tmp_path / "a.tif", _GRAY, subfiletype=1))[0], _GRAY)


def _pages(path, *pages):
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, photometric="rgb" if page.shape[-1] == 3 else "minisblack", metadata=None)
    return path


def test_a_preview_that_does_not_say_so_is_left_out(tmp_path):
    path = _pages(tmp_path / "a.tif", _RGB[::4, ::4], _GRAY_16, _GRAY_16 // 2)
    np.testing.assert_array_equal(_read(path), [_GRAY_16, _GRAY_16 // 2])


@pytest.mark.parametrize(
    ("pages", "named"),
    [
        ([_GRAY, _GRAY_16], "page 1 of 32 x 48 px, 1 x uint16, expected the size and type of page 0"),
        ([_GRAY, _RGB], "page 1 of 32 x 48 px, 3 x uint8"),
        ([_GRAY, _GRAY[:16]], "page 1 of 16 x 48 px"),
        ([_GRAY, _GRAY[::2, ::2], _GRAY[::2, ::2]], "page 1 of 16 x 24 px"),  # more of them than of the full ones
    ],
)
def test_pages_that_differ_are_refused_by_number(tmp_path, pages, named):
    with pytest.raises(UnreadableFileError, match=named):
        read_file(_pages(tmp_path / "a.tif", *pages))


_STACK = _RNG.integers(0, 65536, (6, 8, 9), dtype=np.uint16)


def _shorter(path):
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_behind_one_directory_are_all_read(tmp_path, order):
    """As ImageJ writes stacks of more than 4 GB, and tifffile where it is asked to."""
    with tifffile.TiffWriter(tmp_path / "a.tif", byteorder=order) as file:
        file.write(_STACK, photometric="minisblack", truncate=True)
    tags = {**_tags(9, 8, 16), 270: b"ImageJ=1.53\nimages=6\nslices=6\n"}
    _raw(tmp_path / "b.tif", [_STACK.astype(order + "u2").tobytes()], tags, order, counts=[144])
    for path in (tmp_path / "a.tif", tmp_path / "b.tif"):
        with tifffile.TiffFile(path) as file:
            assert len(file.pages) == 1
        np.testing.assert_array_equal(_read(path), _STACK)
        np.testing.assert_array_equal(_read(path, every=4), _STACK[::4])


def test_a_metamorph_stack_gives_its_planes(tmp_path):
    """Its tags UIC1 and UIC2: six planes of 144 bytes behind a strip of one."""
    content = bytearray(b"II*\0" + bytes(4) + _STACK.tobytes())
    uic2 = len(content)
    content += struct.pack("<36I", *[1, 1, 2451545, 0, 2451545, 0] * 6) + bytes(8)
    tags = [(256, 4, 1, 9), (257, 4, 1, 8), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(278, 4, 1, 8), (279, 4, 1, 144), (33628, 4, 1, uic2 + 144), (33629, 5, 6, uic2)]
    struct.pack_into("<I", content, 4, len(content))
    content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    (tmp_path / "a.stk").write_bytes(content)
    np.testing.assert_array_equal(_read(tmp_path / "a.stk"), _STACK)


def test_planes_that_are_missing_are_counted(tmp_path):
    tags = {**_tags(9, 8, 16), 270: b"ImageJ=1.53\nimages=600\n"}
    path = _raw(tmp_path / "a.tif", [_STACK[:4].tobytes()], tags, counts=[144])
    with pytest.raises(UnreadableFileError, match=r"counts 600 planes, the file holds [45]"):
        read_file(path)
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        for plane in _STACK[:2]:
            file.write(plane, photometric="minisblack", description="ImageJ=1.53\nimages=6\n", metadata=None)
    with pytest.raises(UnreadableFileError, match="counts 6 planes, the file holds 2"):
        read_file(tmp_path / "b.tif")


def test_an_imagej_stack_of_a_page_a_plane_is_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", _STACK, imagej=True)
    np.testing.assert_array_equal(_read(tmp_path / "a.tif"), _STACK)


@pytest.mark.parametrize("tile", [None, (4, 16, 16)])
def test_a_volumetric_file_gives_its_planes(tmp_path, tile):
    volume = _RNG.integers(0, 256, (6, 32, 48), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", volume, volumetric=True, tile=tile, photometric="minisblack")
    np.testing.assert_array_equal(_read(tmp_path / "a.tif", every=2), volume[::2])


def test_ome_tiff_is_read_with_its_physical_size_and_no_other_file(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        _STACK,
        metadata={"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"},
    )
    scan = read_file(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(scan.pixels, _STACK)
    np.testing.assert_allclose(scan.spacing, (0.25e-3, 0.5e-3))


def test_imagejs_calibration_of_signed_values_is_applied(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", _GRAY_16, imagej=True, metadata={"cf": 0, "c0": -32768.0, "c1": 1.0})
    scan = read_file(tmp_path / "a.tif")
    np.testing.assert_array_equal(scan.pixels[0], _GRAY_16.astype(np.float32) - 32768)
    assert scan.levels == (-32768.0, 32767.0)


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "mm"}}, (0.5, 0.25)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "um"}}, (0.5e-3, 0.25e-3)),
        ({"imagej": True, "resolution": (4, 2), "metadata": {"unit": "pixel"}}, None),
        ({"imagej": True}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (300, 300), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (4, 2), "resolutionunit": "MILLIMETER"}, (0.5, 0.25)),
        ({"resolution": (0, 0), "resolutionunit": "MILLIMETER"}, None),
        ({}, None),
    ],
)
def test_a_resolution_is_a_spacing_only_where_it_means_a_physical_size(tmp_path, options, spacing):
    tifffile.imwrite(tmp_path / "a.tif", _GRAY_16, photometric="minisblack", **options)
    found = read_file(tmp_path / "a.tif").spacing
    assert found == spacing if spacing is None else np.testing.assert_allclose(found, spacing) is None


# Files that lie


def test_a_size_over_the_limit_is_refused_before_memory_is_taken(tmp_path):
    for number, tags in enumerate(
        [
            _tags(65536, 65536, 8),
            _tags(8192, 8193, 8, compression=8),
            _tags(8192, 8192, 16, compression=8),  # of so few bytes
            {**_tags(8, 8, 8, compression=8), 322: 65535, 323: 65535, 324: 8, 325: 8},
        ]
    ):
        path = _raw(tmp_path / f"{number}.tif", [zlib.compress(bytes(64))], tags)
        tracemalloc.start()
        try:
            with pytest.raises(UnreadableFileError, match="expected at most"):
                read_file(path)
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
    assert MAX_FRAME_PIXELS == 8192 * 8192


def test_a_strip_that_inflates_to_more_than_it_declares_takes_no_memory(tmp_path):
    bomb = zlib.compress(bytes(300 << 20), 1)
    path = _raw(tmp_path / "a.tif", [bomb], _tags(64, 64, 8, compression=8))
    tracemalloc.start()
    try:
        with contextlib.suppress(UnreadableFileError):
            assert _read(path).shape == (1, 64, 64)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_an_old_subfile_type_tells_a_reduced_page_too(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for pixels, kind in [(_GRAY, 1), (_GRAY[::2, ::2], 2)]:
            tag = [(255, "H", 1, kind, True)]
            file.write(pixels, extratags=tag, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(_read(tmp_path / "a.tif"), [_GRAY])


@pytest.mark.parametrize("compression", [7, 34712, 34933], ids=["JPEG", "JPEG 2000", "PNG"])
def test_a_stream_larger_than_its_strip_is_refused_before_it_is_decoded(tmp_path, compression):
    large = np.zeros((256, 256), np.uint8)
    encode = {7: imagecodecs.jpeg_encode, 34712: imagecodecs.jpeg2k_encode, 34933: imagecodecs.png_encode}[compression]
    path = _raw(tmp_path / "a.tif", [encode(large)], _tags(64, 64, 8, compression=compression))
    with pytest.raises(UnreadableFileError, match="a stream of 256 x 256 pixels, its strips or tiles have 64 x 64"):
        read_file(path)


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, compression, share):
    pixels = np.tile(_GRAY, (3, 3))
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:  # the directory comes first: what is cut off is pixels
        file.write(pixels, photometric="minisblack", compression=compression, rowsperstrip=8, metadata=None)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnreadableFileError):
        read_file(path)


def test_a_tag_that_cannot_be_read_is_not_left_out(tmp_path):
    path = _raw(tmp_path / "a.tif", [bytes(48 * 32 * 2)], _tags(48, 32, 16))
    data = path.read_bytes()
    entry = data.index(struct.pack("<HHI", 258, 3, 1))
    path.write_bytes(data[: entry + 2] + struct.pack("<H", 99) + data[entry + 4 :])  # a type that there is not
    with pytest.raises(UnreadableFileError, match="page 0 has tags that cannot be read: 258"):
        read_file(path)


def test_a_jpeg_stream_that_is_cut_short_is_no_gray(tmp_path):
    tags = _tags(48, 32, 8, compression=7)
    stream = imagecodecs.jpeg_encode(_GRAY)
    assert _read(_raw(tmp_path / "a.tif", [stream], tags)).shape == (1, 32, 48)
    with pytest.raises(UnreadableFileError, match="cut short"):
        read_file(_raw(tmp_path / "b.tif", [stream[:-300]], tags))


def test_a_strip_that_is_missing_is_no_black(tmp_path):
    tags = _tags(8, 8, 8, compression=8, rows=4)
    strips = [zlib.compress(bytes([200]) * 32), zlib.compress(bytes([200]) * 32)]
    assert (_read(_raw(tmp_path / "a.tif", strips, tags)) == 200).all()
    with pytest.raises(UnreadableFileError, match="1 whole strips or tiles, expected 2"):
        read_file(_raw(tmp_path / "b.tif", strips, tags, counts=[len(strips[0]), 0]))
    with pytest.raises(UnreadableFileError, match="1 whole strips or tiles, expected 2"):
        read_file(_raw(tmp_path / "c.tif", strips[:1], tags))


@pytest.mark.parametrize("package", ["tifffile", "imagecodecs"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    path = _write(tmp_path / "a.tif", _GRAY)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} .* pip install 'dexcore\[data\]'"):
        read_file(path)
