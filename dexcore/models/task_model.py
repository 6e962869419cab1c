"""A fine-tuned model: an encoder, a head, and a description of the task, all that its use needs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dexcore.checks import check_kind, check_number
from dexcore.models.card import task_card
from dexcore.models.inputs import adapt
from dexcore.models.pretrained import PretrainedMixin
from dexcore.models.pyramid import block_maps, checked_blocks
from dexcore.models.unetr import UNETRDecoder
from dexcore.models.vit import build_encoder, describe_encoder
from dexcore.ops.checks import check_choice
from dexcore.task_kinds import KINDS, SEGMENTATIONS, Kind

CROPS = ("center", "whole")
POOLS = ("cls", "mean")
_INIT_STD = 0.02


@dataclass(frozen=True)
class TaskDescription:
    """What a model was fine-tuned for, and how files become its images.

    The size of the images, mean, deviation and filter are the encoder's own (`PretrainedMixin.set_preprocessing`).

    Attributes:
        name: of the task.
        kind: classification, multilabel, ordinal, segmentation or multilabel_segmentation.
        classes: their names, by index; of a multilabel_segmentation the names of the channels.
        modalities: of the images, names of `dexcore.data.Modality`; several where images say their own.
        normalization: how raw pixels come to lie in [0, 1], a name of `dexcore.data.normalize`; None: by modality.
        units: "HU" or "SUV", of files that do not say theirs.
        range: the values of black and white, where the task declares them.
        crop: "center", the middle square of an image with square pixels; or "whole", all of it, squeezed into the
            input, which masks need.
        axis: across which volumes are cut, "sagittal", "coronal" or "axial"; None: that of their acquisition.
        table_spacing: whether the task's table gave pixels another shape than their files did: labels are learned from
            square ones.

    Raises:
        TypeError, ValueError: a value is of another kind; the message names it.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    normalization: str | None = None
    units: str | None = None
    range: tuple[float, float] | None = None
    crop: str = "center"
    axis: str | None = None
    table_spacing: bool = False

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("crop", self.crop, CROPS)
        for name in ("classes", "modalities", "range"):
            value = getattr(self, name)
            if name != "range" or value is not None:
                check_kind(name, value, list | tuple, "a list")
                object.__setattr__(self, name, tuple(value))
        check_kind("name", self.name, str, "a text")
        for name in ("classes", "modalities"):
            values = getattr(self, name)
            for value in values:
                check_kind(name, value, str, "names")
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be at least one, each another, got {list(values)}")
        for name in ("normalization", "units", "axis"):
            check_kind(name, getattr(self, name), str | None, "a name or None")
        check_kind("table_spacing", self.table_spacing, bool, "True or False")
        if self.axis is not None:
            check_choice("axis", self.axis, ("sagittal", "coronal", "axial"))
        if self.range is not None:
            if len(self.range) != 2:
                raise ValueError(f"range must be the values of black and white, got {list(self.range)}")
            for value in self.range:
                check_number("range", value, "finite", lambda x: abs(x) < float("inf"))
        if self.is_segmentation and self.crop != "whole":
            raise ValueError(f'crop must be "whole" for masks, which cover the image, got {self.crop!r}')

    @property
    def is_segmentation(self) -> bool:
        """Whether it asks for masks, not for labels."""
        return self.kind in SEGMENTATIONS

    @property
    def is_multilabel(self) -> bool:
        """Whether an image, or a pixel, may be of several classes: sigmoids, in place of a softmax."""
        return self.kind in ("multilabel", "multilabel_segmentation")


class ClassificationHead(nn.Module):
    """Norm, dropout and a linear layer on the class token or the mean of the patch tokens.

    Args:
        width: of the tokens.
        num_classes: how many logits.
        pool: "cls" or "mean".
        drop_rate: of the pooled features, in training.

    Raises:
        TypeError, ValueError: another word, or no rate from 0 to 1.
    """

    def __init__(self, width: int, num_classes: int, pool: str = "cls", drop_rate: float = 0.0) -> None:
        super().__init__()
        check_choice("pool", pool, POOLS)
        check_number("drop_rate", drop_rate, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        self.pool = pool
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(drop_rate)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=_INIT_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, prefix: int) -> Tensor:
        """Logits [B, num_classes] of tokens [B, N, D], of which ``prefix`` are no patches; the class token is first."""
        pooled = tokens[:, 0] if self.pool == "cls" else tokens[:, prefix:].mean(dim=1)
        return self.linear(self.drop(self.norm(pooled)))


class TaskModel(PretrainedMixin, nn.Module):
    """An encoder with a head for a task: `ClassificationHead`, or for masks a `UNETRDecoder` on the encoder's blocks.

    The encoder is taken over, not copied. What of it would have no part is removed: its classifier, pooling and norm
    behind it, and, for masks, the final norm (so that no parameter is left without a gradient, for which DDP waits).
    ``save_pretrained`` writes the folder that ``from_pretrained`` and ``dexcore predict`` open;
    `DEXVisionTransformer.from_pretrained` opens the encoder in it.

    Args:
        encoder: any timm `VisionTransformer`, DEX (in experts or director mode) or dense, which says how its images are
            made (``pretrained_cfg``; of dexcore's own: `PretrainedMixin.set_preprocessing`).
        task: what it is for.
        pool: of classification, "cls" or "mean" of the patches. Default: "cls" where there is a class token.
        drop_rate: of classification, before the linear layer, in training.
        blocks: of segmentation, whose outputs are decoded, counted from 1. Default: every quarter, 3, 6, 9, 12 of 12.
        width: of segmentation, the decoder's channels at the image's resolution (`UNETRDecoder`).

    Attributes:
        encoder, task: as given.
        head: the new part, with an optimizer's full rate.

    Raises:
        TypeError, ValueError: an argument is of another kind, or not for this kind of task; the message names it.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        task: TaskDescription,
        *,
        pool: str | None = None,
        drop_rate: float | None = None,
        blocks: Sequence[int] | None = None,
        width: int | None = None,
    ) -> None:
        super().__init__()
        check_kind("encoder", encoder, VisionTransformer, "a timm VisionTransformer")
        check_kind("task", task, TaskDescription, "a TaskDescription")
        of_labels, of_masks = {"pool": pool, "drop_rate": drop_rate}, {"blocks": blocks, "width": width}
        for name, value in (of_labels if task.is_segmentation else of_masks).items():
            if value is not None:
                raise ValueError(f"{name} is not for a task of kind {task.kind}, got {value!r}")
        if pool == "cls" and not encoder.has_class_token:
            raise ValueError('pool="cls" needs an encoder with a class token; use pool="mean"')
        self.encoder, self.task = encoder, task
        self.head: nn.Module
        classes = len(task.classes)
        if task.is_segmentation:
            embed = encoder.patch_embed
            if embed.num_patches == 1:
                raise ValueError(f"encoder sees an image of {embed.img_size} as one patch, masks need several")
            self.blocks = checked_blocks(encoder, blocks)
            self.head = UNETRDecoder(
                encoder.in_chans, encoder.embed_dim, len(self.blocks), tuple(embed.patch_size), classes, width
            )
        else:
            pool = pool or ("cls" if encoder.has_class_token else "mean")
            self.head = ClassificationHead(encoder.embed_dim, classes, pool, drop_rate or 0.0)
        encoder.reset_classifier(0, "")
        encoder.fc_norm = nn.Identity()
        if task.is_segmentation:
            encoder.norm = nn.Identity()
        weight = encoder.patch_embed.proj.weight
        self.head.to(device=weight.device, dtype=weight.dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images [B, C, S, S], as the encoder takes them: [B, classes], of masks [B, classes, S, S]."""
        if self.task.is_segmentation:
            return self.head(images, block_maps(self.encoder, images, self.blocks))
        return self.head(self.encoder.forward_features(images), self.encoder.num_prefix_tokens)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the classes, along the second axis: they sum to 1, or, of a multilabel task, each is its own."""
        return logits.sigmoid() if self.task.is_multilabel else logits.softmax(dim=1)

    @property
    def vision_transformer(self) -> VisionTransformer:
        return self.encoder

    def adapted(self, num_classes: int | None, in_chans: int | None, img_size: int | tuple[int, int] | None) -> Self:
        """With another image size; classes and channels are those that the task was learned with."""
        for name, value, own in (
            ("num_classes", num_classes, len(self.task.classes)),
            ("in_chans", in_chans, self.encoder.in_chans),
        ):
            if value not in (None, own):
                raise ValueError(f"{name} is {own} in a fine-tuned model, got {value}; adapt the encoder alone")
        adapt(self.encoder, None, None, img_size)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of the encoder's blocks in the backward, not store them."""
        self.encoder.set_grad_checkpointing(enable)

    def card(self) -> str:
        return task_card(self.encoder, self.task)

    def describe(self) -> dict[str, Any]:
        head: dict[str, Any]
        if isinstance(self.head, ClassificationHead):
            head = {"pool": self.head.pool, "drop_rate": self.head.drop.p}
        else:
            assert isinstance(self.head, UNETRDecoder)
            head = {"blocks": list(self.blocks), "width": self.head.width}
        return {
            "class": type(self).__name__,
            "encoder": describe_encoder(self.encoder),
            "head": head,
            "task": asdict(self.task),
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        task, head = description["task"], description["head"]
        for name, value in (("task", task), ("head", head)):
            check_kind(name, value, Mapping, "an object")
        known = {field.name for field in fields(TaskDescription)}
        if unknown := set(task) - known:
            raise ValueError(f"task has the field {min(unknown)!r}, expected only {', '.join(sorted(known))}")
        return cls(build_encoder(description["encoder"]), TaskDescription(**task), **head)
