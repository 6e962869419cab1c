"""What a build leaves beside a store: build.json, what became of all files as numbers; rejects.jsonl, why, by file."""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dexcore.data.assemble.reasons import Reject
from dexcore.data.assemble.report import SourceReport
from dexcore.files import write_whole

BUILD = "build.json"
REJECTS = "rejects.jsonl"


def read_reports(out: Path) -> dict[str, SourceReport]:
    """What earlier builds say of their sources, by name; nothing where build.json is missing or damaged."""
    try:
        content = json.loads((out / BUILD).read_bytes())
        return {str(name): SourceReport(**report) for name, report in content["sources"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def build_text(reports: Mapping[str, SourceReport]) -> str:
    """The content of build.json."""
    content = {"version": 1, "sources": {name: asdict(report) for name, report in sorted(reports.items())}}
    return json.dumps(content, indent=1) + "\n"


def rejects_text(
    out: Path,
    built: Mapping[str, Sequence[Reject]],
    closed: Sequence[tuple[str, str]] | None = None,
    known: Collection[str] | None = None,
) -> str:
    """The content of rejects.jsonl: one JSON object a line, source, path, reason.

    Args:
        out: the store; the lines of its other sources stay.
        built: rejects of the sources whose lines are replaced, by name.
        closed: paths that no source could take, with the reason; None: as they stand there.
        known: sources whose lines stay; None: all.
    """
    lines = [line for line in _lines(out / REJECTS) if line.get("source") not in built]
    if known is not None:
        lines = [line for line in lines if line.get("source") in known]
    for source, rejects in built.items():
        lines += [{"source": source, "path": one.path, "reason": one.reason} for one in rejects]
    if closed is not None:
        lines += [{"source": None, "path": path, "reason": reason} for path, reason in closed]
    lines.sort(key=lambda line: str(line.get("source") or ""))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def put(staging: Path, path: Path, text: str) -> None:
    """Write a file beside the store, whole or not at all; what a kill leaves lies in the build's folder."""
    write_whole(staging / path.name, text.encode())
    os.replace(staging / path.name, path)


def _lines(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content
