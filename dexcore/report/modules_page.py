"""The page of ``dexcore eval modules``: what was measured of a model's modules, from its numbers alone."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from dexcore.files import write_whole
from dexcore.report.html import document, figure, folded, table
from dexcore.report.modules_pictures import (
    conflict_picture,
    damage_pictures,
    extraction_picture,
    own_picture,
    routing_picture,
    space_picture,
    task_pictures,
)
from dexcore.report.pictures import Picture, styled

NUMBERS_FILE, PAGE_FILE, PICTURES = "modules.json", "modules.html", "modules"


def build_modules_page(folder: Path) -> list[str]:
    """Write the page and its pictures beside the numbers, each whole or not at all.

    Returns:
        Lines for a terminal.

    Raises:
        FileNotFoundError: there are no numbers.
        ValueError: they are damaged.
        MissingExtraError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    path = folder / NUMBERS_FILE
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        with styled():
            sections = _sections(numbers)
        told = lines(numbers)
        page = _page(numbers, sections, told)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, expected the numbers of dexcore eval modules ({error})") from error
    (folder / PICTURES).mkdir(exist_ok=True)
    kept = {picture.name for _, pictures, rest in sections for picture in (*pictures, *rest)}
    for old in (folder / PICTURES).glob("*.png"):
        if old.name not in kept:
            old.unlink()
    for _, pictures, rest in sections:
        for picture in (*pictures, *rest):
            write_whole(folder / PICTURES / picture.name, picture.png)
    write_whole(folder / PAGE_FILE, page.encode())
    return [*(f"{name}: {line}" for name, own in told.items() for line in own), f"page: {folder / PAGE_FILE}"]


_Section = tuple[str, list[Picture], list[Picture]]


def _sections(numbers: Mapping[str, Any]) -> list[_Section]:
    """Headings with their pictures, and those that are folded away."""
    models = numbers["models"]
    own = models[numbers["model"]]
    damage, task = damage_pictures(numbers), task_pictures(numbers)
    found: list[tuple[str, list[Picture | None], list[Picture]]] = [
        ("Does routing follow modalities?", [routing_picture(numbers)] if "routing" in own else [], []),
        ("What is lost without an expert?", [own_picture(numbers), *damage[:1], *task[:1]], [*damage[1:], *task[1:]]),
        ("What is left with few experts?", [extraction_picture(numbers)], []),
        ("Is the space shared?", [space_picture(numbers)], []),
        ("Do modalities pull shared weights apart?", [conflict_picture(numbers)], []),
    ]
    drawn = [(title, [picture for picture in pictures if picture], more) for title, pictures, more in found]
    return [section for section in drawn if section[1]]


def _page(numbers: Mapping[str, Any], sections: list[_Section], told: Mapping[str, list[str]]) -> str:
    title = f"Modules of {numbers['model']}"
    images, cases = numbers["images"], numbers["cases"]
    beside = f", beside {', '.join(numbers['twins'])}" if numbers["twins"] else ""
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{images["heldout"]} held-out images of {cases["heldout"]} cases and {images["train"]} '
        f"training images of {cases['train']}, {len(numbers['modalities'])} modalities, of the store "
        f"{escape(numbers['store']['name'])}{escape(beside)}. Brackets are 95 % intervals over cases "
        "(patients, volumes, files); other seeds are not in them.</p>",
        *(f'<p class="headline">{escape(line)}</p>' for line in told.get(numbers["model"], ())),
        *(f'<p class="warning">{escape(flag)}</p>' for flag in _all_flags(numbers)),
    ]
    for heading, pictures, rest in sections:
        body.append(f"<h2>{escape(heading)}</h2>")
        body += map(figure, pictures)
        if rest:
            body.append(folded("Block by block", map(figure, rest)))
    for twin in numbers["twins"]:
        body.append(folded(f"The twin {twin}", (f"<p>{escape(line)}</p>" for line in told.get(twin, ()))))
    rows = list(_rows(numbers))
    if rows:
        body += ["<h2>Twins minus the model</h2>", table(("", "value", "interval"), rows)]
    body.append(f'<p class="quiet">All numbers: {NUMBERS_FILE} beside this file.</p>')
    return document(title, body)


def _all_flags(numbers: Mapping[str, Any]) -> Iterator[str]:
    yield from numbers["flags"]
    for name, model in numbers["models"].items():
        for part, told in model.items():
            if isinstance(told, Mapping) and "left_out" in told:
                yield f"{name}, {part.replace('_', ' ')}: {told['left_out']}"
        yield from (f"{name}, probe: {flag}" for flag in model.get("task", {}).get("flags", ()))
    if "left_out" in numbers["gradients"]:
        yield f"gradients: {numbers['gradients']['left_out']}"


def told_estimate(one: Mapping[str, Any]) -> str:
    """A number and its interval."""
    if one["value"] is None:
        return "not defined"
    low, high = one["low"], one["high"]
    return f"{one['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def lines(numbers: Mapping[str, Any]) -> dict[str, list[str]]:
    """What was found of each model, a line a measure."""
    told = {name: list(_of_model(model)) for name, model in numbers["models"].items()}
    if numbers["stability"]:
        seeds, blocks = numbers["stability"]["seeds"], numbers["stability"]["blocks"]
        known = [block for block in blocks if block["value"]["value"] is not None]
        for worst in sorted(known, key=lambda block: block["value"]["value"] - block["null_mean"])[:1]:
            told[numbers["model"]].append(
                f"experts of {seeds} seeds, matched, are alike by {told_estimate(worst['value'])} in the least stable "
                f"block; with permuted modalities {worst['null_mean']:.3f}, p = {worst['p_value']:.3f}"
            )
    for name, one in numbers["gradients"].get("models", {}).items():
        told[name].append(
            f"modalities' gradients of shared weights have cosine {told_estimate(one['between'])}, halves of one "
            f"modality {told_estimate(one['ceiling'])}"
        )
    return told


def _of_model(model: Mapping[str, Any]) -> Iterator[str]:
    if "routing" in model:
        trained, before = model["routing"]["trained"], model["routing"]["untrained"]
        yield (
            f"routing follows modalities beyond chance by {told_estimate(trained['mean'])}, a block (untrained "
            f"{told_estimate(before['mean'])}); from first to last block {told_estimate(trained['slope'])}"
        )
    knocked = model.get("knock_out", {})
    if "specificity" in knocked:
        specific, own = knocked["specificity"], knocked["own"]["mean"]
        p_value = "" if specific["p_value"] is None else f", p = {specific['p_value']:.3f}"
        yield (
            f"without an expert drawn as a modality uses them its loss grows by {told_estimate(specific['value'])} "
            f"more than without one drawn as all do{p_value}; without its own expert by "
            f"{told_estimate(own['own_minus_matched'])} more than without one of equal load"
        )
    parts = model.get("extraction")
    if isinstance(parts, list) and parts:
        yield (
            f"with {parts[0]['size']} of its own experts a layer a modality's loss grows by "
            f"{told_estimate(parts[0]['own'])}, with common ones by {told_estimate(parts[0]['common_minus_own'])} more"
        )
    if "left_out" not in model["shared_space"]:
        for space, one in model["shared_space"].items():
            centered = one["centered"]
            yield (
                f"a class across modalities, {space}: mAP {told_estimate(centered['value'])} centered, chance "
                f"{centered['chance']:.3f}, p = {centered['p_value']:.3f}"
            )


def _rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What a twin has more than the model."""

    def row(label: str, one: Mapping[str, Any]) -> tuple[str, str, str]:
        value, _, interval = told_estimate(one).partition(" ")
        return label, value, interval

    own = numbers["model"]
    for name, minus in numbers["twin_minus_model"].items():
        for size, one in minus.get("extraction", {}).items():
            yield row(f"{name} minus {own}: growth of the loss with {size} experts a layer", one)
        for space, kinds in minus.get("shared_space", {}).items():
            yield row(f"{name} minus {own}, {space}: mAP across modalities, centered", kinds["centered"])
    for name, one in numbers["gradients"].get("twin_minus_model", {}).items():
        yield row(f"{name} minus {own}: how far gradients fall short of one direction", one["shortfall"])
