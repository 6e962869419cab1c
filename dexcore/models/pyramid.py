"""Feature maps of a vision transformer, for decoders of segmentation and detection.

Axes: B images, D the encoder's width, rows x columns the grid of patches.
"""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dexcore.checks import check_kind, check_whole

_MAPS = 4


class FeaturePyramid(nn.Module):
    """An encoder that gives a list of feature maps: a plain `nn.Module` for nnU-Net-like and MONAI pipelines.

    ``forward(images [B, C, H, W])`` returns one map a block of ``blocks``, the shallowest first, each [B, D, rows,
    columns] at its stride. They are the blocks' outputs as they are (the encoder's final norm is not applied), without
    class and register tokens, in the images' orientation: the value at (row, column) is the patch's whose first pixel
    is (row * stride, column * stride).

    A vision transformer has one resolution, its patches': every map has D channels and the patch size as its stride.
    ``strides`` asks for others, such as the 4, 8, 16, 32 of a convolutional backbone: maps are enlarged bilinearly and
    made smaller by averages, without weights. [B, D, ceil(H / stride), ceil(W / stride)] is the map's size.

    Args:
        encoder: any timm `VisionTransformer`, DEX or dense; used as it is, not copied.
        blocks: whose outputs are given, counted from 1, ascending. Default: every quarter, 3, 6, 9 and 12 of 12.
        strides: of each map, pixels. Default: the patch size.

    Attributes:
        encoder: the encoder that was given.
        blocks: as above.
        channels: of each map, (D, D, D, D).
        strides: of each map, (rows, columns) in pixels.

    Raises:
        TypeError: ``encoder`` is no timm `VisionTransformer`, or a number is none.
        ValueError: a block that the encoder does not have, or not one stride a map.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        blocks: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_kind("encoder", encoder, VisionTransformer, "a timm VisionTransformer")
        self.encoder = encoder
        self.blocks = checked_blocks(encoder, blocks)
        self.channels: tuple[int, ...] = (encoder.embed_dim,) * len(self.blocks)
        self._resized = strides is not None
        if strides is None:
            self.strides: tuple[tuple[int, int], ...] = (tuple(encoder.patch_embed.patch_size),) * len(self.blocks)
            return
        if len(strides) != len(self.blocks):
            raise ValueError(f"strides must be one for each of {len(self.blocks)} maps, got {list(strides)}")
        for stride in strides:
            check_whole("strides", stride, 1)
        self.strides = tuple((stride, stride) for stride in strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = block_maps(self.encoder, images, self.blocks)
        if not self._resized:
            return maps
        height, width = images.shape[-2:]
        return [
            _resized(map_bdrc, (-(-height // rows), -(-width // columns)))
            for map_bdrc, (rows, columns) in zip(maps, self.strides, strict=True)
        ]


def block_maps(encoder: VisionTransformer, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """The outputs of ``blocks``, counted from 1, as maps [B, D, rows, columns]; later blocks do not run."""
    indices = [block - 1 for block in blocks]
    maps = encoder.forward_intermediates(images, indices=indices, stop_early=True, intermediates_only=True)
    return cast(list[Tensor], maps)


def checked_blocks(encoder: VisionTransformer, blocks: Sequence[int] | None) -> tuple[int, ...]:
    """``blocks``, or every quarter of the encoder's; counted from 1.

    Raises:
        TypeError, ValueError: they are no ascending numbers of the encoder's blocks.
    """
    depth = len(encoder.blocks)
    if blocks is None:
        maps = min(_MAPS, depth)
        return tuple(depth * (i + 1) // maps for i in range(maps))
    for block in blocks:
        check_whole("blocks", block, 1, depth)
    if not blocks or list(blocks) != sorted(set(blocks)):
        raise ValueError(f"blocks must be ascending numbers from 1 to {depth}, got {list(blocks)}")
    return tuple(int(block) for block in blocks)


def _resized(map_bdrc: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(map_bdrc.shape[-2:]) == size:
        return map_bdrc
    larger = [max(have, want) for have, want in zip(map_bdrc.shape[-2:], size, strict=True)]
    if larger != list(map_bdrc.shape[-2:]):
        map_bdrc = F.interpolate(map_bdrc, size=larger, mode="bilinear", align_corners=False)
    return map_bdrc if larger == list(size) else F.adaptive_avg_pool2d(map_bdrc, size)
