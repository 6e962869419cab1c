"""How DICOM says that values are shown: windows, tables, colours, padding, wherever in the file it stands."""

import numpy as np
import pydicom
import pytest
from made_files import PYDICOM_DATA, write_dicom
from pydicom.dataset import Dataset

from dexcore.data.normalize import normalize
from dexcore.data.readers import UnreadableFileError, read_file

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TWO = np.stack([RAMP, RAMP])


def item(**attributes):
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def group(macro, **attributes):
    return item(**{macro: [item(**attributes)]})


def shown(scan):
    return normalize(scan.pixels, "div255", scan.levels)


def window(center, width, **more):
    return group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=width, **more)


WINDOW = (3104.0, 3759.0)  # center 3432, width 656


@pytest.mark.parametrize(
    "place",
    [
        {"WindowCenter": 3432, "WindowWidth": 656},
        {"SharedFunctionalGroupsSequence": [window(3432, 656)]},
        {"PerFrameFunctionalGroupsSequence": [window(3432, 656)] * 2},
        {"PerFrameFunctionalGroupsSequence": [window([3432, 3451], [656, 721])] * 2},
        # The nearest to the frame is believed.
        {"WindowCenter": 1, "WindowWidth": 9, "SharedFunctionalGroupsSequence": [window(3432, 656)]},
        {
            "SharedFunctionalGroupsSequence": [window(1, 9)],
            "PerFrameFunctionalGroupsSequence": [window(3432, 656)] * 2,
        },
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_the_window_is_found_wherever_it_stands(tmp_path, place, photometric):
    scan = read_file(write_dicom(tmp_path / "a.dcm", TWO, PhotometricInterpretation=photometric, **place))
    assert scan.levels == WINDOW
    expected = ((TWO - 3104.0) / 655).clip(0, 1)
    np.testing.assert_allclose(
        shown(scan), expected if photometric == "MONOCHROME2" else 1 - expected, rtol=0, atol=1e-6
    )


def test_windows_and_slopes_of_frames_that_differ_lose_nothing_of_any(tmp_path):
    windows = [window(100, 101), window(1000, 101)]
    path = write_dicom(tmp_path / "a.dcm", TWO, PerFrameFunctionalGroupsSequence=windows)
    assert read_file(path).levels == (49.5, 1049.5)
    assert read_file(path, every=2).levels == (49.5, 1049.5)
    slopes = [group("PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=0) for slope in (1, 10)]
    scan = read_file(
        write_dicom(tmp_path / "b.dcm", TWO, BitsStored=12, HighBit=11, PerFrameFunctionalGroupsSequence=slopes)
    )
    assert scan.levels == (0, 40950)
    np.testing.assert_array_equal(scan.pixels, [RAMP, RAMP * 10.0])


@pytest.mark.parametrize(
    ("center", "width", "function", "levels"),
    [
        (2048, 4096, None, (0, 4095)),
        (2048, 4096, "LINEAR_EXACT", (0, 4096)),
        (0.25, 0.1, None, (0.2, 0.3)),  # widths below 1 have no other meaning
        (0.5, 1, "LINEAR", (0, 1)),
        (["", 500], ["", 2000], None, (-500, 1499)),
        ([40, 500], ["", 2000], None, (-500, 1499)),
        (["nan"], ["nan"], None, (0, 65535)),
        (40, 0, None, (0, 65535)),
        (40, -5, None, (0, 65535)),
        (40, 400, "MYSTERY", (-160, 239)),  # linear is what stands where nothing does
    ],
)
def test_levels_of_a_window(tmp_path, center, width, function, levels):
    attributes = {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function}
    scan = read_file(write_dicom(tmp_path / "a.dcm", RAMP, **attributes))
    np.testing.assert_allclose(scan.levels, levels)


def test_a_sigmoid_bends_what_is_shown_but_not_hounsfield_units(tmp_path):
    attributes = {"WindowCenter": 2000, "WindowWidth": 800, "VOILUTFunction": "SIGMOID"}
    scan = read_file(write_dicom(tmp_path / "a.dcm", RAMP, **attributes))
    assert scan.levels == (0, 1)
    np.testing.assert_allclose(shown(scan)[0], 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 800)), atol=1e-6)
    ct = read_file(write_dicom(tmp_path / "b.dcm", RAMP, Modality="CT", RescaleIntercept=-1024, **attributes))
    assert ct.units == "HU"
    assert ct.levels == (1600, 2400)
    np.testing.assert_array_equal(ct.pixels[0], RAMP - 1024.0)


@pytest.mark.parametrize("center", [100, 100.5])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_window_of_width_one_is_a_step(tmp_path, center, photometric):
    attributes = {"WindowCenter": center, "WindowWidth": 1, "PhotometricInterpretation": photometric}
    white = shown(read_file(write_dicom(tmp_path / "a.dcm", RAMP, **attributes)))[0]
    above = RAMP > center - 0.5  # PS3.3 C.11.2.1.2.1
    np.testing.assert_array_equal(white, above if photometric == "MONOCHROME2" else ~above)


def test_an_inverse_presentation_is_turned_over_once(tmp_path):
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        attributes = {"PhotometricInterpretation": photometric, "PresentationLUTShape": "INVERSE"}
        scan = read_file(write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, HighBit=11, **attributes))
        np.testing.assert_array_equal(scan.pixels[0], 4095 - RAMP)


def test_frames_with_and_without_a_sigmoid_are_each_as_bright_as_alone(tmp_path):
    windows = [window(2000, 800, VOILUTFunction="SIGMOID"), window(2000, 800)]
    both = read_file(write_dicom(tmp_path / "a.dcm", TWO, PerFrameFunctionalGroupsSequence=windows))
    for frame, one in zip(shown(both), windows, strict=True):
        alone = read_file(write_dicom(tmp_path / "b.dcm", TWO[:1], PerFrameFunctionalGroupsSequence=[one]))
        np.testing.assert_allclose(frame, shown(alone)[0], atol=1e-6)


def lut(count, first, bits, entries, vr="OW"):
    table = item(LUTDescriptor=[count, first, bits])
    table.add_new("LUTData", vr, entries)
    return [table]


CURVE = (np.linspace(0, 1, 401) ** 2 * 65535).astype(np.uint16)


@pytest.mark.parametrize("vr", ["OW", "US"])
def test_a_voi_table_is_applied_where_there_is_no_window(tmp_path, vr):
    table = lut(401, 100, 16, CURVE.tobytes() if vr == "OW" else CURVE.tolist(), vr)
    expected = CURVE[np.clip(RAMP.astype(int) - 100, 0, 400)] / 65535
    scan = read_file(write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=table))
    np.testing.assert_allclose(shown(scan)[0], expected, atol=1e-6)
    turned = read_file(
        write_dicom(tmp_path / "b.dcm", RAMP, VOILUTSequence=table, PhotometricInterpretation="MONOCHROME1")
    )
    np.testing.assert_allclose(shown(turned)[0], 1 - expected, atol=1e-6)
    both = read_file(write_dicom(tmp_path / "c.dcm", RAMP, VOILUTSequence=table, WindowCenter=3432, WindowWidth=656))
    assert both.levels == WINDOW
    per_frame = [item(FrameVOILUTSequence=[item(VOILUTSequence=table)])]
    enhanced = read_file(write_dicom(tmp_path / "d.dcm", RAMP[None], PerFrameFunctionalGroupsSequence=per_frame))
    np.testing.assert_allclose(shown(enhanced)[0], expected, atol=1e-6)


@pytest.mark.parametrize(("vr", "first"), [("US", 65536 - 200), ("SS", -200)])
def test_a_voi_table_starts_below_zero_whatever_the_sign_it_is_written_with(tmp_path, vr, first):
    stored = (RAMP.astype(np.int16) - 2048)[30:34]
    table = lut(401, 0, 16, CURVE.tobytes())
    table[0].add_new("LUTDescriptor", vr, [401, first, 16])
    scan = read_file(write_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=table))
    np.testing.assert_array_equal(scan.pixels[0], CURVE[np.clip(stored.astype(int) + 200, 0, 400)])


@pytest.mark.parametrize(("vr", "first"), [("US", 65536 - 2048), ("SS", -2048)])
def test_a_voi_table_of_values_that_the_rescale_brings_below_zero(tmp_path, vr, first):
    curve = (np.arange(4096) * 16).astype(np.uint16)
    table = lut(4096, 0, 16, curve.tobytes())
    table[0].add_new("LUTDescriptor", vr, [4096, first, 16])
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -2048, "BitsStored": 12, "HighBit": 11}
    scan = read_file(write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=table, **rescale))
    np.testing.assert_array_equal(scan.pixels[0], curve[RAMP])


def test_of_several_voi_tables_the_first_that_is_whole_is_applied(tmp_path):
    tables = [item(LUTExplanation="nothing"), *lut(401, 100, 16, CURVE.tobytes()), *lut(401, 9, 16, CURVE.tobytes())]
    scan = read_file(write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=tables))
    np.testing.assert_array_equal(scan.pixels[0], CURVE[np.clip(RAMP.astype(int) - 100, 0, 400)])


def test_a_broken_table_is_named(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=lut(4096, 0, 16, CURVE.tobytes()))
    with pytest.raises(UnreadableFileError, match=r"LUTData has 802 entries, its descriptor says 4096"):
        read_file(path)


def palette(bits, entries, big=False, **more):
    colors = {}
    for index, color in enumerate(("Red", "Green", "Blue")):
        colors[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        colors[f"{color}PaletteColorLookupTableData"] = entries[index]
    return {"PhotometricInterpretation": "PALETTE COLOR", **colors, **more}


INDEX = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2])


@pytest.mark.parametrize(
    ("bits", "scale", "dtype", "white"),
    [
        (8, 1, np.uint8, 255),
        (8, 1, np.uint16, 255),  # entries of 8 bits in words
        (16, 1, np.uint16, 255),  # the same, and a descriptor that says 16
        (16, 257, np.uint16, 65535),
        (16, 256, np.uint16, 65535),
    ],
)
def test_palettes_of_any_depth_are_as_bright(tmp_path, bits, scale, dtype, white):
    entries = [(channel * scale).astype(dtype).tobytes() for channel in RGB]
    scan = read_file(write_dicom(tmp_path / "a.dcm", INDEX, **palette(bits, entries)))
    assert scan.levels == (0, white)
    np.testing.assert_array_equal(scan.pixels[0].reshape(256, 3), RGB.T * scale)
    np.testing.assert_allclose(shown(scan).max(), 255 * scale / white)


def test_gray_with_colours_above_it_is_refused_rather_than_all_white(tmp_path):
    for presentation in ("COLOR", "MIXED"):
        path = write_dicom(tmp_path / "a.dcm", RAMP, PixelPresentation=presentation, WindowCenter=500, WindowWidth=999)
        with pytest.raises(UnreadableFileError, match="supplemental palette"):
            read_file(path)
    for attributes in ({"Modality": "CT"}, {"Modality": "PT", "Units": "GML"}):
        measured = write_dicom(tmp_path / "a.dcm", RAMP, PixelPresentation="MIXED", **attributes)
        np.testing.assert_array_equal(read_file(measured).pixels[0], RAMP)
    plain = write_dicom(tmp_path / "a.dcm", RAMP, PixelPresentation="MONOCHROME")
    np.testing.assert_array_equal(read_file(plain).pixels[0], RAMP)


def test_a_segmented_palette_is_expanded_in_either_byte_order(tmp_path):
    little, big = (read_file(PYDICOM_DATA / f"gdcm-US-ALOKA-16{end}.dcm") for end in ("", "_big"))
    np.testing.assert_array_equal(little.pixels, big.pixels)
    # A line from 0 to 200 in 101 steps, then its copy, then one value.
    codes = [0, 1, 0, 1, 100, 200, 2, 2, 0, 0, 0, 0, 0, 1, 7]
    tables = {f"Segmented{color}PaletteColorLookupTableData": bytes([*codes, 0]) for color in ("Red", "Green", "Blue")}
    tables |= {f"{color}PaletteColorLookupTableDescriptor": [203, 0, 8] for color in ("Red", "Green", "Blue")}
    path = write_dicom(tmp_path / "a.dcm", INDEX, PhotometricInterpretation="PALETTE COLOR", **tables)
    line = np.arange(0, 201, 2)
    expected = np.concatenate([line, line, [7] * (256 - 202)])
    np.testing.assert_array_equal(read_file(path).pixels[0, ..., 0].ravel(), expected)


@pytest.mark.parametrize(("bits", "rubbish"), [(12, 0), (12, 0x5000), (8, 0xAB00), (10, 0xFC00)])
def test_rgb_has_the_levels_of_its_stored_bits_and_no_rubbish_above(tmp_path, bits, rubbish):
    stored = (np.arange(192, dtype=np.uint16).reshape(8, 8, 3) * 21) % (1 << bits)
    stored[0, 0] = (1 << bits) - 1
    attributes = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    size = {"Rows": 8, "Columns": 8, "BitsAllocated": 16, "BitsStored": bits, "HighBit": bits - 1}
    data = (stored | np.uint16(rubbish)).tobytes()
    path = write_dicom(tmp_path / "a.dcm", stored[..., 0], **attributes, **size, PixelData=data)
    scan = read_file(path)
    assert scan.levels == (0, (1 << bits) - 1)
    np.testing.assert_array_equal(scan.pixels[0], stored)
    assert shown(scan).max() == 1


def test_ybr_becomes_rgb_also_where_the_header_says_422_of_pixels_that_are_whole(tmp_path):
    ybr = np.full((4, 4, 3), (100, 128, 200), np.uint8)
    attributes = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "Rows": 4, "Columns": 4, "BitsAllocated": 8}
    bits = {"BitsStored": 8, "HighBit": 7}
    half = np.tile(np.array([100, 100, 128, 200], np.uint8), 8)  # two Y for each pair of the others
    for name, data in (("YBR_FULL", ybr), ("YBR_FULL_422", ybr), ("YBR_FULL_422", half)):
        path = write_dicom(
            tmp_path / "a.dcm",
            ybr[..., 0],
            **attributes,
            **bits,
            PhotometricInterpretation=name,
            PixelData=data.tobytes(),
        )
        np.testing.assert_array_equal(read_file(path).pixels, np.full((1, 4, 4, 3), (201, 49, 100)))


def test_ybr_of_eight_bits_may_be_allocated_sixteen(tmp_path):
    ybr = np.full((4, 4, 3), (100, 128, 200), np.uint16)
    size = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "Rows": 4, "Columns": 4, "BitsAllocated": 16}
    path = write_dicom(
        tmp_path / "a.dcm",
        ybr[..., 0],
        **size,
        BitsStored=8,
        HighBit=7,
        PhotometricInterpretation="YBR_FULL",
        PixelData=ybr.tobytes(),
    )
    np.testing.assert_array_equal(read_file(path).pixels, np.full((1, 4, 4, 3), (201, 49, 100)))


def test_frames_of_single_bits_may_begin_within_a_byte(tmp_path):
    stored = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    bits = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    data = np.packbits(stored.ravel(), bitorder="little").tobytes()
    scan = read_file(write_dicom(tmp_path / "a.dcm", stored, **bits, PixelData=data))
    np.testing.assert_array_equal(scan.pixels, stored)
    assert scan.levels == (0, 1)


def test_stored_bits_may_lie_above_others(tmp_path):
    stored = np.array([[1, 2], [3, 4095]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored << 4 | 5, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read_file(path).pixels[0], stored)
    signed = write_dicom(tmp_path / "b.dcm", (stored & 0xFFF).view(np.int16), BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_file(signed).pixels[0], [[1, 2], [3, -1]])


@pytest.mark.parametrize(
    ("dtype", "bits", "padding", "vr", "value"),
    [
        (np.int16, 16, -2000, "SS", -2000),
        (np.int16, 16, -2000, "US", 63536),  # written with the other sign
        (np.int16, 12, -2000, "US", 2096),  # and with the stored bits alone
        (np.uint16, 16, 63536, "SS", -2000),
        (np.uint16, 12, 63536, "US", 63536),  # more bits than are stored
        (np.uint8, 8, 255, "US", 255),
    ],
)
def test_padding_is_found_whatever_its_sign(tmp_path, dtype, bits, padding, vr, value):
    stored = np.array([[padding, 20, 30], [40, 50, padding]]).astype(dtype)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=bits, HighBit=bits - 1)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", vr, value)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_file(path).pixels[0], [[20, 20, 30], [40, 50, 20]])


@pytest.mark.parametrize("kind", ["Float", "DoubleFloat"])
def test_padding_of_floats_is_found_alone_and_as_a_range(tmp_path, kind):
    dtype = np.float32 if kind == "Float" else np.float64
    stored = np.array([[-3e38, 0.5, 1.5], [2.5, -2e38, 3.5]], dtype)
    values = {f"{kind}PixelPaddingValue": float(stored[0, 0])}
    path = write_dicom(tmp_path / "a.dcm", RAMP[:2, :3], **values)

    def as_floats():
        dataset = pydicom.dcmread(path)
        del dataset.PixelData
        setattr(dataset, f"{kind}PixelData", stored.tobytes())
        dataset.BitsAllocated = 8 * stored.itemsize
        dataset.save_as(path)
        return read_file(path).pixels[0]

    np.testing.assert_allclose(as_floats(), [[-2e38, 0.5, 1.5], [2.5, -2e38, 3.5]], rtol=1e-6)
    path = write_dicom(tmp_path / "b.dcm", RAMP[:2, :3], **values, **{f"{kind}PixelPaddingRangeLimit": -1e38})
    np.testing.assert_array_equal(as_floats(), [[0.5, 0.5, 1.5], [2.5, 0.5, 3.5]])
    values[f"{kind}PixelPaddingRangeLimit"] = -np.inf
    path = write_dicom(tmp_path / "c.dcm", RAMP[:2, :3], **(values | {f"{kind}PixelPaddingValue": -1e38}))
    np.testing.assert_array_equal(as_floats(), [[0.5, 0.5, 1.5], [2.5, 0.5, 3.5]])


def test_doubles_that_float32_cannot_hold_are_refused_as_such(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP[:2, :3])
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.DoubleFloatPixelData = (np.arange(6.0) * 1e300).tobytes()
    dataset.BitsAllocated = 64
    dataset.save_as(path)
    with pytest.raises(UnreadableFileError, match=r"values beyond 3\.4e38"):
        read_file(path)
    path = write_dicom(tmp_path / "b.dcm", RAMP, RescaleSlope="1e38", RescaleIntercept=0)
    with pytest.raises(UnreadableFileError, match=r"values beyond 3\.4e38"):
        read_file(path)


def test_a_file_of_padding_alone_is_refused(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.full((3, 4), 7, np.uint16), PixelPaddingValue=7)
    with pytest.raises(UnreadableFileError, match="every pixel is padding"):
        read_file(path)


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1)),
        ({"PixelAspectRatio": [2, 1]}, (2, 1)),
        ({"PixelAspectRatio": [1, 2]}, (1, 2)),
        ({"PixelAspectRatio": [3, 2], "PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"SharedFunctionalGroupsSequence": [group("PixelMeasuresSequence", PixelSpacing=[3, 4])]}, (3, 4)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": None}, None),
        ({}, None),
    ],
)
def test_the_distance_between_pixels_travels_with_the_scan(tmp_path, attributes, spacing):
    assert read_file(write_dicom(tmp_path / "a.dcm", RAMP, **attributes)).spacing == spacing


def test_only_a_ct_whose_values_are_rescaled_has_hounsfield_units(tmp_path):
    def units(**attributes):
        return read_file(write_dicom(tmp_path / "a.dcm", RAMP, **attributes)).units

    assert units(Modality="CT", RescaleSlope=1, RescaleIntercept=-1024) == "HU"
    assert units(Modality="CT", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="US") is None
    assert units(Modality="CT") is None
    assert units(Modality="MR", RescaleSlope=1, RescaleIntercept=0) is None
