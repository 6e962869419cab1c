"""The kinds of tasks: what tables of labels (`dexcore.evaluate.tasks`) and fine-tuned models are of. Needs no torch."""

from typing import Literal

Kind = Literal["classification", "multilabel", "ordinal", "segmentation", "multilabel_segmentation"]

SEGMENTATIONS = ("segmentation", "multilabel_segmentation")
KINDS = ("classification", "multilabel", "ordinal", *SEGMENTATIONS)
