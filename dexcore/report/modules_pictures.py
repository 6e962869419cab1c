"""Pictures of a model's modules, from the numbers of ``dexcore eval modules``; drawn inside `styled`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dexcore.report.pictures import BLUE, NEUTRAL, RED, Picture, new_figure, spread, to_png

Numbers = Mapping[str, Any]
_NEGLIGIBLE = 0.001  # of a loss: surely there, and still nothing
_TWINS = ("#59a14f", "#b07aa1", "#f28e2b", "#9c755f")
_OVER_CASES = "Bars are 95 % intervals over held-out cases."


def _values(estimates: Sequence[Numbers]) -> np.ndarray:
    """Value, low and high, float64 [3, n]; nan where there is none."""
    return np.array([[one[name] for name in ("value", "low", "high")] for one in estimates], dtype=float).T


def _points(axis: Any, x: np.ndarray, estimates: Sequence[Numbers], color: str, label: str, marker: str = "o") -> None:
    """Upright intervals with their values."""
    value, low, high = _values(estimates)
    axis.vlines(x, low, high, color=color, alpha=0.5, linewidth=2)
    axis.plot(x, value, marker, color=color, label=label, clip_on=False)


def routing_picture(numbers: Numbers) -> Picture:
    """Mutual information beyond chance over depth, beside three routers that nobody trained."""
    routing = numbers["models"][numbers["model"]]["routing"]
    blocks = routing["trained"]["blocks"]
    number = np.arange(1, len(blocks) + 1)
    figure = new_figure(3.4)
    axis = figure.subplots()
    axis.axhline(0, color=NEUTRAL, linewidth=0.8)
    _points(axis, number, [one["value"] for one in blocks], BLUE, "trained")
    before = [one["value"] for one in routing["untrained"]["blocks"]]
    _points(axis, number - 0.2, before, NEUTRAL, "untrained network", "D")
    for shift, name, color, told in (
        (0.16, "random", RED, "random routers, same tokens"),
        (0.3, "histogram", _TWINS[2], "random routers, histogram"),
    ):
        means = np.array([one["mean"] for one in routing[name]], dtype=float)
        highest = np.array([one["highest"] for one in routing[name]], dtype=float)
        axis.vlines(number + shift, means, highest, color=color, alpha=0.5, linewidth=2)
        axis.plot(number + shift, means, "_", color=color, markersize=8, markeredgewidth=2, label=told)
    axis.set_title("Mutual information minus its null, a block")
    axis.set_xlabel("block")
    axis.set_xticks(spread(number, 12))
    axis.set_xlim(0.5, len(blocks) + 0.6)
    axis.grid(True, axis="y")
    figure.legend(loc="outside lower left", ncols=2, fontsize=9, columnspacing=1.0, handletextpad=0.3)
    p_values = [one["p_value"] for one in blocks if one["p_value"] is not None]
    return Picture(
        name="routing.png",
        title="Modality and expert, over depth",
        reading=(
            "0 is chance, with the modalities permuted among cases; 1 is one modality an expert. Blue above gray is "
            "what training did, blue above red what the router itself adds to the tokens that it sees."
        ),
        bad="blue no higher than orange: exposure alone, without any network, tells as much.",
        png=to_png(figure),
        found=(
            f"Nearest images of other cases name the modality by gates in {_told(routing['by_gates'])}, by histogram "
            f"in {_told(routing['by_histogram'])} of cases."
            + (f" Largest p of a block: {max(p_values):.3f}." if p_values else "")
        ),
        detail=(
            "Random routers have normal weights on standardized inputs and are as sharp as the trained one; red and "
            "orange reach from the mean of 20 to the highest. What routing follows does not say what experts do: that "
            f"is asked below. {_OVER_CASES}"
        ),
    )


def _told(one: Numbers) -> str:
    if one["value"] is None:
        return "not defined"
    return f"{one['value']:.2f}" + ("" if one["low"] is None else f" [{one['low']:.2f}, {one['high']:.2f}]")


def _percent(one: Numbers) -> str:
    if one["value"] is None:
        return "not defined"
    value, low, high = (None if one[name] is None else 100 * one[name] for name in ("value", "low", "high"))
    return f"{value:.1f} %" + ("" if low is None else f" [{low:.1f}, {high:.1f}]")


def damage_pictures(numbers: Numbers) -> list[Picture]:
    """Use and damage of each block, the block of the largest damage first; none of a model without knock-outs."""
    knocked = numbers["models"][numbers["model"]].get("knock_out", {})
    if "damage" not in knocked:
        return []
    damage = [np.array(one, dtype=float) for one in knocked["damage"]]
    order = sorted(range(len(damage)), key=lambda block: -float(np.nanmax(np.abs(damage[block]), initial=0.0)))
    shares, low, high = (
        [np.array(one, dtype=float) for one in knocked[name]] for name in ("shares", "damage_low", "damage_high")
    )
    sure = [
        ((one > 0) | (other < 0)) & (np.abs(value) > _NEGLIGIBLE)
        for one, other, value in zip(low, high, damage, strict=True)
    ]
    return [_damage(block, shares[block], damage[block], sure[block], numbers) for block in order]


def _damage(block: int, shares: np.ndarray, damage: np.ndarray, sure: np.ndarray, numbers: Numbers) -> Picture:
    names = numbers["modalities"]
    figure = new_figure(1.5 + 0.27 * len(names))
    left, right = figure.subplots(1, 2, sharey=True)
    most = float(np.nanmax(np.abs(damage), initial=0.0)) or 1.0
    halves = (
        (left, 100 * shares, "use, %", {"cmap": "viridis", "vmin": 0, "vmax": 100 * float(shares.max() or 1)}),
        (right, 100 * damage, "loss gained, %", {"cmap": "RdBu_r", "vmin": -100 * most, "vmax": 100 * most}),
    )
    for axis, values, title, style in halves:
        image = axis.imshow(values, aspect="auto", **style)
        axis.set_title(title)
        axis.set_xlabel("expert")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        ticks = spread(np.arange(values.shape[1]), 8)
        axis.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        bar = figure.colorbar(image, ax=axis, location="bottom", fraction=0.05, pad=0.02, aspect=25)
        bar.outline.set_visible(False)
        bar.ax.locator_params(nbins=4)
    left.set_yticks(range(len(names)), names)
    rows, columns = np.nonzero(sure)
    right.plot(columns, rows, ".", color="black", markersize=4)
    return Picture(
        name=f"damage_block_{block + 1:02d}.png",
        title=f"Block {block + 1}: use of experts, and damage without them",
        reading=(
            "Left, how much of a modality's training images each expert gets; right, by how much the masked loss of "
            "its held-out images grows without the expert. Modules show the same pattern twice. Dots: the "
            "interval over cases excludes 0, and it is more than 0.1 %."
        ),
        bad="a right half that is pale (experts can be exchanged), or striped by expert alone (all lose alike).",
        png=to_png(figure),
    )


def own_picture(numbers: Numbers) -> Picture | None:
    """What a modality loses without its own expert, without one of equal load, without any other."""
    knocked = numbers["models"][numbers["model"]].get("knock_out", {})
    if "own" not in knocked:
        return None
    own = knocked["own"]
    names = list(own)
    figure = new_figure(1.6 + 0.3 * len(names))
    axis = figure.subplots()
    y = np.arange(len(names))[::-1]
    axis.axvline(0, color=NEUTRAL, linewidth=0.8)
    for shift, kind, color, label, marker in (
        (0.22, "own", BLUE, "its own", "o"),
        (0.0, "matched", RED, "of equal load", "D"),
        (-0.22, "random", NEUTRAL, "any other", "s"),
    ):
        value, low, high = 100 * _values([own[name][kind] for name in names])
        axis.hlines(y + shift, low, high, color=color, alpha=0.5, linewidth=2)
        axis.plot(value, y + shift, marker, color=color, label=label, markersize=5)
    axis.set_yticks(y, names)
    axis.set_title("Loss gained without an expert, %")
    axis.grid(True, axis="x")
    figure.legend(loc="outside lower left", ncols=3, fontsize=9.5, columnspacing=1.0, handletextpad=0.3)
    told = knocked["specificity"]
    p_value = "" if told["p_value"] is None else f", p = {told['p_value']:.3f}"
    alike = "" if told["correlation"] is None else f" (correlation of damage and use {told['correlation']:.2f})"
    return Picture(
        name="own_damage.png",
        title="A modality without its own expert",
        reading="Blue to the right of red: a modality loses more by the expert that it uses most than by one as busy.",
        bad="blue and red together: busy experts matter, to whomever.",
        png=to_png(figure),
        found=(
            f"Without an expert drawn as a modality uses them its loss grows by {_percent(told['value'])} more than "
            f"without one drawn as all do{p_value}{alike}. Own minus equal load, mean: "
            f"{_percent(own['mean']['own_minus_matched'])} of the loss."
        ),
        detail=(
            "Means over blocks, one expert of one block knocked out at a time. Which expert is whose is taken from "
            "training images: an image loses nothing by an expert that it does not use, so that use and damage of the "
            "same images would agree by construction. An expert's load, its worth to all and what a modality loses by "
            f"any expert are not in the difference of drawn experts, nor in the correlation. {_OVER_CASES}"
        ),
    )


def extraction_picture(numbers: Numbers) -> Picture | None:
    """Growth of the loss over experts that are left: own, common, random; twins' own beside them."""
    models = numbers["models"]
    points = models[numbers["model"]].get("extraction")
    if not isinstance(points, list) or not points:
        return None
    figure = new_figure(3.4)
    axis = figure.subplots()
    sizes = np.array([point["size"] for point in points])
    curves = [
        (points, "own", BLUE, "own experts", "-o"),
        (points, "common", RED, "common experts", "-D"),
        (points, "random", NEUTRAL, "drawn experts", "-s"),
    ]
    for place, twin in enumerate(numbers["twins"]):
        other = models[twin].get("extraction")
        if isinstance(other, list) and other:
            color = _TWINS[place % len(_TWINS)]
            curves.append((other, "own", color, f"{twin}, own experts", "--o"))
            curves.append((other, "random", color, f"{twin}, drawn experts", ":s"))
    for own, kind, color, label, style in curves:
        at = np.array([point["size"] for point in own])
        value, low, high = 100 * _values([point[kind] for point in own])
        axis.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        axis.plot(at, value, style, color=color, label=label, markersize=4.5)
    axis.axhline(0, color=NEUTRAL, linewidth=0.8)
    axis.set_title("Growth of the held-out masked loss, %")
    axis.set_xlabel("experts left a layer")
    axis.set_xticks(sizes)
    axis.grid(True, axis="y")
    figure.legend(loc="outside lower left", ncols=2, fontsize=9, columnspacing=1.0, handletextpad=0.4)
    first = points[0]
    return Picture(
        name="extraction.png",
        title="A part of the model for each modality",
        reading=(
            "Blue near 0 far to the left: a modality lives on few experts. Blue below red: they are its own, and not "
            "only those that all use."
        ),
        bad="blue on red and gray: which experts are left makes no difference, as where all experts are alike.",
        png=to_png(figure),
        found=(
            f"With {first['size']} a layer: own {_percent(first['own'])}, common minus own "
            f"{_percent(first['common_minus_own'])}, drawn minus own {_percent(first['random_minus_own'])}."
        ),
        detail=(
            "Mean over modalities; routing chooses among the experts that are left. Own: those that the modality's "
            "training images use most; common: those that all modalities together use most; drawn: the same for all. A "
            "twin whose routing is fixed loses little in any way: its experts can be exchanged. "
            "Bands are 95 % intervals over held-out cases."
        ),
    )


def space_picture(numbers: Numbers) -> Picture | None:
    """Retrieval of a class across modalities, by space, with chance."""
    rows = []
    for place, (name, model) in enumerate(numbers["models"].items()):
        spaces = model["shared_space"]
        if "left_out" not in spaces:
            color = BLUE if place == 0 else _TWINS[(place - 1) % len(_TWINS)]
            rows += [(f"{name}\n{space}" if space != "dense" else name, one, color) for space, one in spaces.items()]
    if not rows:
        return None
    figure = new_figure(1.3 + 0.5 * len(rows))
    axis = figure.subplots()
    y = np.arange(len(rows))[::-1]
    for shift, kind, marker, filled in ((0.14, "centered", "o", True), (-0.14, "raw", "o", False)):
        for at, (_, one, color) in zip(y, rows, strict=True):
            value, low, high = _values([one[kind]["value"]])[:, 0]
            axis.hlines(at + shift, low, high, color=color, alpha=0.5, linewidth=2)
            axis.plot(value, at + shift, marker, color=color, fillstyle="full" if filled else "none")
            axis.plot([one[kind]["chance"]] * 2, [at + shift - 0.12, at + shift + 0.12], color=RED, linewidth=2)
    axis.set_yticks(y, [label for label, _, _ in rows], fontsize=8.5)
    axis.set_xlabel("mean average precision")
    axis.grid(True, axis="x")
    first = rows[0][1]["raw"]
    return Picture(
        name="shared_space.png",
        title="The same class in another modality",
        reading=(
            "Full: each modality around its own mean; hollow: as it is. Right of the red tick, which is chance: images "
            "of one class are near each other though their modalities differ."
        ),
        bad="the director on its tick while experts or a dense twin are right of theirs.",
        png=to_png(figure),
        detail=(
            f"{first['classes']} classes; {first['queries']} held-out queries, {first['gallery']} training images in "
            "the gallery, never of the query's modality; chance is from classes permuted within modalities. Classes "
            f"are known of SyntheticMVU's images alone, which are simple. {_OVER_CASES}"
        ),
    )


def conflict_picture(numbers: Numbers) -> Picture | None:
    """Cosines of gradients between modalities and between halves, a model each."""
    found = numbers["gradients"].get("models")
    if not found:
        return None
    names = list(found)
    figure = new_figure(1.3 + 0.42 * len(names))
    axis = figure.subplots()
    y = np.arange(len(names))[::-1]
    axis.axvline(0, color=NEUTRAL, linewidth=0.8)
    for shift, kind, color, label in (
        (0.12, "ceiling", NEUTRAL, "halves of one modality"),
        (-0.12, "between", BLUE, "two modalities"),
    ):
        value, low, high = _values([found[name][kind] for name in names])
        axis.hlines(y + shift, low, high, color=color, alpha=0.5, linewidth=2)
        axis.plot(value, y + shift, "o", color=color, label=label)
    axis.set_yticks(y, names)
    axis.set_ylim(-0.5, len(names) - 0.5)
    axis.set_title("Cosine of gradients, shared weights")
    axis.grid(True, axis="x")
    figure.legend(loc="outside lower left", ncols=2, fontsize=9.5, columnspacing=1.0, handletextpad=0.3)
    told = "; ".join(f"{name} {_told(found[name]['shortfall'])}" for name in names)
    return Picture(
        name="gradients.png",
        title="Agreement of modalities about shared weights",
        reading="The smaller a part of gray blue is, the more modalities disagree beyond what few images do.",
        bad="a smaller part than in a twin: experts took no conflict off the shared weights.",
        png=to_png(figure),
        found=f"Without noise modalities would fall short of one direction by: {told}.",
        detail=(
            f"{numbers['gradients']['weights']:,} weights that all models have and every image uses, the same training "
            "images and masks. Noise makes blue and gray smaller in the same proportion: what is compared is 1 - blue "
            "/ gray, by pairs of modalities. Intervals are over cases, drawn in folds within halves. At the end of "
            "training gradients mostly cancel, cosines are near 0 for both, and their ratio is known badly."
        ),
    )


def task_pictures(numbers: Numbers) -> list[Picture]:
    """What a probe loses without each expert: the block of the largest loss first."""
    task = numbers["models"][numbers["model"]].get("task")
    if not task or "left_out" in task:
        return []
    order = sorted(
        range(len(task["lost"])), key=lambda block: -max(abs(one["value"] or 0.0) for one in task["lost"][block])
    )
    return [_task(block, task) for block in order]


def _task(block: int, task: Numbers) -> Picture:
    lost, shares = task["lost"][block], np.array(task["shares"][block], dtype=float)
    figure = new_figure(2.8)
    axis = figure.subplots()
    number = np.arange(1, len(lost) + 1)
    axis.axhline(0, color=NEUTRAL, linewidth=0.8)
    _points(axis, number, lost, BLUE, "lost")
    axis.set_xticks(
        number, [f"{n}\n{100 * share:.0f} %" for n, share in zip(number, shares, strict=True)], fontsize=8.5
    )
    axis.set_xlabel("expert, and its share of the test images")
    axis.set_title(f"{task['metric']} lost, {task['task']}")
    axis.grid(True, axis="y")
    return Picture(
        name=f"task_block_{block + 1:02d}.png",
        title=f"Block {block + 1}: a probe without an expert",
        reading="How much of the probe's number is gone without the expert; the probe itself stays as it was fitted.",
        bad="bars that all cross 0: the probe does not need any expert of the block.",
        png=to_png(figure),
        found=f"Whole model: {_told(task['value'])}, features {task['layer']}.",
    )
