import math
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from dexcore.data.feed.augment import Augmentation, augment, draw, to_tensor
from dexcore.data.feed.keyed import Stream, generator
from dexcore.view import Box, center, warp


def textured(height: int, width: int, channels: int | None = 3) -> np.ndarray:
    """A smooth random texture, float32 in [0, 1], without any symmetry."""
    noise = torch.randn(1, 3, height // 12, width // 12, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0]
    image = (0.5 + 0.18 * smooth).clamp(0, 1).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(image if channels else image[..., 0])


def torchvision_chain(image: np.ndarray, box: Box, size: int, flip: bool, angle: float) -> np.ndarray:
    tensor = torch.from_numpy(image)
    tensor = tensor[None] if image.ndim == 2 else tensor.permute(2, 0, 1)
    tensor = reference.resized_crop(tensor, *box, [size, size], antialias=True)
    if flip:
        tensor = reference.horizontal_flip(tensor)
    if angle:
        tensor = reference.rotate(tensor, angle, interpolation=InterpolationMode.BILINEAR)
    return (tensor[0] if image.ndim == 2 else tensor.permute(1, 2, 0)).numpy()


def read_at(box: Box, size: int, flip: bool, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Where in the image each output pixel lies, x and y, in complex numbers: nothing of `warp` is used."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    turned = (columns + 1j * rows) * np.exp(1j * np.radians(angle))
    x = box.left + (box.width - 1) / 2 + (-1 if flip else 1) * turned.real * box.width / size
    return x, box.top + (box.height - 1) / 2 + turned.imag * box.height / size


def within(box: Box, size: int, angle: float, pixels: float) -> np.ndarray:
    """The output's pixels that lie in the crop, ``pixels`` of the output from its border; negative: outside."""
    x, y = read_at(box, size, False, angle)
    across = np.minimum(x - (box.left - 0.5), box.left + box.width - 0.5 - x) * size / box.width
    down = np.minimum(y - (box.top - 0.5), box.top + box.height - 0.5 - y) * size / box.height
    return np.minimum(across, down) > pixels


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


class Bound(NamedTuple):
    """How far a result may be from torchvision's: rms, as a share of what a shift by a pixel changes; at any pixel."""

    rms: float
    largest: float


EXACT = Bound(1e-4, 1e-5)
CASES = {
    # What it does: box, output, bound without a rotation (border included), bound with one (off the crop's border).
    # Shrinking, filters differ: ours averages a box, torchvision a triangle, and its rotation blurs once more.
    "shrinks by 2.3 and 2.7": (Box(20, 30, 300, 340), 128, Bound(0.04, 0.015), Bound(0.11, 0.04)),
    "shrinks by 1.6 and 1.3": (Box(50, 60, 200, 170), 128, Bound(0.06, 0.01), Bound(0.06, 0.02)),
    "shrinks the whole image": (Box(0, 0, 400, 500), 256, Bound(0.04, 0.01), Bound(0.06, 0.03)),
    "grows in one axis": (Box(100, 100, 100, 150), 128, Bound(0.06, 0.01), Bound(0.06, 0.01)),
    # Not shrinking, both are bilinear; the chain's rotation interpolates what the resize interpolated.
    "keeps its size": (Box(3, 5, 128, 128), 128, EXACT, EXACT),
    "grows": (Box(90, 80, 100, 90), 256, EXACT, Bound(0.03, 0.01)),
}


@pytest.mark.parametrize("channels", [3, None])
@pytest.mark.parametrize(("flip", "angle"), [(False, 0.0), (True, 0.0), (False, 13.0), (True, -8.0)])
@pytest.mark.parametrize("case", CASES)
def test_the_warp_agrees_with_torchvision_pixel_by_pixel(channels, flip, angle, case):
    box, size, straight, turned = CASES[case]
    image = textured(400, 500, channels)
    expected = torchvision_chain(image, box, size, flip, angle)
    compared = within(box, size, angle, 4) if angle else np.ones((size, size), bool)
    difference = (warp(image, box, size, flip=flip, angle=angle) - expected)[compared]
    moved = (np.roll(expected, 1, axis=1) - expected)[compared]
    bound = turned if angle else straight
    assert rms(difference) < bound.rms * rms(moved)
    assert np.abs(difference).max() < bound.largest


@pytest.mark.parametrize(("flip", "angle"), [(False, 0.0), (True, 0.0), (False, 15.0), (True, -15.0), (True, 0.5)])
@pytest.mark.parametrize("case", CASES)
def test_a_slope_which_no_filter_changes_lies_where_it_should_to_a_thousandth_of_a_pixel(flip, angle, case):
    """torchvision's lies within a tenth: where it shrinks, its weights are cut off at whole pixels."""
    box, size, _, _ = CASES[case]
    rows, columns = np.mgrid[:400, :500].astype(np.float32)
    image = 0.1 + 0.8 * (0.4 * rows / 400 + 0.6 * columns / 500)
    x, y = read_at(box, size, flip, angle)
    expected = 0.1 + 0.8 * (0.4 * y / 400 + 0.6 * x / 500)
    pixel = 0.8 * 0.6 / 500 * box.width / size
    middle = within(box, size, angle, 4)
    ours = warp(image, box, size, flip=flip, angle=angle)
    theirs = torchvision_chain(image, box, size, flip, angle)
    assert np.abs(ours - expected)[middle].max() < pixel / 1000
    assert np.abs(ours - theirs)[middle].max() < pixel / 10


@pytest.mark.parametrize("channels", [3, None])
@pytest.mark.parametrize("case", CASES)
def test_a_flip_is_exact(channels, case):
    box, size, _, _ = CASES[case]
    image = textured(400, 500, channels)
    assert np.array_equal(warp(image, box, size, flip=True), warp(image, box, size)[:, ::-1])
    mirrored = Box(box.top, 500 - box.left - box.width, box.height, box.width)
    turned = warp(image, box, size, flip=True, angle=11.0)
    assert np.abs(turned - warp(image[:, ::-1], mirrored, size, angle=11.0)).max() < 1e-4


@pytest.mark.parametrize("angle", [13.0, -6.0])
def test_shrinking_and_rotating_at_once_is_nearer_to_the_truth_than_torchvisions_two_steps(angle):
    """The truth is a formula, averaged over each output pixel."""
    box, size, fine = Box(20, 30, 300, 340), 128, 8

    def scene(x, y):
        return 0.5 + 0.2 * (np.sin(x / 3.5) + np.cos(y / 4.5 - x / 11))

    rows, columns = np.mgrid[:400, :500]
    image = scene(columns, rows).astype(np.float32)
    x, y = read_at(box, size * fine, False, angle)
    truth = scene(x, y).reshape(size, fine, size, fine).mean(axis=(1, 3))
    ours, theirs = warp(image, box, size, angle=angle), torchvision_chain(image, box, size, False, angle)
    middle = within(box, size, angle, 2)
    assert rms((ours - truth)[middle]) < rms((theirs - truth)[middle]) / 2
    assert rms((ours - truth)[middle]) < 0.02


@pytest.mark.parametrize("angle", [15.0, -15.0, 4.0])
@pytest.mark.parametrize("case", CASES)
def test_a_rotation_leaves_black_what_lies_outside_the_crop(angle, case):
    box, size, _, _ = CASES[case]
    image = np.ones((400, 500), np.float32)
    ours = warp(image, box, size, angle=angle)
    expected = torchvision_chain(image, box, size, False, angle)
    # Half a pixel, of the crop or of the output, on either side of the crop's border is in between.
    reach = 0.8 * max(1, size / min(box.height, box.width))
    assert not ours[~within(box, size, angle, -reach)].any()
    assert np.abs(ours[within(box, size, angle, reach)] - 1).max() < 1e-6
    assert abs(ours.mean() - expected.mean()) < 0.005


@given(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7]))
def test_shrinking_by_odd_factors_averages_areas(down, across):
    image = np.random.default_rng(0).random((20 * down, 20 * across, 3), dtype=np.float32)
    averages = image.reshape(20, down, 20, across, 3).mean(axis=(1, 3))
    assert np.abs(warp(image, Box(0, 0, 20 * down, 20 * across), 20) - averages).max() < 1e-6


def misplaced(shrink: float) -> float:
    """The share of an output pixel's weight that may lie on other pixels than in area interpolation, along an axis."""
    odd = max(1, 2 * round((shrink - 1) / 2) + 1)
    return abs(shrink - odd) / (2 * shrink) if shrink > 1 else 0.0


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("width", [65, 80, 101, 127, 128, 129, 140, 185, 192, 200, 256, 275, 320, 380])
def test_an_axis_shrinks_as_by_area_interpolation_but_for_the_stated_share_of_weight(width, flip):
    """A row has one bright pixel: over the rows, an output column shows its weights. The stated share is reached."""
    size = 64
    ours, area = [], []
    for bright in np.array_split(np.eye(width, dtype=np.float32), math.ceil(width / size)):
        rows = np.zeros((size, width), np.float32)
        rows[: len(bright)] = bright
        ours.append(warp(rows, Box(0, 0, size, width), size, flip))
        area.append(cv2.resize(rows, (size, size), interpolation=cv2.INTER_AREA)[:, :: -1 if flip else 1])
    share = np.abs(np.concatenate(ours) - np.concatenate(area)).sum(axis=0).max() / 2
    assert 0.85 * misplaced(width / size) - 1e-5 < share < misplaced(width / size) + 1e-5


@given(st.integers(64, 300), st.integers(64, 300), st.sampled_from([None, 3]), st.booleans(), st.integers(0, 1000))
def test_shrinking_noise_is_area_interpolation_within_the_stated_bound(height, width, channels, flip, key):
    shape = (height, width) if channels is None else (height, width, channels)
    image = np.random.default_rng(key).integers(0, 2, shape).astype(np.float32)
    expected = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)[:, :: -1 if flip else 1]
    bound = misplaced(height / 64) + misplaced(width / 64)
    assert np.abs(warp(image, Box(0, 0, height, width), 64, flip) - expected).max() < bound + 1e-5


@pytest.mark.parametrize("channels", [3, None])
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("shrinks")])
def test_what_is_smooth_shrinks_as_by_area_interpolation(channels, case):
    box, size, _, _ = CASES[case]
    image = textured(400, 500, channels)
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    expected = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    difference = warp(image, box, size) - expected
    assert np.abs(difference).max() < 0.015
    assert rms(difference) < 0.06 * rms(np.roll(expected, 1, axis=1) - expected)


def test_halving_noise_is_torchvisions_antialiased_resize():
    """At 2, box and bilinear reading together are its triangle: the filters agree, not only on what is smooth."""
    image = np.random.default_rng(0).random((120, 120, 3), dtype=np.float32)
    box = Box(0, 0, 120, 120)
    difference = warp(image, box, 60) - torchvision_chain(image, box, 60, False, 0.0)
    assert np.abs(difference[1:-1, 1:-1]).max() < 1e-6


def test_a_checkerboard_shrinks_to_gray_and_never_to_stripes():
    rows, columns = np.mgrid[:512, :512]
    checkers = ((rows + columns) % 2).astype(np.float32)
    for side, angle in ((512, 0.0), (500, 0.0), (481, 0.0), (512, 9.0)):
        middle = warp(checkers, Box(0, 0, side, side), 128, angle=angle)[32:96, 32:96]
        assert abs(middle.mean() - 0.5) < 1e-3
        assert middle.std() < 0.04


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_how_an_image_lies_in_memory_changes_nothing(dtype):
    planes = (np.random.default_rng(0).random((3, 20, 24)) * (200 if dtype != np.float32 else 1)).astype(dtype)
    apart = planes.transpose(1, 2, 0)
    assert np.array_equal(warp(apart, Box(2, 3, 12, 14), 16), warp(np.ascontiguousarray(apart), Box(2, 3, 12, 14), 16))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_images_give_what_their_fractions_give(dtype):
    largest = np.iinfo(dtype).max
    pixels = (textured(200, 240) * largest).astype(dtype)
    fractions = pixels.astype(np.float32) / largest
    for key in range(8):
        ours, expected = (augment(image, 96, generator(0, 0, key, Stream.AUGMENT)) for image in (pixels, fractions))
        assert ours.dtype == np.float32
        assert np.abs(ours - expected).max() < 2e-6


@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.sampled_from([None, 3]),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.integers(0, 1000),
)
def test_any_image_gives_a_square_within_range(height, width, channels, dtype, key):
    shape = (height, width) if channels is None else (height, width, channels)
    image = np.random.default_rng(key).random(shape, dtype=np.float32)
    if dtype != np.float32:
        image = (image * np.iinfo(dtype).max).astype(dtype)
    before = image.copy()
    image.flags.writeable = False  # as the store gives them
    for result in (
        augment(image, 32, generator(0, 0, key, Stream.AUGMENT)),
        center(image, 32),
    ):
        assert result.shape == (32, 32, *shape[2:])
        assert result.dtype == np.float32
        assert result.min() >= 0
        assert result.max() <= 1 + 1e-6
    assert np.array_equal(image, before)


def test_equal_keys_give_equal_images_and_others_give_others():
    image = textured(150, 130)
    results = [augment(image, 64, generator(0, 0, key, Stream.AUGMENT)) for key in (0, 0, 1, 2)]
    assert np.array_equal(results[0], results[1])
    assert rms(results[0] - results[2]) > 0.02
    assert rms(results[2] - results[3]) > 0.02


def test_equal_keys_give_equal_draws_in_any_order():
    image = textured(150, 130)

    def drawn(key, epoch=0):
        return draw(image, 64, generator(0, epoch, key, Stream.AUGMENT))

    forwards = [drawn(key) for key in range(20)]
    assert [drawn(key) for key in reversed(range(20))] == forwards[::-1]
    assert len({forward.box for forward in forwards}) == 20
    assert drawn(3, epoch=1) != forwards[3]


def draws(image: np.ndarray, size: int, count: int, **settings: float) -> list[Box]:
    settings = Augmentation(**settings)
    return [draw(image, size, generator(0, 0, key, Stream.AUGMENT), settings).box for key in range(count)]


def test_crops_are_drawn_as_the_recipe_says():
    boxes = draws(np.full((300, 300), 200, np.uint8), 64, 4000)
    shares = np.array([box.height * box.width / 90_000 for box in boxes])
    aspects = np.log([box.width / box.height for box in boxes])
    assert shares.min() > 0.2 * 0.98
    assert np.abs(aspects).max() < np.log(4 / 3) * 1.02
    # A crop of three quarters fits at any aspect: up to there nothing is turned away, and draws are uniform.
    quartiles = np.quantile(shares[shares < 0.74], [0.25, 0.5, 0.75])
    assert np.abs(quartiles - (0.2 + 0.54 * np.array([0.25, 0.5, 0.75]))).max() < 0.02
    aspect_quartiles = np.quantile(aspects[shares < 0.74], [0.25, 0.5, 0.75])
    assert np.abs(aspect_quartiles - np.log(4 / 3) * np.array([-0.5, 0, 0.5])).max() < 0.03
    for box in boxes:
        assert 0 <= box.top <= 300 - box.height
        assert 0 <= box.left <= 300 - box.width
    tops = np.array([box.top / max(300 - box.height, 1) for box in boxes])
    assert abs(tops.mean() - 0.5) < 0.02


def test_a_crop_has_at_least_half_the_outputs_area():
    boxes = draws(np.full((100, 120), 200, np.uint8), 128, 500)
    assert min(box.height * box.width for box in boxes) > 0.5 * 128**2 * 0.98
    assert len({box.height for box in boxes}) > 10


def test_a_larger_smallest_crop_is_kept_to():
    boxes = draws(np.full((300, 300), 200, np.uint8), 64, 500, min_area=0.6)
    assert 0.6 * 0.98 < min(box.height * box.width for box in boxes) / 90_000 < 0.65


def test_an_image_smaller_than_half_the_output_gives_its_centre_square():
    assert set(draws(np.full((60, 90), 200, np.uint8), 128, 20)) == {Box(0, 15, 60, 60)}


def test_dark_crops_are_turned_away_and_a_dark_image_gives_its_centre_square():
    image = np.zeros((300, 300, 3), np.uint16)
    image[:60, :60, 1:] = 65535  # 4 % of the image, and no red
    boxes = draws(image, 64, 300)
    square = Box(0, 0, 300, 300)
    assert any(box != square for box in boxes)
    for box in boxes:
        crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
        assert box == square or crop.mean() >= 0.05 * 65535
    assert set(draws(np.full((300, 200), 12, np.uint8), 64, 20)) == {Box(50, 0, 200, 200)}


def test_a_crop_is_tried_ten_times():
    """Of a wide image most crops do not fit. How many do, by the recipe's own words, says how often all ten fail."""
    rng = np.random.default_rng(0)
    area = rng.uniform(0.2, 1, 200_000) * 100 * 380
    aspect = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 200_000))
    fits = np.mean(np.sqrt(area / aspect) < 100.5)
    square = Box(0, 140, 100, 100)
    fallbacks = np.mean([box == square for box in draws(np.full((100, 380), 200, np.uint8), 32, 8000)])
    expected = (1 - fits) ** 10
    assert 0.1 < expected < 0.9
    assert abs(fallbacks - expected) < 4 * math.sqrt(expected * (1 - expected) / 8000)


@pytest.mark.parametrize("bright_rows", [0, 1])
@pytest.mark.parametrize(("level", "is_dark"), [(0.19, True), (0.21, False)])
def test_a_crops_mean_is_that_of_all_its_rows(bright_rows, level, is_dark):
    """Only every fourth row has anything: the mean is a quarter of its level, whichever row it is."""
    image = np.zeros((400, 400), np.float32)
    image[bright_rows::4] = level
    crops = draws(image, 64, 100)
    whole = Box(0, 0, 400, 400)
    # Within a crop's rows the bright ones are a quarter up to one row in a hundred and seventy.
    assert (np.mean([box == whole for box in crops]) > 0.9) == is_dark


def test_flips_and_rotations_come_at_their_rates_and_angles_are_uniform():
    image = np.full((200, 200), 0.5, np.float32)
    drawn = [draw(image, 48, generator(1, 0, key, Stream.AUGMENT)) for key in range(4000)]
    flips, angles = np.array([each.flip for each in drawn]), np.array([each.angle for each in drawn])
    assert abs(flips.mean() - 0.5) < 0.03
    assert abs((angles != 0).mean() - 0.5) < 0.03
    assert abs((flips & (angles != 0)).mean() - 0.25) < 0.03
    assert np.abs(np.quantile(angles[angles != 0], [0, 0.25, 0.5, 0.75, 1]) - [-15, -7.5, 0, 7.5, 15]).max() < 1


def test_what_is_drawn_is_what_is_done():
    """A gradient shows the flip, a corner the rotation."""
    image = np.tile(np.linspace(0.2, 1, 200, dtype=np.float32), (200, 1))
    for key in range(100):
        box, flip, angle, _ = draw(image, 48, generator(1, 0, key, Stream.AUGMENT))
        result = augment(image, 48, generator(1, 0, key, Stream.AUGMENT))
        assert np.array_equal(result, warp(image, box, 48, flip, angle))
        assert (result[24, 5] > result[24, 42]) == flip
        assert angle or result.all()
        assert abs(angle) < 4 or result[0, 0] == result[-1, -1] == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9)), "dtype float64, expected uint8, uint16, or float32"),
        (np.zeros((9, 9), np.int16), "dtype int16"),
        (np.zeros((9, 9, 3, 1), np.uint8), r"shape \(9, 9, 3, 1\), expected \[H, W\] or \[H, W, C\]"),
        (np.zeros(9, np.uint8), r"shape \(9,\)"),
        (np.zeros((0, 9), np.uint8), "no side of 0"),
        ([[0.5, 0.5]], "image is a list, expected a numpy array"),
    ],
)
def test_what_is_no_image_is_refused_by_name(image, message):
    for call in (
        lambda: augment(image, 8, np.random.default_rng(0)),
        lambda: center(image, 8),
        lambda: warp(image, Box(0, 0, 9, 9), 8),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "size must be from 1 to 32766, got 0"),
        (32767, ValueError, "size must be from 1 to 32766, got 32767"),
        (10**9, ValueError, "size must be from 1 to 32766, got 1000000000"),
        (2**40, ValueError, "size must be from 1 to 32766"),
        (8.5, TypeError, "size must be a whole number, got 8.5"),
        ("8", TypeError, "size must be a whole number, got '8'"),
        (True, TypeError, r"size must be a whole number, got True \(bool\)"),
        (None, TypeError, "size must be a whole number, got None"),
    ],
)
def test_what_is_no_size_is_refused_by_name(size, error, message):
    image = np.zeros((9, 9), np.uint8)
    for call in (
        lambda: augment(image, size, np.random.default_rng(0)),
        lambda: draw(image, size, np.random.default_rng(0)),
        lambda: center(image, size),
        lambda: warp(image, Box(0, 0, 9, 9), size),
    ):
        with pytest.raises(error, match=message):
            call()


def test_sizes_of_numpys_whole_numbers_are_taken():
    image = textured(60, 60, None)
    for size in (np.int64(48), np.uint8(48)):
        assert np.array_equal(center(image, size), center(image, 48))
        ours, expected = (augment(image, each, generator(0, 0, 1, Stream.AUGMENT)) for each in (size, 48))
        assert np.array_equal(ours, expected)


@pytest.mark.parametrize("box", [Box(-1, 0, 5, 5), Box(0, 0, 10, 5), Box(0, 6, 5, 5), Box(0, 0, 0, 5)])
def test_a_crop_outside_the_image_is_refused(box):
    with pytest.raises(ValueError, match="lies not inside the image of 9 x 10"):
        warp(np.zeros((9, 10), np.uint8), box, 8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"box": (0, 0, 5, 5)}, TypeError, r"box must be a Box, got \(0, 0, 5, 5\)"),
        ({"box": Box(0, 0, 5.5, 5)}, TypeError, "box must be of whole numbers"),
        ({"flip": "no"}, TypeError, "flip must be a bool"),
        ({"angle": "9"}, TypeError, "angle must be a number"),
        ({"angle": math.nan}, ValueError, "angle must be finite, got nan"),
        ({"angle": math.inf}, ValueError, "angle must be finite, got inf"),
    ],
)
def test_a_warp_names_the_argument_it_refuses(change, error, message):
    with pytest.raises(error, match=message):
        warp(**{"image": np.zeros((9, 10), np.uint8), "box": Box(0, 0, 5, 5), "size": 8, **change})


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        *[({"min_area": share}, ValueError, "min_area must be above 0 and at most 1") for share in (0.0, -1.0, 1.5)],
        ({"min_area": math.nan}, ValueError, "min_area must be above 0 and at most 1"),
        ({"min_area": "0.2"}, TypeError, "min_area must be a number"),
        ({"flip": 1.5}, ValueError, "flip must be from 0 to 1, got 1.5"),
        ({"rotation": -1}, ValueError, "rotation must be from 0 to 180 degrees"),
        ({"intensity": math.inf}, ValueError, "intensity must be from 0 to 4"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting, error, message):
    with pytest.raises(error, match=message):
        Augmentation(**setting)


@pytest.mark.parametrize(
    ("rng", "settings", "message"),
    [
        (7, Augmentation(), r"rng must be a numpy.random.Generator, got 7 \(int\)"),
        (np.random.RandomState(0), Augmentation(), "rng must be a numpy.random.Generator"),
        (np.random.default_rng(0), 0.2, "settings must be an Augmentation"),
    ],
)
def test_an_augmentation_names_the_argument_of_another_kind(rng, settings, message):
    with pytest.raises(TypeError, match=message):
        augment(np.zeros((9, 9), np.uint8), 8, rng, settings)


def test_flips_and_rotations_are_as_often_and_as_large_as_was_asked_for():
    def drawn(**settings):
        rngs = (generator(0, 0, key, Stream.AUGMENT) for key in range(400))
        return [draw(textured(90, 90, None), 32, rng, Augmentation(**settings)) for rng in rngs]

    assert 0.4 < np.mean([one.flip for one in drawn()]) < 0.6
    assert not any(one.flip for one in drawn(flip=0.0))
    assert all(one.flip for one in drawn(flip=1.0))
    assert 14 < max(abs(one.angle) for one in drawn()) <= 15
    assert 85 < max(abs(one.angle) for one in drawn(rotation=90.0)) <= 90
    assert {one.angle for one in drawn(rotation=0.0)} == {0.0}
    assert {one.gamma for one in drawn()} == {1.0}
    gammas = np.log([one.gamma for one in drawn(intensity=0.3)])
    assert -0.3 <= gammas.min() < -0.28
    assert 0.28 < gammas.max() <= 0.3
    # One setting changes no draw of another.
    assert [one[:3] for one in drawn(intensity=0.3)] == [one[:3] for one in drawn()]


def test_a_change_of_intensity_leaves_black_and_white_and_bends_what_lies_between():
    image, rng = textured(90, 90, None), generator(0, 0, 3, Stream.AUGMENT)
    settings = Augmentation(intensity=0.5)
    gamma = draw(image, 32, generator(0, 0, 3, Stream.AUGMENT), settings).gamma
    plain = augment(image, 32, generator(0, 0, 3, Stream.AUGMENT))
    assert np.allclose(augment(image, 32, rng, settings), plain.clip(0, 1).astype(np.float64) ** gamma, atol=1e-6)
    assert abs(gamma - 1) > 0.05
    for level in (0.0, 1.0):
        flat = np.full((40, 40), level, np.float32)
        changed = augment(flat, 16, np.random.default_rng(0), Augmentation(intensity=1.0, rotation=0.0))
        assert np.allclose(changed, level, atol=1e-6)


@pytest.mark.parametrize(("flip", "angle"), [(False, 0.0), (True, 12.5)])
def test_every_channel_of_many_is_warped_as_a_gray_image_is(flip, angle):
    image = np.random.default_rng(0).integers(0, 256, (70, 80, 6), np.uint8)
    box = Box(3, 5, 60, 66)
    expected = [warp(np.ascontiguousarray(plane), box, 32, flip, angle) for plane in np.moveaxis(image, 2, 0)]
    assert np.array_equal(warp(image, box, 32, flip, angle), np.stack(expected, axis=2))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9), np.uint8), r"dtype uint8, expected float32 in \[0, 1\]"),
        (np.zeros((3, 9, 9), np.float32), "image has 9 channels, expected 3"),
        (torch.zeros(9, 9), "image is a Tensor, expected a numpy array"),
    ],
)
def test_what_is_no_augmented_image_becomes_no_tensor(image, message):
    with pytest.raises(ValueError, match=message):
        to_tensor(image)


def test_the_centre_square_is_torchvisions():
    image = textured(384, 512)
    square = reference.center_crop(torch.from_numpy(image).permute(2, 0, 1), [384, 384])
    expected = reference.resize(square, [128, 128], antialias=True).permute(1, 2, 0).numpy()
    moved = np.roll(expected, 1, axis=1) - expected
    assert rms(center(image, 128) - expected) < rms(moved) / 2 / 4
    assert np.array_equal(center(image[..., 0], 128), center(image, 128)[..., 0])


def test_the_tensor_is_normalized_by_imagenets_statistics_with_gray_repeated():
    color = textured(16, 16)
    expected = reference.normalize(
        torch.from_numpy(color).permute(2, 0, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    ours = to_tensor(color)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.allclose(ours, expected, atol=1e-6)
    gray = textured(16, 16, None)
    assert torch.equal(to_tensor(gray), to_tensor(np.stack([gray] * 3, axis=-1)))


def test_the_tensor_is_written_where_it_shall_stand():
    batch = torch.full((2, 3, 16, 16), 7.0)
    for image in (textured(16, 16), textured(16, 16, None)):
        to_tensor(image, out=batch[1])
        assert torch.equal(batch[1], to_tensor(image))
        assert (batch[0] == 7).all()
    for out in (batch[0, :2], batch[0].double()):
        with pytest.raises(ValueError, match=r"out is torch.float\d+ .*, expected float32 \[3, 16, 16\]"):
            to_tensor(image, out=out)


def test_gray_statistics_leave_the_channels_of_a_gray_image_alike():
    gray = textured(48, 48, None)
    assert torch.equal(*to_tensor(gray, "gray")[:2])
    assert not torch.equal(*to_tensor(gray, "imagenet")[:2])
    mean, std = to_tensor(gray, "gray").mean(), to_tensor(gray, "gray").std()
    assert abs(mean - (gray.mean() - 0.45) / 0.225) < 1e-4
    assert std > 0.1


def test_unknown_statistics_are_refused_with_those_there_are():
    for statistics, named in (("clip", "'clip'"), (["gray"], r"\['gray'\]")):
        with pytest.raises(ValueError, match=f"statistics is {named}, expected one of imagenet, gray"):
            to_tensor(textured(24, 24), statistics)
