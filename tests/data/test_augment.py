import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from dexcore.data import augment as recipe
from dexcore.data.augment import Box, augment, center, to_tensor, warp
from dexcore.data.keyed import Stream, generator


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


def inside(size: int) -> np.ndarray:
    """The disc that no rotation brings the crop's border into."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(rows, columns) < size / 2 - 2


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


@pytest.mark.parametrize("channels", [3, None])
@pytest.mark.parametrize(("flip", "angle"), [(False, 0.0), (True, 0.0), (False, 13.0), (True, -8.0)])
@pytest.mark.parametrize(
    ("box", "size"),
    [
        (Box(20, 30, 300, 340), 128),  # shrinks by 2.3 and 2.7
        (Box(50, 60, 200, 170), 128),  # by 1.6 and 1.3
        (Box(0, 0, 400, 500), 256),  # the whole image
        (Box(3, 5, 128, 128), 128),  # neither
        (Box(100, 100, 100, 150), 128),  # grows in one axis, shrinks in the other
        (Box(90, 80, 100, 90), 256),  # grows
    ],
)
def test_the_warp_agrees_with_torchvision(channels, flip, angle, box, size):
    """The filters (box, triangle) differ; the results by less than a quarter of half a pixel's shift."""
    image = textured(400, 500, channels)
    expected = torchvision_chain(image, box, size, flip, angle)
    disc = inside(size)
    difference = (warp(image, box, size, flip=flip, angle=angle) - expected)[disc]
    moved = (np.roll(expected, 1, axis=1) - expected)[disc]
    assert rms(difference) < rms(moved) / 2 / 4
    assert np.abs(difference).max() < 0.03
    if not angle and (box.height, box.width) == (size, size):
        assert np.abs(difference).max() < 1e-6


@pytest.mark.parametrize("angle", [15.0, -15.0, 4.0])
def test_a_rotation_leaves_black_what_lies_outside_the_crop(angle):
    image = np.ones((300, 300), np.float32)
    box, size = Box(50, 50, 200, 200), 100
    ours = warp(image, box, size, angle=angle)
    expected = torchvision_chain(image, box, size, False, angle)
    assert ours[0, 0] == ours[0, -1] == ours[-1, 0] == ours[-1, -1] == 0
    assert (ours[inside(size)] == 1).all()
    assert abs(ours.mean() - expected.mean()) < 0.005


@given(st.integers(1, 5), st.integers(1, 5))
def test_shrinking_by_whole_factors_averages_areas(down, across):
    image = np.random.default_rng(0).random((20 * down, 20 * across, 3), dtype=np.float32)
    averages = image.reshape(20, down, 20, across, 3).mean(axis=(1, 3))
    assert np.abs(warp(image, Box(0, 0, 20 * down, 20 * across), 20) - averages).max() < 1e-6


def test_a_checkerboard_shrinks_to_gray_and_never_to_stripes():
    rows, columns = np.mgrid[:512, :512]
    checkers = ((rows + columns) % 2).astype(np.float32)
    for side, angle in ((512, 0.0), (500, 0.0), (481, 0.0), (512, 9.0)):
        middle = warp(checkers, Box(0, 0, side, side), 128, angle=angle)[32:96, 32:96]
        assert abs(middle.mean() - 0.5) < 1e-3
        assert middle.std() < 0.04


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
        assert result.max() <= 1
    assert np.array_equal(image, before)


def test_equal_keys_give_equal_images_and_others_give_others():
    image = textured(150, 130)
    results = [augment(image, 64, generator(0, 0, key, Stream.AUGMENT)) for key in (0, 0, 1, 2)]
    assert np.array_equal(results[0], results[1])
    assert rms(results[0] - results[2]) > 0.02
    assert rms(results[2] - results[3]) > 0.02


def draws(image: np.ndarray, size: int, count: int, min_area: float = recipe.MIN_AREA) -> list[Box]:
    return [recipe._draw_box(image, size, generator(0, 0, key, Stream.AUGMENT), min_area) for key in range(count)]


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


def test_flips_and_rotations_come_at_their_rates():
    """A gradient shows the flip, the corners the rotation."""
    image = np.tile(np.linspace(0.1, 1, 200, dtype=np.float32), (200, 1))
    results = [augment(image, 48, generator(1, 0, key, Stream.AUGMENT)) for key in range(2000)]
    flipped = np.mean([result[24, 5] > result[24, 42] for result in results])
    rotated = np.mean([result[0, 0] == 0 for result in results])
    assert abs(flipped - 0.5) < 0.04
    # The corner turns black when it is a pixel outside, at 2.4 degrees: 0.5 * (1 - 2.4 / 15).
    assert abs(rotated - 0.42) < 0.04


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


def test_gray_statistics_leave_the_channels_of_a_gray_image_alike():
    gray = textured(48, 48, None)
    assert torch.equal(*to_tensor(gray, "gray")[:2])
    assert not torch.equal(*to_tensor(gray, "imagenet")[:2])
    mean, std = to_tensor(gray, "gray").mean(), to_tensor(gray, "gray").std()
    assert abs(mean - (gray.mean() - 0.45) / 0.225) < 1e-4
    assert std > 0.1
