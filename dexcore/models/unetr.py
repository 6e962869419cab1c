"""A 2-D UNETR decoder (after Hatamizadeh et al., 2022, arXiv 2103.10504): feature maps of a ViT to a logit a pixel.

From the grid of patches to the image's pixels the decoder counts its doublings: with patches of 16 there are four, and
the maps of blocks 12, 9, 6, 3 (of 12) and the image itself join at strides 16, 8, 4, 2 and 1:

    stride      16       8       4       2       1
    joins       12       9       6       3       image
    width      128     128      64      32      16

Each map is first projected (1 x 1) to the width of its level, then doubled up to it, with a convolution a doubling.
Smaller patches have fewer levels: what is left of the maps joins at the last one before the pixels. Larger ones have
more, at which nothing joins.

A patch size that is no power of two works too: the last step goes to the image's size, not to the double. With patches
of 14 the grids of 224 pixels are 16, 32, 64, 128 and 224. So it does, by axis, for patches that are not square.

Nothing in it is random or depends on the batch, and on the CPU training repeats to the bit.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dexcore.checks import check_whole

_FINEST = 16  # channels at the image's own resolution
_DOUBLINGS = 3  # of the width, up to 128
_LEAST = 4


class UNETRDecoder(nn.Module):
    """Logits at the images' size, from the images and the maps of an encoder's blocks.

    Args:
        in_chans: channels of the images.
        map_chans: channels of the maps, the encoder's width.
        num_maps: how many maps there are.
        patch_size: pixels of a patch, one number or (rows, columns): the stride of the maps.
        num_classes: channels of the logits.
        width: channels at the image's resolution; they double towards the patches, up to 8 times as many. Default: 16,
            with narrow encoders an eighth of theirs (at least 4).

    Attributes:
        width: as above.
        num_doublings: steps from the patches' grid to the pixels.

    Raises:
        TypeError, ValueError: a size is no whole number of at least 1; the message names it.
    """

    def __init__(
        self,
        in_chans: int,
        map_chans: int,
        num_maps: int,
        patch_size: int | tuple[int, int],
        num_classes: int,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.width = min(_FINEST, max(_LEAST, map_chans // (1 << _DOUBLINGS))) if width is None else width
        sizes = {"in_chans": in_chans, "map_chans": map_chans, "num_maps": num_maps, "num_classes": num_classes}
        for name, size in {**sizes, "width": self.width}.items():
            check_whole(name, size, 1)
        rows, columns = patch_size if isinstance(patch_size, Sequence) else (patch_size, patch_size)
        for side in (rows, columns):
            check_whole("patch_size", side, 1)
        self.patch_size = (int(rows), int(columns))
        self.num_doublings = steps = math.ceil(math.log2(max(rows, columns)))
        widths = [self.width << min(_DOUBLINGS, steps - level) for level in range(steps + 1)]  # by level
        # Of the maps, deepest first: the level at which each joins.
        self._joins = [min(i, max(0, steps - 1)) for i in range(num_maps)]
        self.projections = nn.ModuleList([nn.Conv2d(map_chans, widths[level], 1) for level in self._joins])
        self.ways = nn.ModuleList(
            [nn.ModuleList([ConvNorm(widths[level], widths[level]) for _ in range(level)]) for level in self._joins]
        )
        self.stem = nn.Sequential(ConvNorm(in_chans, self.width), ConvNorm(self.width, self.width))
        taken = [widths[level] * self._joins.count(level) for level in range(steps + 1)]
        taken[steps] += self.width  # the image's
        for level in range(1, steps + 1):
            taken[level] += widths[level - 1]
        self.levels = nn.ModuleList(
            [nn.Sequential(ConvNorm(c, width), ConvNorm(width, width)) for c, width in zip(taken, widths, strict=True)]
        )
        self.logits = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, num_classes, H, W].

        Args:
            images: [B, C, H, W].
            maps: [B, D, rows, columns] each, the shallowest first. Where the patches reach beyond the image, as with an
                encoder that pads it below and on the right, so does the decoder, and cuts the logits.

        Raises:
            ValueError: another number of maps.
        """
        if len(maps) != len(self._joins):
            raise ValueError(f"maps must be {len(self._joins)}, got {len(maps)}")
        (height, width), (rows, columns) = images.shape[-2:], maps[0].shape[-2:]
        whole = (rows * self.patch_size[0], columns * self.patch_size[1])
        if whole != (height, width):
            images = F.pad(images, (0, whole[1] - width, 0, whole[0] - height))
        sizes = [
            (min(whole[0], rows << level), min(whole[1], columns << level)) for level in range(self.num_doublings + 1)
        ]
        joining: list[list[Tensor]] = [[] for _ in sizes]
        for level, map_bdrc, project, way in zip(self._joins, maps[::-1], self.projections, self.ways, strict=True):
            x = project(map_bdrc)
            for size, convolve in zip(sizes[1 : level + 1], cast(nn.ModuleList, way), strict=True):
                x = convolve(_enlarged(x, size))
            joining[level].append(x)
        joining[-1].append(self.stem(images))
        x = self.levels[0](torch.cat(joining[0], dim=1))
        for size, joined, convolve in zip(sizes[1:], joining[1:], self.levels[1:], strict=True):
            x = convolve(torch.cat([_enlarged(x, size), *joined], dim=1))
        return self.logits(x)[..., :height, :width]


class ConvNorm(nn.Sequential):
    """A 3 x 3 convolution, instance norm, GELU."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, out_chans, 3, padding=1, bias=False),
            nn.InstanceNorm2d(out_chans, affine=True),
            nn.GELU(),
        )


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """To the double by repetition, whose gradient is deterministic on a GPU too; to another size bilinearly."""
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    if size[0] in (height, 2 * height) and size[1] in (width, 2 * width):
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
