"""The numbers of an evaluation: what the trainer measured, an entry an image, and their file format."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from dexcore.report.arrays import coerce, read_arrays, write_arrays

_FORMAT = 2
_FORMAT_BEFORE = 1  # without the patches' means; hidden patches were known by their gray alone
_GRAY_BEFORE = 128
NOT_SHOWN = np.array([0.60, 0.67, 0.80], dtype=np.float32)  # a blue that no gray image has


@dataclass(frozen=True, eq=False)
class Examples:
    """Images to look at, m of them.

    Attributes:
        modality: int64 [m], index into the evaluation's ``modality_names``.
        synthetic: bool [m], made by a simulation.
        heldout: bool [m], False for a training image.
        input: float32 [m, S, S, 3] in [0, 1], what the model was asked about.
        hidden: bool [m, S, S], True in patches that the model did not see.
        reconstruction: as input, the prediction in every patch; only hidden ones were ever asked for in training.
        patch_mean: as input, every patch filled with its own mean over pixels and channels, which is given away where
            targets are normalized patch by patch; nan where an older version did not keep it.

    Of a model that learns a teacher's tokens nothing is ``hidden``, ``patch_mean`` holds the teacher's tokens and
    ``reconstruction`` the model's, in the same three colours.
    """

    modality: np.ndarray
    synthetic: np.ndarray
    heldout: np.ndarray
    input: np.ndarray
    hidden: np.ndarray
    reconstruction: np.ndarray
    patch_mean: np.ndarray

    def __post_init__(self) -> None:
        coerce(self, "modality", np.int64)
        for name in ("synthetic", "heldout"):
            coerce(self, name, np.bool_, (len(self),))
        for name in _IMAGES:
            image = coerce(self, name, np.float32)
            if image.ndim != 4 or image.shape[0] != len(self) or image.shape[3] != 3:
                raise ValueError(f"{name}: shape {image.shape}, expected [{len(self)}, height, width, 3]")
            if image.shape != self.input.shape:
                raise ValueError(f"{name}: shape {image.shape}, expected {self.input.shape} as of input")
        coerce(self, "hidden", np.bool_, self.input.shape[:3])

    def __len__(self) -> int:
        return len(self.modality)

    @property
    def masked(self) -> np.ndarray:
        """What the model saw: the input, hidden patches in the color `NOT_SHOWN`."""
        return np.where(self.hidden[..., None], NOT_SHOWN, self.input)

    def only_hidden(self, image: np.ndarray) -> np.ndarray:
        """``image``, such as ``reconstruction``, in the hidden patches alone, the visible ones `NOT_SHOWN`."""
        return np.where(self.hidden[..., None], image, NOT_SHOWN)

    @property
    def has_patch_mean(self) -> bool:
        """Whether ``patch_mean`` was kept."""
        return bool(np.isfinite(self.patch_mean).any())


_IMAGES = ("input", "reconstruction", "patch_mean")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was measured on n images, none of them augmented.

    Lists and other dtypes are converted; a shape that does not fit, a modality out of range or a negative
    total is a ValueError that names the field.

    Attributes:
        modality_names: the names, in the order of the indices.
        modality: int64 [n], index into ``modality_names``.
        heldout: bool [n], False for a training image.
        synthetic: bool [n], made by a simulation.
        group: str [n], patient, volume, video or file the image comes from.
        sample_id: int64 [n], index of the image in its store.
        squared_error: float64 [n], sum over the image's masked patches of (prediction - target)^2,
            in the space of the loss.
        total: float64 [n], sum over the same patches of (target - the patch's own mean colour)^2.
        gates: an entry a DEX block, float32 [n, R_block]: the share of the image that each expert
            got, zero for an expert that was not chosen. Empty for a dense model.
        examples: images to look at.
    """

    modality_names: Sequence[str]
    modality: np.ndarray
    heldout: np.ndarray
    synthetic: np.ndarray
    group: np.ndarray
    sample_id: np.ndarray
    squared_error: np.ndarray
    total: np.ndarray
    gates: Sequence[np.ndarray]
    examples: Examples

    def __post_init__(self) -> None:
        object.__setattr__(self, "modality_names", tuple(str(name) for name in self.modality_names))
        coerce(self, "modality", np.int64)
        shape = (len(self),)
        for name in ("heldout", "synthetic"):
            coerce(self, name, np.bool_, shape)
        coerce(self, "group", np.str_, shape)
        coerce(self, "sample_id", np.int64, shape)
        coerce(self, "squared_error", np.float64, shape)
        coerce(self, "total", np.float64, shape)
        if (self.total < 0).any():
            raise ValueError("total: a sum of squares is negative")
        gates = tuple(np.asarray(block, dtype=np.float32) for block in self.gates)
        for number, block in enumerate(gates):
            if block.ndim != 2 or block.shape[0] != len(self) or block.shape[1] == 0:
                raise ValueError(f"gates[{number}]: shape {block.shape}, expected [{len(self)}, experts]")
        object.__setattr__(self, "gates", gates)
        for owner, index in (("modality", self.modality), ("examples.modality", self.examples.modality)):
            if index.size and (index.min() < 0 or index.max() >= len(self.modality_names)):
                raise ValueError(f"{owner}: an index is no index of {len(self.modality_names)} modality_names")

    def __len__(self) -> int:
        return len(self.modality)

    def groups(self, chosen_n: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The groups of the images ``chosen_n`` (bool [n], default all): what counts as one case.

        A group's name counts within its modality only: two sources may both have a "patient 1".

        Returns:
            The modality of each of g groups, int64 [g], and the group of each image, int64 [chosen].
        """
        chosen = slice(None) if chosen_n is None else chosen_n
        keys = np.stack([self.modality, np.unique(self.group, return_inverse=True)[1]])[:, chosen]
        groups, group_n = np.unique(keys, axis=1, return_inverse=True)
        return groups[0], group_n.reshape(-1)

    def save(self, path: str | Path) -> None:
        """Write one .npz without pickles, whole or not at all; the examples' images are rounded to 8 bits."""
        arrays: dict[str, np.ndarray] = {
            "modality_names": np.array(self.modality_names, dtype=np.str_),
            "blocks": np.array(len(self.gates)),
        }
        for name in _PER_IMAGE:
            arrays[name] = getattr(self, name)
        for number, block in enumerate(self.gates):
            arrays[f"gates_{number}"] = block
        for field in fields(Examples):
            value = getattr(self.examples, field.name)
            arrays[f"examples_{field.name}"] = _to_bytes(value) if field.name in _IMAGES else value
        write_arrays(path, _FORMAT, arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file (named) is truncated, damaged, or no evaluation of this version.
        """
        version, arrays = read_arrays(path, (_FORMAT_BEFORE, _FORMAT), "an evaluation's numbers")
        try:
            if version == _FORMAT_BEFORE:
                blanked = arrays["examples_masked"]
                arrays["examples_hidden"] = (blanked == _GRAY_BEFORE).all(axis=-1)
                arrays["examples_patch_mean"] = np.full(blanked.shape, np.nan, np.float32)
            examples = {field.name: arrays[f"examples_{field.name}"] for field in fields(Examples)}
            for name in _IMAGES:
                examples[name] = examples[name].astype(np.float32) / 255
            return cls(
                modality_names=arrays["modality_names"].tolist(),
                gates=[arrays[f"gates_{number}"] for number in range(int(arrays["blocks"]))],
                examples=Examples(**examples),
                **{name: arrays[name] for name in _PER_IMAGE},
            )
        except KeyError as error:
            raise ValueError(f"{path}: the array {error} is missing") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


_PER_IMAGE = ("modality", "heldout", "synthetic", "group", "sample_id", "squared_error", "total")


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return (np.nan_to_num(image, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)
