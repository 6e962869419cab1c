"""What was measured of one model, or of several together, and how it lies on the disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.evaluate.modules.shared import SharedSpace
from dexcore.measures.bootstrap import Estimate
from dexcore.measures.extraction import Extraction
from dexcore.measures.shared_space import Across
from dexcore.report.arrays import read_arrays, write_arrays

_FORMAT = 1
_KINDS = tuple(one.name for one in fields(SharedSpace))
_EXTRACTION = tuple(one.name for one in fields(Extraction))


@dataclass(frozen=True, eq=False)
class Part:
    """Numbers, and what twins are compared by.

    Attributes:
        numbers: for JSON.
        extraction: of a model whose experts were extracted.
        spaces: of a store whose classes are known, by name.
    """

    numbers: dict[str, Any]
    extraction: Extraction | None = None
    spaces: Mapping[str, SharedSpace] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write all of it, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        if self.extraction is not None:
            arrays |= {f"extraction {name}": np.asarray(getattr(self.extraction, name)) for name in _EXTRACTION}
        plain: dict[str, dict[str, Any]] = {}
        for space, one in self.spaces.items():
            plain[space] = {}
            for kind in _KINDS:
                values = asdict(getattr(one, kind))
                arrays |= {f"{space} {kind} {name}": values.pop(name) for name in list(values) if name.endswith("_q")}
                plain[space][kind] = values
        told = json.dumps({"numbers": self.numbers, "spaces": plain})
        write_arrays(path, _FORMAT, arrays | {"told": np.array(told)})

    @classmethod
    def load(cls, path: Path) -> "Part":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or of another version.
        """
        _, arrays = read_arrays(path, (_FORMAT,), "numbers of modules")
        try:
            told = json.loads(str(arrays.pop("told")))
            extraction = None
            if "extraction sizes" in arrays:
                found: dict[str, Any] = {name: arrays[f"extraction {name}"] for name in _EXTRACTION}
                found["modalities"], found["sizes"] = (tuple(found[name].tolist()) for name in ("modalities", "sizes"))
                extraction = Extraction(**found)
            spaces = {
                space: SharedSpace(**{kind: _across(kinds[kind], arrays, f"{space} {kind} ") for kind in _KINDS})
                for space, kinds in told["spaces"].items()
            }
            return cls(told["numbers"], extraction, spaces)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged, expected numbers of modules ({error})") from error


def _across(plain: dict[str, Any], arrays: Mapping[str, np.ndarray], start: str) -> Across:
    own: dict[str, Any] = {
        name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)
    }
    return Across(**plain | {"value": Estimate(**plain["value"])}, **own)
