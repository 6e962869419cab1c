"""What a build leaves beside a store: build.json, what became of all files as numbers; rejects.jsonl, why, by file;
examples.jsonl, small pictures of some. The page of the store is made of them.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dexcore.data.assemble.examples import Example
from dexcore.data.assemble.reasons import Reject, remedy
from dexcore.data.assemble.report import SourceReport
from dexcore.files import write_whole

BUILD = "build.json"
REJECTS = "rejects.jsonl"
EXAMPLES = "examples.jsonl"
PAGE = "report.html"  # made of the three by `dexcore.report.store_page`
NO_SOURCE = ""  # stands for the source of what belongs to none


def read_reports(out: Path) -> dict[str, SourceReport]:
    """What earlier builds say of their sources, by name; nothing where build.json is missing or damaged."""
    try:
        sources = {str(name): SourceReport(**report) for name, report in _content(out)["sources"].items()}
    except (KeyError, TypeError, AttributeError):
        return {}
    return sources if all(report.is_sound() for report in sources.values()) else {}


def read_help(out: Path) -> dict[str, str]:
    """What would help what was dropped, by reason; nothing where build.json is missing or damaged."""
    told = _content(out).get("help")
    return {reason: str(sentence) for reason, sentence in told.items()} if isinstance(told, dict) else {}


def read_examples(path: Path) -> Iterator[tuple[str, Example]]:
    """The examples of such a file, each with the name of its source; nothing of lines that are damaged."""
    for line in json_lines(path):
        name = line.pop("source", None) or NO_SOURCE
        try:
            example = Example(**line)
        except TypeError:  # of another version
            continue
        if isinstance(name, str) and example.is_sound():
            yield name, example


def _content(out: Path) -> dict[str, Any]:
    try:
        content = json.loads((out / BUILD).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def leave(
    staging: Path,
    out: Path,
    reports: Mapping[str, SourceReport],
    sources: Collection[str],
    built: Mapping[str, tuple[Sequence[Reject], Sequence[Example]]],
    closed: Sequence[tuple[str, str]] | None = None,
) -> None:
    """Write the three files, each whole or not at all; the page of the store that was there is none of the new one's.

    Args:
        staging: the build's folder, where a kill leaves what is half done.
        out: the store.
        reports: of its sources.
        sources: of the store; lines of others than these and those of the reports go.
        built: rejects and examples of the sources whose lines are replaced, by name.
        closed: paths that no source could take, with the reason; None: as they stand there.
    """
    (out / PAGE).unlink(missing_ok=True)
    rejects = {
        name: [{"path": one.path, "reason": one.reason} for one in rejects] for name, (rejects, _) in built.items()
    }
    if closed is not None:
        rejects[NO_SOURCE] = [{"path": path, "reason": reason} for path, reason in closed]
    examples = {name: [asdict(one) for one in examples] for name, (_, examples) in built.items()}
    kept = {NO_SOURCE, *reports, *sources}
    dropped = sorted({reason for report in reports.values() for reason in report.dropped})
    build = {
        "version": 1,
        "sources": {name: asdict(report) for name, report in sorted(reports.items())},
        "help": {reason: sentence for reason in dropped if (sentence := remedy(reason))},
    }
    for file, text in (
        (REJECTS, _text(out / REJECTS, rejects, kept)),
        (EXAMPLES, _text(out / EXAMPLES, examples, kept)),
        (BUILD, json.dumps(build, indent=1) + "\n"),
    ):
        write_whole(staging / file, text.encode())
        os.replace(staging / file, out / file)


def _text(path: Path, built: Mapping[str, Sequence[Mapping[str, Any]]], kept: Collection[str]) -> str:
    """One JSON object a line, by source; the lines of sources that were not built stay."""
    lines: list[Mapping[str, Any]] = [
        line
        for line in json_lines(path)
        if (name := str(line.get("source") or NO_SOURCE)) in kept and name not in built
    ]
    lines += [{"source": name or None, **line} for name, found in built.items() for line in found]
    lines.sort(key=lambda line: str(line.get("source") or NO_SOURCE))
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of such a file, a line each; nothing of one that is missing or damaged."""
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    content = json.loads(line)
                except ValueError:
                    continue
                if isinstance(content, dict):
                    yield content
    except OSError:
        return
