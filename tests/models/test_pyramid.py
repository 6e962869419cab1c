"""The feature pyramid: the right blocks, each token on its own pixels, whatever the patches and prefix tokens."""

from functools import partial

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.models import DEXVisionTransformer, FeaturePyramid
from dexcore.nn import set_mode, upcycle

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "num_classes": 0}


class Numbered(nn.Module):
    """A block whose output is its number everywhere."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        return torch.full_like(x, float(self.number))


def numbered(depth, **kwargs):
    """An encoder whose block i outputs i."""
    vit = VisionTransformer(**TINY | {"depth": depth} | kwargs)
    vit.blocks = nn.Sequential(*[Numbered(i + 1) for i in range(depth)])
    return vit


def placed(**kwargs):
    """An encoder whose tokens are the row, the column and 7 where a token is a patch; prefix tokens hold 1000."""
    vit = VisionTransformer(**TINY | {"depth": 1} | kwargs)
    rows, columns = vit.patch_embed.grid_size

    class Placed(nn.Module):
        def forward(self, x):
            prefix = torch.full_like(x[:, : vit.num_prefix_tokens], 1000.0)
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            told = torch.stack([row, column], dim=-1).reshape(1, -1, 2).expand(len(x), -1, -1)
            return torch.cat([prefix, torch.cat([told, torch.full_like(x[:, -rows * columns :, 2:], 7)], -1)], 1)

    vit.blocks = nn.Sequential(Placed())
    return vit


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, [3, 6, 9, 12]), (24, [6, 12, 18, 24]), (4, [1, 2, 3, 4]), (2, [1, 2]), (5, [1, 2, 3, 5])],
)
def test_the_outputs_of_every_quarters_block_are_given_as_they_are(depth, expected):
    pyramid = FeaturePyramid(numbered(depth))
    maps = pyramid(torch.randn(2, 3, 32, 32))
    assert pyramid.blocks == tuple(expected)
    assert [one.unique().tolist() for one in maps] == [[number] for number in expected]


def test_blocks_that_are_asked_for_are_given():
    assert [one.mean() for one in FeaturePyramid(numbered(12), blocks=[2, 11])(torch.randn(1, 3, 32, 32))] == [2, 11]


@pytest.mark.parametrize("size", [(32, 80), (80, 32)])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"reg_tokens": 4},
        {"reg_tokens": 3, "class_token": False, "global_pool": "avg"},
        {"patch_size": 4, "dynamic_img_size": True},
        {"patch_size": (8, 16)},
    ],
)
def test_each_token_lies_on_its_pixels_without_class_and_register_tokens(kwargs, size):
    pyramid = FeaturePyramid(placed(img_size=size, **kwargs))
    (found,) = pyramid(torch.randn(2, 3, *size))
    rows, columns = pyramid.strides[0]
    assert found.shape == (2, pyramid.channels[0], size[0] // rows, size[1] // columns)
    assert found[0, 0].tolist() == [[float(y // rows)] * (size[1] // columns) for y in range(0, size[0], rows)]
    assert found[1, 1].tolist() == [[float(x // columns) for x in range(0, size[1], columns)]] * (size[0] // rows)
    assert (found[:, 2:] == 7).all()


@pytest.mark.parametrize("patch", [7, 8, 14, 16])
def test_maps_have_the_patch_size_as_their_stride(patch):
    pyramid = FeaturePyramid(VisionTransformer(**TINY | {"depth": 2, "patch_size": patch, "img_size": 4 * patch}))
    assert pyramid.strides == ((patch, patch),) * 2
    assert pyramid.channels == (16, 16)
    assert [one.shape for one in pyramid(torch.randn(1, 3, 4 * patch, 4 * patch))] == [(1, 16, 4, 4)] * 2


def test_strides_that_are_asked_for_are_made_and_keep_places():
    vit = placed(img_size=(32, 64), patch_size=8)
    pyramid = FeaturePyramid(vit, strides=[4])
    (found,) = pyramid(torch.randn(1, 3, 32, 64))
    assert found.shape == (1, 16, 8, 16)
    torch.testing.assert_close(found[0, 0, 1:-1:2, 0], torch.tensor([0.25, 1.25, 2.25]))  # as pixels' centres lie
    (halved,) = FeaturePyramid(vit, strides=[16])(torch.randn(1, 3, 32, 64))
    assert halved[0, 1].tolist() == [[0.5, 2.5, 4.5, 6.5]] * 2


@pytest.mark.parametrize("mode", ["experts", "director", "dense"])
def test_it_equals_timms_own_feature_maps_and_trains(mode):
    vit = VisionTransformer(**TINY, depth=4)
    if mode != "dense":
        set_mode(upcycle(vit, num_experts=3), mode)
    vit.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit.forward_intermediates(images, indices=[0, 1, 2, 3], intermediates_only=True)
    maps = FeaturePyramid(vit.train())(images)
    for found, own in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, own)
    sum(one.square().sum() for one in maps).backward()
    assert vit.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.slow  # it imports MONAI
def test_a_monai_decoder_takes_the_maps():
    """UNETR's own blocks of MONAI, as a user's network would hold them."""
    blocks = pytest.importorskip("monai.networks.blocks")
    up = partial(blocks.UnetrUpBlock, 2, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True)

    class Net(nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.pyramid = FeaturePyramid(encoder, strides=[4, 8, 16])
            finest, middle, deepest = self.pyramid.channels
            self.up2, self.up1 = up(deepest, middle), up(middle, finest)
            self.out = blocks.UnetOutBlock(2, finest, 3)

        def forward(self, images):
            finest, middle, deepest = self.pyramid(images)
            return self.out(self.up1(self.up2(deepest, middle), finest))

    encoder = DEXVisionTransformer(**TINY, depth=3, num_experts=2)
    net = Net(encoder)
    logits = net(torch.randn(1, 3, 32, 32))
    assert logits.shape == (1, 3, 8, 8)
    logits.sum().backward()
    assert encoder.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"encoder": nn.Linear(2, 2)}, TypeError, r"encoder must be a timm VisionTransformer, got"),
        ({"encoder": timm.create_model("test_convnext", num_classes=0)}, TypeError, "encoder must be"),
        ({"blocks": [0, 1]}, ValueError, "blocks must be from 1 to 4, got 0"),
        ({"blocks": [2, 1]}, ValueError, r"blocks must be ascending numbers from 1 to 4, got \[2, 1\]"),
        ({"blocks": []}, ValueError, "blocks must be ascending"),
        ({"strides": [4, 8]}, ValueError, r"strides must be one for each of 4 maps, got \[4, 8\]"),
        ({"strides": [4, 8, 16, 0.5]}, TypeError, "strides must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, error, told):
    with pytest.raises(error, match=told):
        FeaturePyramid(**{"encoder": VisionTransformer(**TINY, depth=4)} | arguments)
