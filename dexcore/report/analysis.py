"""The numbers that a model alone can give, and no log: features, gradients, and what its experts compute.

The trainer measures them once, at the end of a run; the report is made from them without the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dexcore.report.arrays import coerce, read_arrays, write_arrays

_FORMAT = 1
_CONTENT = "an analysis's numbers"
MODES = ("experts", "director")
DENSE = "dense"  # the mode of an encoder without experts, in words
PARTS = ("shared weights", "experts")


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was measured on the n images of an `Evaluation`, in its order, none of them masked but for the gradients.

    Attributes:
        label_names: of what an image shows, whatever its modality; empty where nothing is known.
        label: int64 [n], index into ``label_names``; -1 where it is not known.
        features: float32 [2, n, D], the encoder's feature of an image, in experts and in director mode (`MODES`); of a
            dense encoder [1, n, D].
        patches: float32 [2 or 1, m, rows, columns, 3], of the evaluation's m examples in the same modes: the first
            three principal components of the encoder's patch tokens, of all images and modes together.
        patch_variance: float64 [3], the components' shares of the variance.
        gradient_modalities: names of the g modalities whose gradients were compared.
        gradient_images: int64 [g], images in the smaller half of each.
        gradient_cosines: float64 [2, g, g], cosine of the gradients of two modalities, of the encoder's weights that
            every image uses and of its experts' (`PARTS`; of a dense encoder the first alone, [1, g, g]). Each
            modality's images were cut into two halves: the diagonal is the cosine between them, the other entries are
            means over the four pairs of halves.
        expert_similarity: an entry a DEX block, float64 [R + 1, R + 1]: linear CKA of the outputs of every two experts
            for the same tokens; the director is last.
    """

    label_names: Sequence[str]
    label: np.ndarray
    features: np.ndarray
    patches: np.ndarray
    patch_variance: np.ndarray
    gradient_modalities: Sequence[str]
    gradient_images: np.ndarray
    gradient_cosines: np.ndarray
    expert_similarity: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        for name in ("label_names", "gradient_modalities"):
            object.__setattr__(self, name, tuple(str(value) for value in getattr(self, name)))
        coerce(self, "label", np.int64, (None,))
        if len(self) and not -1 <= self.label.min() <= self.label.max() < len(self.label_names):
            raise ValueError(f"label: an index is no index of {len(self.label_names)} label_names, nor -1")
        coerce(self, "features", np.float32, (None, len(self), None))
        coerce(self, "patches", np.float32, (len(self.modes), None, None, None, 3))
        coerce(self, "patch_variance", np.float64, (3,))
        compared = len(self.gradient_modalities)
        coerce(self, "gradient_images", np.int64, (compared,))
        coerce(self, "gradient_cosines", np.float64, (len(self.modes), compared, compared))  # experts: one part more
        blocks = tuple(np.asarray(block, dtype=np.float64) for block in self.expert_similarity)
        for number, block in enumerate(blocks):
            if block.ndim != 2 or block.shape[0] != block.shape[1] or len(block) < 2:
                raise ValueError(f"expert_similarity[{number}]: shape {block.shape}, expected [experts + 1] twice")
        object.__setattr__(self, "expert_similarity", blocks)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def modes(self) -> tuple[str, ...]:
        """Those that the encoder was measured in.

        Raises:
            ValueError: features are of another number of modes.
        """
        if len(self.features) not in (1, len(MODES)):
            raise ValueError(f"features: of {len(self.features)} modes, expected {len(MODES)}, or 1 of a dense encoder")
        return MODES if len(self.features) == len(MODES) else (DENSE,)

    def save(self, path: str | Path) -> None:
        """Write one .npz without pickles, whole or not at all; features and patches are rounded to half precision.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {name: getattr(self, name) for name in _EXACT}
        for name in _ROUNDED:
            with np.errstate(over="ignore"):
                arrays[name] = getattr(self, name).astype(np.float16)
        for name in _NAMES:
            arrays[name] = np.array(getattr(self, name), dtype=np.str_)
        arrays["blocks"] = np.array(len(self.expert_similarity))
        for number, block in enumerate(self.expert_similarity):
            arrays[f"expert_similarity_{number}"] = block
        write_arrays(path, _FORMAT, arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Analysis":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file (named) is truncated, damaged, or no analysis of this version.
        """
        _, arrays = read_arrays(path, (_FORMAT,), _CONTENT)
        try:
            return cls(
                expert_similarity=[arrays[f"expert_similarity_{number}"] for number in range(int(arrays["blocks"]))],
                label_names=arrays["label_names"].tolist(),
                gradient_modalities=arrays["gradient_modalities"].tolist(),
                **{name: arrays[name] for name in (*_EXACT, *_ROUNDED)},
            )
        except KeyError as error:
            raise ValueError(f"{path}: the array {error} is missing") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error


_NAMES = ("label_names", "gradient_modalities")
_EXACT = ("label", "patch_variance", "gradient_images", "gradient_cosines")
_ROUNDED = ("features", "patches")
