"""The course of a run: files of one JSON object a line, read into columns."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SCALARS = (
    "loss_self",
    "loss_align",
    "loss_balance",
    "lr",
    "momentum",
    "noise_std",
    "lambda_balance",
    "grad_norm",
    "images_per_second",
)
SECONDS = ("seconds_data", "seconds_forward", "seconds_backward", "seconds_communication", "seconds_update")
MEASURED = ("images_per_second", *SECONDS)  # by a clock: not the same of a run that is made again


@dataclass(frozen=True, eq=False)
class History:
    """Columns over the recorded steps.

    Attributes:
        step: int64 [steps]: 0, 1, 2 and so on, as `read` gives it.
        scalars: each of `SCALARS` as float64 [steps], nan where a step has no such number.
        load: an entry a DEX block, float64 [steps, R_block]: the share of the batch each expert got.
        skipped: bool [steps]: loss or gradient was not finite, and the weights stayed as they were.
        rolled_back: how often the run went back to the weights of an earlier checkpoint.
    """

    step: np.ndarray
    scalars: dict[str, np.ndarray]
    load: tuple[np.ndarray, ...]
    skipped: np.ndarray
    rolled_back: int = 0

    @classmethod
    def read(cls, path: str | Path) -> "History":
        """Read a metrics.jsonl.

        A last line that a kill cut short is left out.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no step in it, a damaged line before the last, a step that is missing or not at its place, or
                blocks that change between steps; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, expected one JSON object a step")
        records = read_records(path, every_step=True)
        if not records:
            raise ValueError(f"{path}: no step in it, expected one JSON object a step")
        return cls(
            step=np.array([record["step"] for record in records], dtype=np.int64),
            scalars={name: _column(path, records, name) for name in SCALARS},
            load=_blocks(path, records, "load", axes=1),
            skipped=_skipped(path, records),
            rolled_back=max((int(record.get("rolled_back", 0)) for record in records), default=0),
        )


@dataclass(frozen=True, eq=False)
class SimilarityCourse:
    """How alike the experts of each block were at some moments of a run.

    Attributes:
        step: int64 [moments], rising: steps done.
        blocks: an entry a DEX block, float64 [moments, R_block + 1, R_block + 1]: linear CKA as in
            `dexcore.report.analysis.Analysis.expert_similarity`; nan where it was not measurable.
        align: float64 [moments, blocks], the alignment loss minus what it is at agreement; nan where a moment has none,
            as in folders of older versions.
        align_kind: "kd", "cosine" or "mse"; "" where there is none.
    """

    step: np.ndarray
    blocks: tuple[np.ndarray, ...]
    align: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    align_kind: str = ""

    @classmethod
    def read(cls, path: str | Path) -> "SimilarityCourse":
        """Read a similarity.jsonl; no moment at all where there is no such file, as in folders of older versions.

        A last line that a kill cut short is left out.

        Raises:
            ValueError: a damaged line before the last, steps that do not rise, or blocks that change between moments;
                the message names the file.
        """
        path = Path(path)
        records = read_records(path) if path.is_file() else []
        blocks = _blocks(path, records, "blocks", axes=2)
        if any(block.shape[1] != block.shape[2] or block.shape[1] < 2 for block in blocks):
            raise ValueError(f"{path}: blocks holds something else than matrices of [experts + 1] twice")
        align, kind = _alignments(path, records, len(blocks))
        return cls(np.array([record["step"] for record in records], dtype=np.int64), blocks, align, kind)


def read_records(path: Path, every_step: bool = False) -> list[dict[str, Any]]:
    """The lines' objects; with ``every_step`` the first is of step 0, and none is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: expected a JSON object ({error})") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}, line {number}: expected a JSON object with an integer step")
        if every_step and record["step"] != len(records):
            raise ValueError(
                f"{path}, line {number}: step {record['step']}, expected step {len(records)}: every step once, from 0"
            )
        if records and record["step"] <= records[-1]["step"]:
            raise ValueError(f"{path}, line {number}: step {record['step']} after {records[-1]['step']}")
        records.append(record)
    return records


def _column(path: Path, records: list[dict[str, Any]], name: str) -> np.ndarray:
    try:
        return np.array([record.get(name) for record in records], dtype=np.float64)  # None becomes nan
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name} is not a number in every step ({error})") from error


def _skipped(path: Path, records: list[dict[str, Any]]) -> np.ndarray:
    found = [record.get("skipped", False) for record in records]
    if not all(isinstance(one, bool) for one in found):
        raise ValueError(f"{path}: skipped is neither true nor false in every step")
    return np.array(found, dtype=np.bool_)


def _alignments(path: Path, records: list[dict[str, Any]], blocks: int) -> tuple[np.ndarray, str]:
    """Loss minus floor [records, blocks], nan where a record has none, and the loss's kind."""
    above, kind = np.full((len(records), blocks), np.nan), ""
    for number, record in enumerate(records):
        entry = record.get("align")
        if entry is None:
            continue
        try:
            loss, floor = (np.array(entry[name], dtype=np.float64) for name in ("loss", "floor"))  # None becomes nan
            above[number], kind = loss - floor, str(entry["kind"])
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path}: align is not a loss and a floor for each of {blocks} blocks ({error})"
            ) from error
    return above, kind


def _blocks(path: Path, records: list[dict[str, Any]], name: str, axes: int) -> tuple[np.ndarray, ...]:
    """The lists under ``name``, an entry a block, each [records, ...] with ``axes`` more axes."""
    entries = [record.get(name) or [] for record in records]
    try:
        blocks = [np.array(block, dtype=np.float64) for block in zip(*entries, strict=True)]  # None becomes nan
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name} is not the same list of blocks in every step ({error})") from error
    if any(block.ndim != 1 + axes for block in blocks):
        raise ValueError(f"{path}: {name} is not a list of numbers in {axes} axes an entry a block")
    return tuple(blocks)
