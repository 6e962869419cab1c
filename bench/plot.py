"""Pictures of what is in bench/results: ``python -m bench.plot``.

Of every case the newest lines count. A picture says what it was measured on; predictions are hatched and say so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.timing import RESULTS
from dexcore.extras import require

Line = dict[str, Any]

# One color a contender, told apart in gray too by their order.
_COLORS = {
    "dexcore": "#3a86c8",
    "published": "#7f7f7f",
    "loop": "#b0a18f",
    "grouped": "#8f7fb5",
    "eager": "#7f7f7f",
    "compiled": "#8f7fb5",
    "foreach": "#b0a18f",
    "dense": "#cfcfcf",
}
_OURS, _OTHER, _MARK = _COLORS["dexcore"], "#7f7f7f", "#d9483b"
_DPI = 130
_CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def draw(results: Path = RESULTS) -> list[Path]:
    """Draw every file of lines that there is; returns what was written."""
    drawn = []
    for name, picture in (
        ("contenders", _contenders),
        ("layer", _layer),
        ("ema", _ema),
        ("align", _align),
        ("augment", _augment),
        ("codec", _codec),
        ("feed", _feed),
        ("step", _step),
        ("kernels", _kernels),
        ("growth", _growth),
    ):
        lines = newest(results / f"{name}.jsonl")
        if not lines:
            continue
        path = results / f"{name}.png"
        with require("matplotlib", "train").rc_context(
            {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
        ):
            figure = picture(lines)
            figure.savefig(path, dpi=_DPI, facecolor="white")
        drawn.append(path)
    return drawn


def newest(path: Path) -> list[Line]:
    """A file's lines, of each case and device the newest alone, in the order they came; of CPUs the last's."""
    if not path.exists():
        return []
    found: dict[tuple[Any, ...], Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        keys = ("images", "tokens", "width", "layers", "dtype", "kind", "routing", "contender", "kernel", "prediction")
        keys += ("varied", "value")
        case = (*(line.get(key) for key in keys), line.get("device", "cpu"))
        found.pop(case, None)  # what is newer comes later
        found[case] = line
    measured = [line for line in found.values() if not line.get("prediction")]
    # Where anything was measured on a GPU, that is what is drawn; where nothing was at all, the predictions.
    on_gpu = [line for line in measured if line.get("device", "cpu") != "cpu"]
    on_cpu = [line for line in measured if line.get("cpu") == measured[-1].get("cpu")]
    return on_gpu or on_cpu or list(found.values())


def _machine(line: Line) -> str:
    if line.get("device", "cpu") == "cpu":
        return f"{line['cpu']}, {line['threads']} threads, torch {line['torch']}"
    return f"{line['device']}, torch {line['torch']}"


def _groups(lines: list[Line], key: Callable[[Line], str]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def _panels(count: int, title: str, height: float) -> tuple[Any, list[Any]]:
    """A figure of ``count`` panels, at most three beside one another."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = require("matplotlib.figure", "train").Figure(
        figsize=(max(3.6 * columns, 6.5), 0.9 + height * rows), layout="constrained"
    )
    figure.suptitle(title, fontsize=10)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _bars(axis: Any, lines: list[Line], labels: list[str], unit: float, notes: list[str]) -> None:
    """Horizontal bars of medians in seconds / ``unit``, whiskers from p20 to p80, a note at each."""
    places = range(len(lines))
    medians = [line["median"] / unit for line in lines]
    whiskers = [
        [(line["median"] - line["p20"]) / unit for line in lines],
        [(line["p80"] - line["median"]) / unit for line in lines],
    ]
    colors = [_COLORS.get(label.split(",")[0], _OTHER) for label in labels]
    axis.barh(places, medians, xerr=whiskers, color=colors, error_kw={"elinewidth": 1})
    ends = [line["p80"] / unit for line in lines]
    for place, end, note in zip(places, ends, notes, strict=True):
        axis.text(end + 0.02 * max(ends), place, note, va="center", fontsize=8)
    axis.set_yticks(list(places), labels)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.4 * max(ends))


def _contenders(lines: list[Line]) -> Any:
    timed = [line for line in lines if "median" in line]
    groups = _groups(timed, lambda line: f"{_shape(line)} {line['dtype']}, {_ROUTING_NAMES[line['routing']]}")
    title = f"A DEX layer's training step\n{_machine(timed[-1])}"
    tallest = max(map(len, groups.values()))
    figure, axes = _panels(len(groups), title, 0.9 + 0.24 * tallest)
    for axis, (case, group) in zip(axes, groups.items(), strict=True):
        notes = [f"{line['speedup']:.2f}x" for line in group]
        _bars(axis, group, [line["contender"] for line in group], 1e-3, notes)
        axis.set_title(case, fontsize=9)
        axis.set_xlabel("ms (p20, p80), times published's speed", fontsize=8)
    return figure


_ROUTING_NAMES = {"uniform": "uniform use", "zipf": "Zipf's use", "two": "two experts"}


def _shape(line: Line) -> str:
    return f"{line['images']} x {line['tokens']} x {line['width']}"


def _layer(lines: list[Line]) -> Any:
    """The CPU table: the step over bare GEMMs and over the published loop."""
    figure, axes = _panels(1, f"A DEX layer's training step\n{_machine(lines[-1])}", 0.9 + 0.5 * len(lines))
    axis, places = axes[0], list(range(len(lines)))
    for offset, key, label, color in (
        (-0.2, "bare", "over its GEMMs alone", _OURS),
        (0.2, "published", "over the published loop", _OTHER),
    ):
        values = [line["ratios"][key] for line in lines]
        axis.barh([place + offset for place in places], values, 0.36, color=color, label=label)
        for place, value in zip(places, values, strict=True):
            axis.text(value + 0.03, place + offset, f"{value:.2f}", va="center", fontsize=8, bbox=_CLEAR)
    axis.axvline(1, color=_MARK, linewidth=1, zorder=0)
    axis.set_yticks(places, [f"{_shape(line)} {line['dtype']}" for line in lines])
    axis.invert_yaxis()
    axis.set_xlabel("ratio of times (the line is 1: the same time)")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _timings(lines: list[Line], case: Callable[[Line], str], title: str, note: Callable[[Line], str], said: str) -> Any:
    """A panel of bars for every case; ``said`` is what the notes at the bars mean."""
    groups = _groups(lines, case)
    figure, axes = _panels(len(groups), f"{title}\n{_machine(lines[-1])}", 1.6)
    for axis, (name, group) in zip(axes, groups.items(), strict=True):
        _bars(axis, group, [line["contender"] for line in group], 1e-3, [note(line) for line in group])
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(f"ms (p20, p80), {said}", fontsize=8)
    return figure


def _ema(lines: list[Line]) -> Any:
    return _timings(
        lines,
        lambda line: f"{line['layers']} x width {line['width']}, {_ROUTING_NAMES[line['routing']]}",
        "GEMA, the directors' update",
        lambda line: f"{line['copy_share']:.0%} of copy",
        "share of the largest copy's rate",
    )


def _align(lines: list[Line]) -> Any:
    return _timings(
        lines,
        lambda line: f"{line['kind']}, {_shape(line)} {line['dtype']}",
        "Alignment loss, forward and backward",
        lambda line: f"{line['speedup']:.2f}x",
        "times eager's speed",
    )


def _augment(lines: list[Line]) -> Any:
    return _timings(
        lines,
        lambda line: line["kind"],
        "Augmentation of one image, one thread",
        lambda line: f"{line['images_per_second']:.0f} images/s",
        "images a second",
    )


def _codec(lines: list[Line]) -> Any:
    return _timings(
        lines,
        lambda line: f"{line['kind']}, {line['of']}",
        "To decode an image, one core",
        lambda line: f"{line['bytes'] / 1e3:.0f} KB",
        "size",
    )


def _feed(lines: list[Line]) -> Any:
    return _timings(
        [line for line in lines if "of" in line],  # the others are ratios of whole steps
        lambda line: f"{line['kind']}, {line['of']}",
        "From the store to the batch, one core",
        lambda line: f"{line['images_per_second']:.0f} images/s",
        "images a second",
    )


def _step(lines: list[Line]) -> Any:
    groups = _groups(lines, lambda line: f"{line['kind']}, {_shape(line)} {line['dtype']}")
    figure, axes = _panels(len(groups), f"A whole training step\n{_machine(lines[-1])}", 1.9)
    for axis, (case, every) in zip(axes, groups.items(), strict=True):
        contenders = [line["contender"] for line in every]
        # Those before dexcore are of older runs, that had other contenders.
        group = every[contenders.index("dexcore") if "dexcore" in contenders else 0 :]
        notes = [f"{line['speedup']:.2f}x" if "speedup" in line else f"{line['share']:.0%}" for line in group]
        _bars(axis, group, [line["contender"].replace(", ", ",\n") for line in group], 1e-3, notes)
        axis.set_title(case, fontsize=8)
        compared = "speedup" in group[0]
        axis.set_xlabel(f"ms (p20, p80), {'times publ. speed' if compared else 'share of the step'}", fontsize=8)
    return figure


def _growth(lines: list[Line]) -> Any:
    varied = _groups(lines, lambda line: line["varied"])
    figure, axes = _panels(len(varied), f"A step of a small DEX autoencoder\n{_machine(lines[0])}", 2.3)
    for axis, (name, group) in zip(axes, varied.items(), strict=True):
        bottom = [0.0] * len(group)
        for part, color in zip(group[0]["seconds"], ("dexcore", "grouped", "dense", "loop"), strict=True):
            heights = [1e3 * line["seconds"][part] for line in group]
            axis.bar([line["value"] for line in group], heights, bottom=bottom, color=_COLORS[color], label=part)
            bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
        memory = axis.twinx()
        memory.plot([line["value"] for line in group], [line["mib"] for line in group], "o-", color=_MARK)
        memory.set_ylim(bottom=0)
        memory.set_ylabel("MiB at the peak", color=_MARK)
        memory.spines["right"].set_visible(True)
        axis.set_xlabel(name)
        axis.set_ylabel("ms")
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _kernels(lines: list[Line]) -> Any:
    groups = _groups(lines, lambda line: _ROUTING_NAMES[line["routing"]])
    first = lines[-1]
    case = f"{_shape(first)} {first['dtype']}"
    if first.get("prediction"):
        assumed = first["assumed"]
        rates = f"{assumed['gemm_gflops'] / 1e3:.0f} TFLOP/s and {assumed['copy_gbs'] / 1e3:.1f} TB/s"
        title = f"PREDICTION, not measured: the kernels of a step, {case}\nat {rates}"
    else:
        title = f"The kernels of a step, {case}\n{_machine(first)}"
    figure, axes = _panels(len(groups), title, 0.8 + 0.21 * max(map(len, groups.values())))
    for axis, (routing, group) in zip(axes, groups.items(), strict=True):
        predicted = bool(group[0].get("prediction"))
        values = [1e6 * (line["predicted"] if predicted else line["median"]) for line in group]
        bound = [_OURS if line["flops"] > 1e9 else _OTHER for line in group]
        axis.barh(
            range(len(group)),
            values,
            color="none" if predicted else bound,
            edgecolor=bound,
            hatch="////" if predicted else None,
        )
        for place, (line, value) in enumerate(zip(group, values, strict=True)):
            number = f"{value:.1f}" if value < 10 else f"{value:.0f}"
            note = number if predicted else f"{number} ({_share(line)})"
            axis.text(value + 0.02 * max(values), place, note, va="center", fontsize=8)
        axis.set_yticks(range(len(group)), [line["kernel"] for line in group])
        axis.invert_yaxis()
        axis.set_xlim(0, (1.25 if predicted else 1.75) * max(values))
        axis.set_title(routing, fontsize=9)
        axis.set_xlabel("us, predicted" if predicted else "us (share of the largest rate)", fontsize=8)
    return figure


def _share(line: Line) -> str:
    return f"{line['gemm_share']:.0%} of GEMM" if line["flops"] > 1e9 else f"{line['copy_share']:.0%} of copy"


if __name__ == "__main__":
    for path in draw():
        print(path)
