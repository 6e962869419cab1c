"""The model card: README.md beside the weights, as the Hugging Face Hub shows it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from timm.models.vision_transformer import VisionTransformer

from dexcore.models.inputs import knows_view, slices_of
from dexcore.nn import DEXMlp, rule_of

CARD_FILE = "README.md"
_FOLDER = "path/to/this/folder"
_NOTHING_KNOWN = (
    "Nothing is recorded here of the images and the training. Whoever hands the model on should say what it was "
    "trained on and how it was measured."
)


class _Pretrained(NamedTuple):
    """How a card speaks of a class that holds a pre-trained encoder."""

    tag: str
    how: str
    beside: str
    whole: str


_PRETRAINED = {
    "MaskedAutoencoder": _Pretrained(
        "masked-autoencoder", "as a masked autoencoder", "the autoencoder's decoder", "The whole autoencoder"
    ),
    "DistilledEncoder": _Pretrained(
        "distillation",
        "by distillation of a teacher's tokens",
        "the layer that gives the teacher's tokens",
        "All of it",
    ),
}


def model_card(vit: VisionTransformer, kind: str, sections: Sequence[tuple[str, str]] = ()) -> str:
    """A card's text: what the model is, how to load it, then ``sections``.

    Args:
        vit: the model, or an autoencoder's encoder.
        kind: class name of the saved model.
        sections: heading and Markdown text of each; () says that nothing is recorded.
    """
    tags = [_PRETRAINED[kind].tag] if kind in _PRETRAINED else []
    parts = [
        _front("image-feature-extraction", tags),
        f"# {_title(vit, kind)}",
        _anatomy(vit, kind),
        "## How to load it",
        _how_to_load(vit, kind),
    ]
    for heading, text in sections or [("Data and training", _NOTHING_KNOWN)]:
        parts += [f"## {heading}", text]
    return "\n\n".join(parts) + "\n"


def task_card(vit: VisionTransformer, task: Any) -> str:
    """The card of a fine-tuned model, a `TaskModel` with this encoder and ``task``, its `TaskDescription`."""
    name = "Director-Experts vision transformer" if _dex_layers(vit) else "Vision transformer"
    asked = "the class of each pixel" if task.is_segmentation else "the class of an image"
    parts = [
        _front("image-segmentation" if task.is_segmentation else "image-classification", []),
        f"# {name}, fine-tuned: {task.name}",
        f"Asked for {asked} ({task.kind.replace('_', ' ')}): {', '.join(task.classes)}. Images: "
        f"{', '.join(task.modalities)}.",
        _anatomy(vit, "TaskModel"),
        "## How to use it",
        f"```bash\ndexcore predict IMAGE --model {_FOLDER}\n```",
        "```python\nfrom dexcore.models import TaskModel\n"
        f'model = TaskModel.from_pretrained("{_FOLDER}")  # or "user/name" on the Hugging Face Hub\n'
        "logits = model(images)  # [B, C, S, S], as model.encoder says\n```",
        "A research model: nothing here says that it is fit for the care of patients.",
        "## Data and training",
        _NOTHING_KNOWN,
    ]
    return "\n\n".join(parts) + "\n"


def _front(pipeline: str, tags: Sequence[str]) -> str:
    """The Hub's header."""
    tags = ["dexcore", "timm", "vision-transformer", "mixture-of-experts", "medical-imaging", *tags]
    # "unknown" is the Hub's word; what the images' owners allow nobody but the publisher can know.
    front = ["---", "library_name: dexcore", "license: unknown", f"pipeline_tag: {pipeline}", "tags:"]
    return "\n".join([*front, *(f"- {tag}" for tag in tags), "---"])


def _title(vit: VisionTransformer, kind: str) -> str:
    name = "Director-Experts vision transformer" if _dex_layers(vit) else "Vision transformer"
    return f"{name}, pre-trained {_PRETRAINED[kind].how}" if kind in _PRETRAINED else name


def _anatomy(vit: VisionTransformer, kind: str) -> str:
    (height, width), (rows, columns) = vit.patch_embed.img_size, vit.patch_embed.patch_size
    layers = _dex_layers(vit)
    numbers = sum(parameter.numel() for parameter in vit.parameters())
    text = (
        f"{len(vit.blocks)} blocks of width {vit.embed_dim}; images of {height} x {width} pixels and {vit.in_chans} "
        f"channels{_sliced(vit)} in patches of {rows} x {columns}; {numbers:,} parameters"
    )
    if layers:
        experts, chosen = ([getattr(layer, name) for layer in layers] for name in ("num_experts", "top_k"))
        text += f"; experts in each block {_listed(experts)}, of which an image is given {_listed(chosen)}"
    if kind == "TaskModel":
        return text + ", without the head."
    classifier = f", with a classifier of {vit.num_classes} classes" if vit.num_classes else ", without a classifier"
    return text + classifier + (f", beside {_PRETRAINED[kind].beside}." if kind in _PRETRAINED else ".")


def _sliced(vit: VisionTransformer) -> str:
    return " (so many neighbouring slices of a volume, the image's own in the middle)" if slices_of(vit) > 1 else ""


def _dex_layers(vit: VisionTransformer) -> list[DEXMlp]:
    return [block.mlp for block in vit.blocks if isinstance(block.mlp, DEXMlp)]


def _ruled(vit: VisionTransformer) -> list[str]:
    """The line that tells a model whose experts a rule chooses which images come."""
    rule = rule_of(vit)
    if rule is None:
        return []
    known = f"its modality, one of {', '.join(rule.modalities)}" if rule.kind == "oracle" else "its name"
    return [f"dexcore.nn.route_by_rule(encoder, [name], [modality])  # each image's experts are chosen by {known}"]


def _listed(numbers: list[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else ", ".join(map(str, numbers))


def _how_to_load(vit: VisionTransformer, kind: str) -> str:
    if not _dex_layers(vit):
        return (
            f'```python\nfrom dexcore.models import {kind}\nencoder = {kind}.from_pretrained("{_FOLDER}").encoder\n```'
        )
    lines = [
        *(["import dexcore.nn"] if rule_of(vit) else []),
        "from dexcore.models import DEXVisionTransformer",
        f'encoder = DEXVisionTransformer.from_pretrained("{_FOLDER}")  # or "user/name" on the Hugging Face Hub',
    ]
    if knows_view(vit):
        shape = f"[H, W, {vit.in_chans}], slices of a volume" if slices_of(vit) > 1 else "[H, W] or [H, W, 3]"
        lines += [
            f"images = encoder.preprocess([image])  # each {shape}: uint8, uint16 or floats in [0, 1]",
            *_ruled(vit),
            "features = encoder.forward_features(images)  # [1, tokens, width], the class token first",
        ]
    whole = ""
    if kind in _PRETRAINED:
        whole = f" {_PRETRAINED[kind].whole} is opened by `dexcore.models.{kind}.from_pretrained`."
    return (
        "\n".join(["```python", *lines, "```"]) + f"\n\nThrough timm, after `import dexcore`: "
        f'`timm.create_model("local-dir:{_FOLDER}", pretrained=True)`, or `"hf-hub:user/name"`.{whole}'
    )
