"""The UNETR decoder: any patch size, pixels in their places, repeats to the bit, learns."""

import math

import pytest
import torch

from dexcore.models import UNETRDecoder


def decoder(patch, **kwargs):
    return UNETRDecoder(
        **{"in_chans": 3, "map_chans": 16, "num_maps": 4, "patch_size": patch, "num_classes": 5} | kwargs
    )


def given(patch, size, batch=2):
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    grid = (math.ceil(size[0] / rows), math.ceil(size[1] / columns))
    return torch.randn(batch, 3, *size), [torch.randn(batch, 16, *grid) for _ in range(4)]


@pytest.mark.parametrize(
    ("patch", "size", "doublings"),
    [
        (16, (32, 48), 4),
        (8, (32, 24), 3),
        (4, (12, 16), 2),
        (2, (6, 8), 1),
        (1, (6, 8), 0),
        (32, (32, 64), 5),
        (14, (28, 42), 4),
        (12, (24, 36), 4),
        (7, (14, 21), 3),
        ((16, 4), (32, 20), 4),
        (8, (30, 27), 3),  # an encoder that pads
    ],
)
def test_logits_have_the_images_size_for_any_patch(patch, size, doublings):
    head = decoder(patch)
    assert head.num_doublings == doublings
    logits = head(*given(patch, size))
    assert logits.shape == (2, 5, *size)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_widths_double_from_16_at_the_pixels_to_128_at_the_patches():
    widths = [level[1][0].out_channels for level in decoder(16, map_chans=768).levels]
    assert widths == [128, 128, 64, 32, 16]
    assert [p.out_channels for p in decoder(16, map_chans=768).projections] == [128, 128, 64, 32]
    assert decoder(16, map_chans=64).width == 8
    assert decoder(16, width=6).levels[0][1][0].out_channels == 48


@pytest.mark.parametrize("patch", [16, 14])
def test_a_change_of_one_patch_stays_about_its_pixels(patch):
    """Instance norm spreads a trace of it; what it moves most lies where the patch does."""
    torch.manual_seed(0)
    head = decoder(patch).eval()
    images, maps = given(patch, (6 * patch, 8 * patch), batch=1)
    with torch.no_grad():
        before = head(images, maps)
        for one in maps:
            one[..., 1, 6] += 30
        moved = (head(images, maps) - before).abs().sum(dim=(0, 1))
    where = torch.unravel_index(moved.argmax(), moved.shape)
    assert patch * 0.5 <= where[0] < patch * 2.5
    assert patch * 5.5 <= where[1] < patch * 7.5


def test_training_repeats_to_the_bit_on_the_cpu():
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        head = decoder(14)
        for _ in range(2):
            gradients = torch.autograd.grad(head(*given(14, (14, 28))).square().mean(), list(head.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(head.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        ends.append(torch.cat([parameter.detach().flatten() for parameter in head.parameters()]))
    assert torch.equal(*ends)


def test_an_images_logits_do_not_depend_on_its_batch():
    head = decoder(8).eval()
    images, maps = given(8, (32, 32), batch=3)
    with torch.no_grad():
        alone = head(images[1:2], [one[1:2] for one in maps])
        torch.testing.assert_close(head(images, maps)[1:2], alone)


@pytest.mark.parametrize("name", ["in_chans", "num_maps", "patch_size", "num_classes", "width"])
def test_what_cannot_be_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        decoder(**{"patch": 8} | ({"patch": 0} if name == "patch_size" else {name: 0}))


def test_another_number_of_maps_is_refused():
    images, maps = given(8, (16, 16))
    with pytest.raises(ValueError, match="maps must be 4, got 3"):
        decoder(8)(images, maps[:3])
