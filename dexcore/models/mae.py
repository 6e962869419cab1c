"""Masked autoencoder (He et al., 2022, arXiv 2111.06377) around a timm vision transformer, DEX or dense.

Axes: B images, L patches, P prefix tokens (class and register tokens), K = patch height * width * channels.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from einops import rearrange
from timm.layers import Mlp, PatchEmbed, resample_abs_pos_embed
from timm.models import named_apply
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from dexcore.checks import check_kind, check_number, check_whole
from dexcore.models.checkpointing import checkpointed
from dexcore.models.inputs import carry_inputs, checked_size
from dexcore.models.objective import Objective, Score
from dexcore.models.vit import build_encoder, describe_encoder
from dexcore.nn import DEXMlp

_PATCH_VARIANCE_EPS = 1e-6
_TOKEN_STD = 0.02


class MAEOutput(NamedTuple):
    """What a `MaskedAutoencoder` returns.

    Attributes:
        loss: 0-dim, float32 or wider: the mean over hidden patches of the mean squared error of a patch.
        pred: [B, L, K], the predicted patches; in units of each patch's own standard deviation around its own
            mean when ``norm_pix_loss`` (see `MaskedAutoencoder.reconstruct`). With ``hidden_only`` those that were
            hidden, [B, L - visible, K], a patch of lower index before one of higher.
        mask: [B, L], float; 1 where the patch was hidden from the encoder, 0 where it was visible.
    """

    loss: torch.Tensor
    pred: torch.Tensor
    mask: torch.Tensor


def sincos_positions(dim: int, grid: tuple[int, int], prefix_tokens: int = 0) -> torch.Tensor:
    """MAE's fixed 2-D sine-cosine positions, [1, prefix_tokens + height * width, dim] in float64.

    The first half of the width encodes the column, the second half the row; each half is sines, then
    cosines, of ``position / 10000 ** (i / (dim / 4))``. Prefix tokens have zeros.

    Raises:
        ValueError: ``dim`` is no multiple of 4.
    """
    if dim % 4 != 0:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, got {dim}")
    height, width = grid
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    angles = [position.reshape(-1, 1) * frequency for position in (column, row)]
    positions = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return torch.cat([positions.new_zeros(prefix_tokens, dim), positions]).unsqueeze(0)


class MaskedAutoencoder(Objective):
    """Masked image modelling: encode the visible patches, predict the hidden ones.

    Args:
        encoder: a timm `VisionTransformer`, DEX or dense, with or without class and register tokens. Its
            positions become MAE's fixed sin-cos ones; its classifier takes no part (build it with
            ``num_classes=0`` to have none). The decoder gets the encoder's device and dtype.
        decoder_dim: width of the dense decoder; a multiple of 4 and of ``decoder_heads``.
        decoder_depth: its number of blocks.
        decoder_heads: its attention heads.
        mask_ratio: share of the patches that is hidden; ``int(L * (1 - mask_ratio))`` stay visible.
        norm_pix_loss: predict each patch normalised by its own mean and unbiased variance (+ 1e-6).
        init_encoder: draw the encoder's weights anew as MAE does (`init_weights`). False keeps the weights it
            comes with, for an encoder that was pre-trained; its positions are replaced in either case.

    Attributes:
        encoder: the encoder that was given.
        num_patches: L.
        num_visible: patches that the encoder sees.

    Raises:
        TypeError: ``encoder`` is no timm `VisionTransformer` with a `PatchEmbed`, or a size is no number.
        ValueError: the encoder or the sizes cannot be honoured; the message names the argument.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        *,
        init_encoder: bool = True,
    ) -> None:
        super().__init__()
        _check_encoder(encoder)
        sizes = {"decoder_dim": decoder_dim, "decoder_depth": decoder_depth, "decoder_heads": decoder_heads}
        for argument, size in sizes.items():
            check_whole(argument, size, 1)
        check_number("mask_ratio", mask_ratio, "a number between 0 and 1", lambda x: 0 < x < 1)
        for argument, flag in {"norm_pix_loss": norm_pix_loss, "init_encoder": init_encoder}.items():
            check_kind(argument, flag, bool, "True or False")
        if decoder_dim % 4 != 0 or decoder_dim % decoder_heads != 0:
            raise ValueError(
                f"decoder_dim must be a multiple of 4 and of decoder_heads={decoder_heads}, got {decoder_dim}"
            )
        self.encoder = encoder
        self.decoder_heads = decoder_heads
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self._take_grid()
        weight = encoder.patch_embed.proj.weight
        patch_values = weight[0].numel()
        if norm_pix_loss and patch_values == 1:
            raise ValueError("norm_pix_loss needs patches of more than one value: a single one has no variance")
        device, dtype = weight.device, weight.dtype
        tokens = encoder.num_prefix_tokens + self.num_patches
        # Frozen parameters rather than buffers: what timm and MAE checkpoints have.
        _positions(encoder).requires_grad_(False)
        self.decoder_embed = nn.Linear(encoder.embed_dim, decoder_dim, device=device, dtype=dtype)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim, device=device, dtype=dtype))
        self.decoder_pos_embed = nn.Parameter(
            torch.empty(1, tokens, decoder_dim, device=device, dtype=dtype), requires_grad=False
        )
        self.decoder_blocks = nn.Sequential(
            *[
                Block(decoder_dim, decoder_heads, qkv_bias=True, depth=i, device=device, dtype=dtype)
                for i in range(decoder_depth)
            ]
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6, device=device, dtype=dtype)
        self.decoder_pred = nn.Linear(decoder_dim, patch_values, device=device, dtype=dtype)
        self.init_weights(encoder=init_encoder)

    @torch.no_grad()
    def init_weights(self, encoder: bool = True) -> None:
        """Draw all weights as MAE does.

        Linear layers and routers: Xavier-uniform, biases 0. Patch embedding: Xavier-uniform on its flattened
        weight, bias 0. Normalisations 1 and 0. Class, register and mask tokens N(0, 0.02). Every expert
        becomes a copy of its director. Positions: `sincos_positions`. Every parameter and buffer is filled: a
        model built on the meta device is complete after ``to_empty`` and this.

        Args:
            encoder: False leaves all of the encoder but its positions as it is.
        """

        def draw(module: Any, name: str) -> None:
            if module is self.encoder or (not encoder and name.startswith("encoder.")):
                return
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, DEXMlp):
                module.init_weights()
                nn.init.xavier_uniform_(module.router.weight)
            elif hasattr(module, "init_weights"):
                module.init_weights()
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()

        named_apply(draw, self)
        nn.init.normal_(self.mask_token, std=_TOKEN_STD)
        vit = self.encoder
        if encoder:
            projection = vit.patch_embed.proj
            drawn = nn.init.xavier_uniform_(projection.weight.flatten(1))  # of a channels_last weight this is a copy
            projection.weight.copy_(drawn.view(projection.weight.shape))
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
            for token in (vit.cls_token, vit.reg_token, getattr(vit, "dist_token", None)):
                if token is not None:
                    nn.init.normal_(token, std=_TOKEN_STD)
        self._fill_positions()

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size: the grid of patches, and the positions of encoder and decoder, follow.

        No weight changes but positions: MAE's are drawn for the new grid (`sincos_positions`), others, as of a dense
        checkpoint, are resampled as timm does. As a parameter's shape changes, call it before the optimizer and DDP are
        made. It also mends a model whose encoder alone was resized.

        Args:
            img_size: pixels, of a square or (height, width); multiples of the patch size.

        Raises:
            ValueError: no multiple of the patch size, too few patches for ``mask_ratio``, or the encoder's patch size
                was changed. The model is as before.
        """
        embed = self.encoder.patch_embed
        self._check_patch_size()
        height, width = img_size if isinstance(img_size, tuple | list) else (img_size, img_size)
        size = (height, width)
        multiples = f"a positive multiple of the patch size {embed.patch_size}"
        for pixels, patch in zip(size, embed.patch_size, strict=True):
            check_whole("img_size", pixels, 1)
            if pixels % patch:
                raise ValueError(f"img_size must be {multiples}, got {img_size}")
        patches = math.prod(pixels // patch for pixels, patch in zip(size, embed.patch_size, strict=True))
        self._count_visible(patches)  # refused before anything changes
        before, vit, decoder = self._grid, self.encoder, self.decoder_pos_embed
        prefix, encoder_prefix = vit.num_prefix_tokens, 0 if vit.no_embed_class else vit.num_prefix_tokens
        fixed = _are_sincos(_positions(vit), before, embed.grid_size, encoder_prefix)
        decoder_fixed = _are_sincos(decoder, before, before, prefix)
        vit.set_input_size(img_size=size)
        self._take_grid()
        positions = resample_abs_pos_embed(decoder, self._grid, before, num_prefix_tokens=prefix)
        self.decoder_pos_embed = nn.Parameter(positions.contiguous(), requires_grad=False)
        self._fill_positions(encoder=fixed, decoder=decoder_fixed)

    def _take_grid(self) -> None:
        embed = self.encoder.patch_embed
        self._grid: tuple[int, int] = tuple(embed.grid_size)
        self.num_patches: int = embed.num_patches
        self.num_visible = self._count_visible(self.num_patches)

    def _count_visible(self, patches: int) -> int:
        visible = int(patches * (1 - self.mask_ratio))
        if not 0 < visible < patches:
            raise ValueError(
                f"mask_ratio must leave at least one of {patches} patches visible and one hidden, got {self.mask_ratio}"
            )
        return visible

    def _fill_positions(self, encoder: bool = True, decoder: bool = True) -> None:
        vit, prefix = self.encoder, self.encoder.num_prefix_tokens
        if encoder:
            _positions(vit).copy_(sincos_positions(vit.embed_dim, self._grid, 0 if vit.no_embed_class else prefix))
        if decoder:
            self.decoder_pos_embed.copy_(sincos_positions(self.decoder_pos_embed.shape[-1], self._grid, prefix))

    def _check_patch_size(self) -> None:
        if self.encoder.patch_embed.proj.weight[0].numel() != self.decoder_pred.out_features:
            raise ValueError(
                f"encoder's patches have become {self.encoder.patch_embed.patch_size} pixels, of which the decoder "
                "predicts another number: set the patch size first, then build the MaskedAutoencoder around the encoder"
            )

    def _check_grid(self) -> None:
        """Refuse an encoder that was resized behind the autoencoder's back."""
        embed = self.encoder.patch_embed
        if tuple(embed.grid_size) != self._grid:
            self._check_patch_size()
            raise ValueError(
                f"encoder was resized to {embed.img_size}, a grid of {embed.grid_size} patches, and the decoder was "
                f"built for {self._grid}: call set_input_size({embed.img_size}) of the MaskedAutoencoder, which "
                "resizes both"
            )

    def no_weight_decay(self) -> set[str]:
        """Parameters of its own that are not decayed; the encoder names its own."""
        return {"mask_token"}

    def blocks(self) -> Sequence[nn.Module]:
        # The parts of the decoder's last block are called one by one where the loss alone is wanted.
        return [*self.encoder.blocks, *list(self.decoder_blocks)[:-1]]

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor | None = None, *, hidden_only: bool = False
    ) -> MAEOutput:
        """Hide patches, reconstruct them and score the reconstruction.

        Args:
            images: [B, C, H, W] of the encoder's image size, floating point, normalised as the training data.
            noise: [B, L]; an image's ``num_visible`` patches with the smallest noise stay visible, ties to
                the lower index. None draws it uniformly with torch's generator.
            hidden_only: predict no visible patches, which the loss does not look at: the end of the decoder is spared.
                The parts of its last block are called one by one then; no hook on that block, or on
                ``decoder_blocks`` as a whole, runs.

        Raises:
            TypeError: ``images`` is no floating-point tensor, or ``noise`` no tensor of numbers that have an order.
            ValueError: a shape or device does not fit.
        """
        self._check_inputs(images, noise)
        if noise is None:
            noise = torch.rand(images.shape[0], self.num_patches, device=images.device)
        order = noise.argsort(dim=1, stable=True)  # [B, L], patch indices
        visible, hidden = order.split([self.num_visible, self.num_patches - self.num_visible], dim=1)
        hidden = hidden.sort(dim=1).values
        mask = torch.ones_like(noise, dtype=torch.float32).scatter(1, visible, 0.0)
        pred = self._decode(self._encode(images, visible), visible, hidden, hidden_only)

        target = self._as_target(_patches_at(hidden, self.patchify(images)))
        loss = (pred[:, -hidden.shape[1] :].to(target.dtype) - target).square().mean()
        if not hidden_only:
            pred = _patches_at(torch.cat([visible, hidden], dim=1).argsort(dim=1), pred)
        return MAEOutput(loss, pred, mask.to(target.dtype))

    def patchify(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] as patches [B, L, K]; a patch's values are ordered (row, column, channel).

        Raises:
            TypeError: the images are no tensor.
            ValueError: the images do not have the encoder's height and width.
        """
        check_kind("images", images, torch.Tensor, "a tensor")
        embed = self.encoder.patch_embed
        (rows, columns), (height, width) = embed.grid_size, embed.patch_size
        if images.ndim != 4 or tuple(images.shape[2:]) != (rows * height, columns * width):
            raise ValueError(f"images must be [B, C, {rows * height}, {columns * width}], got {list(images.shape)}")
        return rearrange(images, "b c (rows h) (columns w) -> b (rows columns) (h w c)", h=height, w=width)

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """The inverse of `patchify`: patches [B, L, K] as images [B, C, H, W].

        Raises:
            TypeError: the patches are no tensor.
            ValueError: there are not L patches, or K is no multiple of a patch's pixels.
        """
        check_kind("patches", patches, torch.Tensor, "a tensor")
        embed = self.encoder.patch_embed
        (rows, columns), (height, width) = embed.grid_size, embed.patch_size
        values = patches.shape[-1] if patches.ndim == 3 else 0
        if not values or patches.shape[1] != rows * columns or values % (height * width):
            raise ValueError(f"patches must be [B, {rows * columns}, {height * width}*C], got {list(patches.shape)}")
        pattern = "b (rows columns) (h w c) -> b c (rows h) (columns w)"
        return rearrange(patches, pattern, rows=rows, columns=columns, h=height, w=width)

    def patch_statistics(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every patch, both [B, L, 1], in float32 or wider.

        The deviation is the root of the unbiased variance + 1e-6: what `norm_pix_loss` normalises by.
        """
        return _statistics(_at_least_float32(self.patchify(images)))

    def target(self, images: torch.Tensor) -> torch.Tensor:
        """What ``pred`` is compared with: [B, L, K], in float32 or wider."""
        return self._as_target(self.patchify(images))

    def score(self, images: torch.Tensor, output: MAEOutput) -> Score:
        """Of hidden and visible patches; the loss is the hidden ones'.

        A patch's total is around its own mean colour (for a gray image its mean): guessing the channels' levels alone
        explains nothing.
        """
        target = self.target(images)
        error = (output.pred.to(target.dtype) - target).square().sum(-1)
        pixels = target.unflatten(-1, (-1, images.shape[1]))
        total = (pixels - pixels.mean(2, keepdim=True)).square().sum((2, 3))
        loss = (error * output.mask).sum(1).double() / (output.mask.sum(1).double() * target.shape[-1])
        return Score(error, total, loss)

    def reconstruct(self, images: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
        """Predictions [B, L, K] as a picture [B, C, H, W] in the units of ``images``.

        With ``norm_pix_loss`` the model predicts no absolute brightness or contrast: they are taken from
        ``images``, the hidden patches included.
        """
        check_kind("pred", pred, torch.Tensor, "a tensor")
        pred = _at_least_float32(pred)
        if self.norm_pix_loss:
            mean, deviation = self.patch_statistics(images)
            pred = pred * deviation + mean
        return self.unpatchify(pred)

    def adapted(self, num_classes: int | None, in_chans: int | None, img_size: int | tuple[int, int] | None) -> Self:
        for argument, value in {"num_classes": num_classes, "in_chans": in_chans}.items():
            if value is not None:
                raise ValueError(
                    f"{argument} must be None, got {value!r}: a MaskedAutoencoder predicts the channels that it was "
                    f"trained on and has no classifier; DEXVisionTransformer.from_pretrained takes {argument}, for its "
                    "encoder"
                )
        self.set_input_size(checked_size(img_size))
        carry_inputs(self.encoder, self.encoder)
        return self

    def describe(self) -> dict[str, Any]:
        return {
            "class": "MaskedAutoencoder",
            "arguments": {
                "decoder_dim": self.mask_token.shape[-1],
                "decoder_depth": len(self.decoder_blocks),
                "decoder_heads": self.decoder_heads,
                "mask_ratio": self.mask_ratio,
                "norm_pix_loss": self.norm_pix_loss,
            },
            "encoder": describe_encoder(self.encoder),
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(build_encoder(description["encoder"]), **description["arguments"])

    def _encode(self, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Prefix tokens and visible patches through the encoder: [B, P + visible, D]."""
        vit = self.encoder
        tokens = vit._pos_embed(vit.patch_embed(images))
        prefix, patches = tokens.split([vit.num_prefix_tokens, self.num_patches], dim=1)
        x = vit.norm_pre(torch.cat([prefix, _patches_at(visible, patches)], dim=1))
        x = checkpointed(vit.blocks, x, self._selective) if vit.grad_checkpointing else vit.blocks(x)
        # timm moves the final norm behind the pooling of average-pooled models: one of the two is there.
        return vit.fc_norm(vit.norm(x))

    def _decode(
        self, latent: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor, hidden_only: bool
    ) -> torch.Tensor:
        """Predictions for the visible patches, unless ``hidden_only``, then the hidden ones: [B, L or hidden, K].

        From the encoder's tokens [B, P + visible, D]. They stay where they are, the mask tokens follow: attention does
        not mind the order.
        """
        x = self.decoder_embed(latent)
        masked = self.mask_token.to(x.dtype).expand(*hidden.shape, -1)
        prefix, patches = self.decoder_pos_embed.split([self.encoder.num_prefix_tokens, self.num_patches], dim=1)
        places = patches[0][torch.cat([visible, hidden], dim=1)]
        x = torch.cat([x, masked], dim=1) + torch.cat([prefix.expand(x.shape[0], -1, -1), places], dim=1)
        wanted = hidden.shape[1] if hidden_only else self.num_patches
        blocks: list[Any] = [*self.decoder_blocks]
        spared = hidden_only and isinstance(blocks[-1].mlp, Mlp)  # experts choose by other tokens than their own
        if spared:
            blocks[-1] = partial(_last_tokens, blocks[-1], wanted)
        if self.encoder.grad_checkpointing:
            x = checkpointed(blocks, x, self._selective)
        elif spared:
            for block in blocks:
                x = block(x)
        else:
            x = self.decoder_blocks(x)
        return self.decoder_pred(self.decoder_norm(x[:, -wanted:]))

    def _as_target(self, patches: torch.Tensor) -> torch.Tensor:
        """What a prediction of these patches [B, n, K] is compared with."""
        patches = _at_least_float32(patches)
        if self.norm_pix_loss:
            mean, deviation = _statistics(patches)
            patches = (patches - mean) / deviation
        return patches

    def _check_inputs(self, images: torch.Tensor, noise: torch.Tensor | None) -> None:
        check_kind("images", images, torch.Tensor, "a tensor")
        check_kind("noise", noise, torch.Tensor | None, "a tensor or None")
        self._check_grid()
        expected = (self.encoder.in_chans, *self.encoder.patch_embed.img_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be [B, {', '.join(map(str, expected))}], the encoder's channels, height and "
                f"width, got {list(images.shape)} (set_input_size takes images of another size)"
            )
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}")
        if images.device != self.mask_token.device:
            raise ValueError(f"images are on {images.device}, the model is on {self.mask_token.device}")
        if noise is not None and noise.is_complex():
            raise TypeError(f"noise must be real numbers, got {noise.dtype}")
        if noise is not None and (
            tuple(noise.shape) != (images.shape[0], self.num_patches) or noise.device != images.device
        ):
            raise ValueError(
                f"noise must be [{images.shape[0]}, {self.num_patches}] (images, patches) on "
                f"{images.device}, got {list(noise.shape)} on {noise.device}"
            )


def _last_tokens(block: Block, tokens: int, x: torch.Tensor) -> torch.Tensor:
    """What a block makes of its last tokens, for which alone it runs its MLP: [B, N, D] to [B, tokens, D]."""
    x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
    x = x[:, -tokens:]
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of patches [B, n, K], both [B, n, 1]; see `MaskedAutoencoder.patch_statistics`."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=1)
    return mean, (variance + _PATCH_VARIANCE_EPS).sqrt()


def _patches_at(index: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Of patches [B, L, D] those of index [B, n]: [B, n, D]."""
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _positions(encoder: VisionTransformer) -> nn.Parameter:
    """The encoder's positions; ValueError where it has none."""
    if encoder.pos_embed is None:
        raise ValueError("encoder must have positions: build it with pos_embed='learn'")
    return encoder.pos_embed


def _are_sincos(positions: torch.Tensor, grid: tuple[int, int], now: tuple[int, int], prefix: int) -> bool:
    """Whether positions of the grid ``now`` are `sincos_positions` of ``grid``, as timm resamples them."""
    drawn = sincos_positions(positions.shape[-1], grid, prefix).float()
    resampled = resample_abs_pos_embed(drawn, list(now), list(grid), num_prefix_tokens=prefix)
    return torch.allclose(positions.detach().float().cpu(), resampled, atol=0.02)  # half precision, too


def _check_encoder(encoder: nn.Module) -> None:
    """Refuse what an autoencoder cannot be built around.

    Raises:
        TypeError: no timm `VisionTransformer`, or one without a plain `PatchEmbed`.
        ValueError: no fixed image size, or patch dropout.
    """
    if not isinstance(encoder, VisionTransformer):
        raise TypeError(f"encoder must be a timm VisionTransformer, got {type(encoder).__name__}")
    if not isinstance(encoder.patch_embed, PatchEmbed):
        raise TypeError(f"encoder must embed patches with timm's PatchEmbed, got {type(encoder.patch_embed).__name__}")
    if encoder.patch_embed.img_size is None:
        raise ValueError("encoder must have a fixed img_size")
    if any(
        size % patch for size, patch in zip(encoder.patch_embed.img_size, encoder.patch_embed.patch_size, strict=True)
    ):
        raise ValueError(
            f"encoder's img_size {encoder.patch_embed.img_size} must be a multiple of its patch_size "
            f"{encoder.patch_embed.patch_size}"
        )
    if not isinstance(encoder.patch_drop, nn.Identity):
        raise ValueError("encoder must have patch_drop_rate=0: the autoencoder hides patches itself")
