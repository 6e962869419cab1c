"""Distillation of tokens: a vision transformer learns to give those of a frozen teacher.

Axes: B images, L patches, T compared tokens (L, and one of the class where both have one), K the teacher's width.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dexcore.checks import check_kind, check_whole
from dexcore.models.checkpointing import checkpointed
from dexcore.models.inputs import carry_inputs, checked_size, per_channel
from dexcore.models.objective import Objective, Score
from dexcore.models.vit import build_encoder, describe_encoder
from dexcore.view import LUMA


class DistillationOutput(NamedTuple):
    """What a `DistilledEncoder` returns; all but ``loss`` without a gradient's path to the teacher.

    Attributes:
        loss: 0-dim, float32: the mean squared error of the patches' tokens; where the class token is compared too, the
            mean of it and of the class token's.
        pred: [B, L, K], the patches' tokens as the student gives them, in float32.
        mask: [B, L], ones: it is asked for every patch.
        target: [B, L, K], the teacher's.
        losses: [B], of each image.
    """

    loss: Tensor
    pred: Tensor
    mask: Tensor
    target: Tensor
    losses: Tensor


class TeacherShape(NamedTuple):
    """What a student has to know of its teacher.

    Attributes:
        dim: K.
        has_class: it has a class token, which is compared too.
    """

    dim: int
    has_class: bool


class Teacher:
    """A frozen vision transformer whose tokens are to be learned.

    It is no module: what holds it neither trains nor saves nor shards it, and copies share it.

    Args:
        model: any of timm's that has a grid of patches and gives tokens [B, N, K]; it is frozen, put into eval mode and
            set to the size at which its grid is ``grid``.
        grid: rows and columns of the student's patches.
        mean, std: of each channel, what the student's images were normalized by.

    Attributes:
        shape: of its tokens.
        sha256: of its weights by name, wherever they came from and before they were set to a size.

    Raises:
        ValueError: the model has no such tokens, cannot take that size or does not say how its images were normalized,
            or the images have other channels than it (gray ones are repeated, colour becomes gray).
    """

    def __init__(self, model: Any, grid: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.sha256 = _content(self.model)
        self.size = _set_grid(self.model, grid)
        self.channels: int = self.model.patch_embed.proj.in_channels
        if len(mean) not in (1, self.channels) and (len(mean), self.channels) != (3, 1):
            raise ValueError(f"{type(model).__name__} sees images of {self.channels} channels, got {len(mean)}")
        said = getattr(self.model, "pretrained_cfg", None) or {}
        if not {"mean", "std"} <= said.keys():
            raise ValueError(
                f"{type(model).__name__} does not say by which mean and std its images were normalized, in its "
                "pretrained_cfg (set_preprocessing, of a model of dexcore's)"
            )
        own = [per_channel(said[name], self.channels) for name in ("mean", "std")]
        self.normalizations = [torch.tensor(values).view(-1, 1, 1) for values in (mean, std, *own)]
        has_class = getattr(self.model, "cls_token", None) is not None
        self.shape = TeacherShape(self.model.num_features, has_class)
        self._check_tokens(grid)

    def to(self, device: torch.device) -> Self:
        """Move it, in place."""
        self.model.to(device)
        self.normalizations = [values.to(device) for values in self.normalizations]
        return self

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """The tokens of the student's images [B, C, H, W]: [B, T, K] in float32, the class token first; each without
        its mean and in units of its own deviation, so that no single loud channel decides."""
        mean, std, own_mean, own_std = self.normalizations
        pixels = images * std + mean
        if pixels.shape[1] > self.channels:  # gray as everywhere
            pixels = (pixels * torch.from_numpy(LUMA).to(pixels).view(-1, 1, 1)).sum(1, keepdim=True)
        pixels = (pixels - own_mean) / own_std
        if tuple(pixels.shape[2:]) != self.size:
            pixels = nn.functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        tokens = self.model.forward_features(pixels).float()
        chosen = [tokens[:, self.model.num_prefix_tokens :]]
        if self.shape.has_class:
            chosen.insert(0, tokens[:, :1])
        return nn.functional.layer_norm(torch.cat(chosen, dim=1), (self.shape.dim,))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def _check_tokens(self, grid: tuple[int, int]) -> None:
        try:
            found = tuple(self.tokens(torch.zeros(1, len(self.normalizations[0]), *self.size)).shape)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            raise ValueError(f"{type(self.model).__name__} cannot teach: it gives no tokens ({error})") from error
        expected = (1, grid[0] * grid[1] + self.shape.has_class, self.shape.dim)
        if found != expected:
            raise ValueError(
                f"{type(self.model).__name__} cannot teach: expected tokens {list(expected)}, got {list(found)}"
            )


class DistilledEncoder(Objective):
    """A vision transformer, DEX or dense, whose tokens become those of a teacher by one linear layer.

    Args:
        encoder: what is trained; it keeps the weights that it comes with.
        teacher_dim: K.
        class_token: compare class tokens too; needs an encoder that has one.

    Attributes:
        teacher: to be set before a forward; not part of what is saved.

    Raises:
        TypeError, ValueError: the encoder is no timm `VisionTransformer`, or has no class token to compare.
    """

    def __init__(self, encoder: VisionTransformer, teacher_dim: int, class_token: bool = True) -> None:
        super().__init__()
        check_kind("encoder", encoder, VisionTransformer, "a timm VisionTransformer")
        check_whole("teacher_dim", teacher_dim, 1)
        if class_token and encoder.cls_token is None:
            raise ValueError("class_token must be False: the encoder has none")
        self.encoder = encoder
        self.class_token = class_token
        self.num_patches = encoder.patch_embed.num_patches
        self.head = nn.Linear(encoder.embed_dim, teacher_dim)
        self.teacher: Teacher | None = None

    def forward(self, images: Tensor, noise: Tensor | None = None, *, hidden_only: bool = False) -> DistillationOutput:
        """Compare the tokens of images [B, C, H, W], normalized as the training data, with the teacher's.

        Args:
            noise, hidden_only: not looked at: nothing is hidden.

        Raises:
            ValueError: there is no ``teacher``.
        """
        if self.teacher is None:
            raise ValueError("teacher must be set: a saved model does not hold it, and its loss is nothing without it")
        return self.compare(images, self.teacher.tokens(images))

    def compare(self, images: Tensor, taught: Tensor) -> DistillationOutput:
        """As a forward, with the teacher's tokens [B, T, K] at hand."""
        tokens = self._tokens(images)
        patches = tokens[:, self.encoder.num_prefix_tokens :]
        chosen = torch.cat([tokens[:, :1], patches], dim=1) if self.class_token else patches
        pred = self.head(chosen).float()
        taught = taught[:, -chosen.shape[1] :]
        error = (pred - taught).square().mean(-1)
        losses = error[:, -self.num_patches :].mean(1)
        if self.class_token:
            losses = (losses + error[:, 0]) / 2
        pred, target = (tokens[:, -self.num_patches :] for tokens in (pred, taught))
        mask = torch.ones(pred.shape[:2], device=pred.device)
        return DistillationOutput(losses.mean(), pred, mask, target, losses.detach())

    def score(self, images: Tensor, output: DistillationOutput) -> Score:
        """Of all patches; a patch's total is around the mean of its image's tokens: what all have in common is given
        away."""
        target = output.target
        total = (target - target.mean(1, keepdim=True)).square().sum(-1)
        return Score((output.pred - target).square().sum(-1), total, output.losses)

    def adapted(self, num_classes: int | None, in_chans: int | None, img_size: int | tuple[int, int] | None) -> Self:
        for argument, value in {"num_classes": num_classes, "in_chans": in_chans}.items():
            if value is not None:
                raise ValueError(
                    f"{argument} must be None, got {value!r}: it has no classifier, and its head is for the images of "
                    f"its training; DEXVisionTransformer.from_pretrained takes {argument}, for its encoder"
                )
        self.encoder.set_input_size(img_size=checked_size(img_size))
        self.num_patches = self.encoder.patch_embed.num_patches
        carry_inputs(self.encoder, self.encoder)
        return self

    def describe(self) -> dict[str, Any]:
        return {
            "class": "DistilledEncoder",
            "arguments": {"teacher_dim": self.head.out_features, "class_token": self.class_token},
            "encoder": describe_encoder(self.encoder),
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(build_encoder(description["encoder"]), **description["arguments"])

    def _tokens(self, images: Tensor) -> Tensor:
        """As timm's ``forward_features``, which knows one way of running blocks again."""
        vit = self.encoder
        if not vit.grad_checkpointing:
            return vit.forward_features(images)
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return vit.norm(checkpointed(vit.blocks, x, self._selective))


def _content(model: nn.Module) -> str:
    """SHA-256 of a model's tensors by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _set_grid(model: Any, grid: tuple[int, int]) -> tuple[int, int]:
    """Have ``model`` take images that make ``grid``; their height and width."""
    try:
        rows, columns = model.patch_embed.patch_size
        size = (grid[0] * rows, grid[1] * columns)
        if tuple(model.patch_embed.img_size) != size:
            model.set_input_size(img_size=size)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot teach: expected a vision transformer with a grid of patches that can be "
            f"resized ({error})"
        ) from error
    return size
