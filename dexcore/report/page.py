"""The report: one HTML file that carries its pictures, made from a run folder's numbers alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.files import write_whole
from dexcore.report.comparison import KINDS, by_rule, idle_settings
from dexcore.report.curves import course_pictures
from dexcore.report.features import map_picture, patch_picture
from dexcore.report.files import (
    ANALYSIS_FILE,
    COMPARISON_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PICTURES_FOLDER,
    PROBE_FILE,
    REPORT_FILE,
    SIMILARITY_FILE,
    STEP0_ANALYSIS_FILE,
    STEP0_EVALUATION_FILE,
    SUMMARY_FILE,
    run_files,
)
from dexcore.report.gallery import gallery_picture
from dexcore.report.heatmaps import block_pictures, depth_picture
from dexcore.report.history import History
from dexcore.report.html import document, figure, folded, mapping, table
from dexcore.report.loads import flow_picture, hunger_picture, load_picture
from dexcore.report.matrices import gradient_picture, similarity_picture
from dexcore.report.numbers import RunNumbers
from dexcore.report.pictures import Picture
from dexcore.report.probe_course import probe_picture
from dexcore.report.routes import flow
from dexcore.report.similarity_course import similarity_course_picture
from dexcore.report.summary import Summary, summarize
from dexcore.report.variance import Variance


@dataclass(frozen=True)
class _Section:
    """A part of the page: what it asks, its pictures, and those that are folded away, by the line above them."""

    name: str
    title: str
    pictures: tuple[Picture, ...]
    folded: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)

    def all_pictures(self) -> Iterator[Picture]:
        yield from self.pictures
        for pictures in self.folded.values():
            yield from pictures


def build_report(run_folder: str | Path) -> Summary:
    """Write report.html, summary.json and the pictures into a run folder, each whole or not at all.

    Everything is read before anything is written. No model and no image is needed.

    Args:
        run_folder: holds metrics.jsonl, config.yaml, evaluation.npz, analysis.npz, and similarity.jsonl,
            evaluation_step0.npz and analysis_step0.npz unless the run was begun by an older version.

    Returns:
        What summary.json holds; ``files["report"]`` is the page.

    Raises:
        FileNotFoundError: one of the first four is missing.
        ValueError: one of them is empty, damaged or cut off; the message names it, and an older report is untouched.
        MissingExtraError: matplotlib or PyYAML is not installed.
        OSError: the folder cannot be written.
    """
    folder = Path(run_folder)
    numbers = RunNumbers.read(folder)
    summary = summarize(numbers, run_files(folder))
    sections = _sections(numbers, summary)
    page = _page(folder, numbers, summary, sections)

    written = {picture.name: picture for section in sections for picture in section.all_pictures()}
    (folder / PICTURES_FOLDER).mkdir(exist_ok=True)
    for old in (folder / PICTURES_FOLDER).glob("*.png"):
        if old.name not in written:  # of a report made by another version
            old.unlink()
    for name, picture in written.items():
        write_whole(folder / PICTURES_FOLDER / name, picture.png)
    summary.save(folder / SUMMARY_FILE)
    write_whole(folder / REPORT_FILE, page.encode())
    return summary


def _sections(numbers: RunNumbers, summary: Summary) -> list[_Section]:
    evaluation, analysis, history = numbers.evaluation, numbers.analysis, numbers.history

    def of(*pictures: Picture | None) -> tuple[Picture, ...]:
        return tuple(picture for picture in pictures if picture is not None)

    compared = summary.compared
    cosines = [summary.cosines(number) for number in range(len(summary.conflicts))]
    step0 = _step0_pictures(numbers, summary)
    # Experts that a rule chooses do not follow modalities, starve or collapse: what asks for it is left out.
    of_the_router: tuple[Picture, ...] = ()
    hungry: tuple[Picture, ...] = ()
    by_block: tuple[Picture, ...] = ()
    if not by_rule(summary.mlp):
        of_the_router = of(
            depth_picture(summary.blocks, compared), flow_picture(flow(evaluation), evaluation.modality_names)
        )
        hungry = of(hunger_picture(history, summary.hunger, summary.starving_on_images()))
        by_block = tuple(block_pictures(summary.blocks, compared))
    sections = [
        _Section(
            "learned",
            "What it learned",
            of(gallery_picture(evaluation, summary.objective), patch_picture(evaluation, analysis)),
            step0["learned"],
        ),
        _Section(
            "experts",
            "What the experts do",
            of(
                *of_the_router,
                similarity_picture(analysis, summary.likeness, compared.step0.likeness if compared else None),
                similarity_course_picture(numbers.similarity),
                load_picture(history, summary.mlp),
                *hungry,
            ),
            {**step0["experts"], "Block by block: modality and expert": by_block},
        ),
        _Section(
            "modalities",
            "Between modalities",
            of(
                map_picture(evaluation, analysis, [", ".join(told) or _FEW for told in _neighbors(summary)]),
                gradient_picture(analysis, summary.conflicts, cosines, summary.mlp),
            ),
            step0["modalities"],
        ),
        _Section(
            "course",
            "The course of training",
            of(
                *course_pictures(history, numbers.similarity, summary.mlp, numbers.heldout_course, summary.words),
                probe_picture(numbers.probe),
            ),
        ),
    ]
    return [section for section in sections if any(True for _ in section.all_pictures())]


_FEW = "modality of too few images to say"


def _neighbors(summary: Summary) -> list[list[str]]:
    return [list(summary.neighbors(number)) for number in range(len(summary.separation))]


def _step0_pictures(numbers: RunNumbers, summary: Summary) -> dict[str, dict[str, tuple[Picture, ...]]]:
    """What has no number to stand beside: pictures of the model before its first step, by section, folded away."""
    found: dict[str, list[Picture | None]] = {"learned": [], "experts": [], "modalities": []}
    if numbers.step0 and summary.compared:
        evaluation, analysis = numbers.step0.evaluation, numbers.step0.analysis
        before = replace(summary, **vars(summary.compared.step0), compared=None)
        neighbors = [", ".join(told) or _FEW for told in _neighbors(before)]
        cosines = [before.cosines(number) for number in range(len(before.conflicts))]
        found["learned"] = [gallery_picture(evaluation, summary.objective), patch_picture(evaluation, analysis)]
        if not by_rule(summary.mlp):
            found["experts"] = [flow_picture(flow(evaluation), evaluation.modality_names)]
        found["modalities"] = [
            map_picture(evaluation, analysis, neighbors),
            gradient_picture(analysis, before.conflicts, cosines, summary.mlp),
        ]
    return {
        section: {"The same before the first step": tuple(_at_step0(picture) for picture in pictures if picture)}
        for section, pictures in found.items()
    }


def _at_step0(picture: Picture) -> Picture:
    return replace(
        picture, name=picture.name.replace(".png", "_step0.png"), title=f"{picture.title} (before the first step)"
    )


def _page(folder: Path, numbers: RunNumbers, summary: Summary, sections: list[_Section]) -> str:
    title = page_title(folder, numbers.config)
    links = "".join(
        f'<a href="#{name}">{escape(text)}</a>' for name, text in [(s.name, s.title) for s in sections] + [_USE]
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(_course(numbers.history, summary.words.loss))}</p>',
        *_told_of_twin(summary),
        f'<p class="headline">{escape(_headline(summary))}</p>',
        f'<p class="headline">{escape(summary.verdict())}</p>',
        *(f'<p class="warning">{escape(text)}</p>' for text in _warnings(numbers.history, summary)),
        f"<nav>{links}</nav>",
        "<h3>Variance explained</h3>",
        f"<p>The share of {escape(summary.words.varies)} that the model predicts: 1 is perfect, 0 is what "
        f"{escape(summary.words.baseline)} reaches, below 0 is worse than that. Held-out images come "
        "from files, volumes and patients that training never saw. Step 0 is the same model before training, on the "
        "same images. <b>Bad:</b> a held-out column far below the training column, or one modality near 0 beside good "
        "others.</p>",
        _variance_table(summary),
        *(f'<p class="quiet">{escape(note)}</p>' for note in summary.notes()),
    ]
    for section in sections:
        body.append(f'<h2 id="{section.name}">{escape(section.title)}</h2>')
        body += map(figure, section.pictures)
        body += [folded(line, map(figure, pictures)) for line, pictures in section.folded.items() if pictures]
    read = [name for name in _READ if (folder / name).is_file()]
    body += [
        f'<h2 id="{_USE[0]}">{_USE[1]}</h2>',
        f"<pre>{escape(_usage(folder, summary.mlp, summary.words.model))}</pre>",
        configuration(numbers.config),
        f'<p class="quiet">Made from {", ".join(read)} beside this '
        f"file; <code>dexcore report {escape(folder.as_posix())}</code> makes it again.</p>",
    ]
    return document(title, body)


_TOLD = "The rule is told the modality: that features through the experts tell it is no finding."
_LEFT_OUT = (
    "No router was trained, so this page does not ask whether experts follow modalities or starve: which images an "
    "expert is given is the rule's doing, the same at the first step and at the last."
)
_READ = (
    METRICS_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    ANALYSIS_FILE,
    SIMILARITY_FILE,
    STEP0_EVALUATION_FILE,
    STEP0_ANALYSIS_FILE,
    COMPARISON_FILE,
    PROBE_FILE,
)
_USE = ("use", "Use the model")


def page_title(folder: Path, config: Mapping[str, Any]) -> str:
    """What the page of a run is called: after its model, and its folder."""
    dense = kind_of(config).startswith("dense")
    return f"{'Dense' if dense else 'DEX'} pre-training: {folder.resolve().name}"


def configuration(config: Mapping[str, Any]) -> str:
    """The configuration, folded; above it, what of it does nothing in such a run."""
    idle = idle_settings(kind_of(config))
    told = [f'<p class="quiet">Without effect in this run: {escape(", ".join(idle))}.</p>'] if idle else []
    return folded("Configuration", [*told, *(mapping(name, value) for name, value in config.items())])


def kind_of(config: Mapping[str, Any]) -> str:
    """The kind of a run's MLPs, a key of `KINDS`; "dex" of a configuration of before there were others."""
    return str((config.get("model") or {}).get("mlp", "dex"))


def _told_of_twin(summary: Summary) -> Iterator[str]:
    """Which model it is, what it costs and how it was shown its images."""
    told = summary.comparison
    if told is None:
        return
    if told.mlp != "dex":
        yield f'<p class="headline">{escape(KINDS[told.mlp][0].upper() + KINDS[told.mlp][1:])}.</p>'
    if by_rule(told.mlp):
        oracle = f" {_TOLD}" if told.mlp == "oracle-routing" else ""
        yield f'<p class="quiet">{escape(_LEFT_OUT + oracle)}</p>'
    same = "runs to compare have the same"
    text = f"{told.costs()}. Order of images, their crops and masks: {told.order_sha256[:16]} ({same})."
    yield f'<p class="quiet">{escape(text)}</p>'


def _course(history: History, called: str) -> str:
    steps = len(history.step)
    skipped = int(history.skipped.sum())
    told = f", {skipped} of them skipped (loss or gradient not finite)" if skipped else ""
    parts = [f"{steps} step{'s' * (steps != 1)}{told}"]
    loss = history.scalars["loss_self"]
    finite = np.flatnonzero(np.isfinite(loss))
    if len(finite) > 1:
        parts.append(f"{called} from {loss[finite[0]]:.3f} to {loss[finite[-1]]:.3f}")
    speed = history.scalars["images_per_second"]
    if np.isfinite(speed).any():
        parts.append(f"{np.nanmedian(speed):.0f} images per second")
    return "; ".join(parts) + "."


def _headline(summary: Summary) -> str:
    kind, mean = ("real", "mean_real") if summary.real else ("synthetic", "mean")
    sentences = []
    for name, split in (("training", "training"), ("held-out", "heldout")):
        variance = getattr(getattr(summary, split), mean)
        if variance.images:
            modalities = "modality" if variance.modalities == 1 else "modalities"
            images = f"{variance.images} {kind} {name} image{'s' * (variance.images != 1)}"
            step0 = ""
            if summary.compared:
                before = getattr(getattr(summary.compared.step0, split), mean)
                step0 = f"; {100 * before.value:.1f} % at step 0"
            sentences.append(f"{100 * variance.value:.1f} % on {images} ({variance.modalities} {modalities}{step0})")
    if not sentences:
        return "No image was evaluated."
    explained = summary.words.explained
    return f"{explained[0].upper()}{explained[1:]} explained, mean over modalities: {'; '.join(sentences)}."


def _warnings(history: History, summary: Summary) -> Iterator[str]:
    bad = int((history.skipped | ~np.isfinite(history.scalars["loss_self"])).sum())
    if bad:
        yield f"The loss or its gradient was not finite in {bad} of {len(history.step)} steps."
    if history.rolled_back:
        yield f"The run went back to the weights of an earlier checkpoint, {history.rolled_back} times in all."
    if not summary.blocks and not summary.mlp.startswith("dense"):
        yield "No DEX block was evaluated: nothing to say about experts."
    if by_rule(summary.mlp):
        return
    if summary.blocks and len(summary.blocks[0].modalities) < 2:
        yield "The images are of one modality: whether experts follow modalities cannot be asked."
    if any(block.starving for block in summary.hunger):
        yield f"Starving experts: {summary.starving()}."


def _variance_table(summary: Summary) -> str:
    def cells(variance: Variance | None) -> tuple[str, str]:
        return ("–", "") if variance is None else (f"{variance.value:.3f}", str(variance.images))

    def beside(variance: Variance | None, step0: Variance | None) -> tuple[str, str]:
        value, images = cells(variance)
        return value, "" if step0 is None else f"{step0.value:.3f}, {images}"

    rows = summary.table()
    if summary.compared is None:
        head: tuple[str, ...] = ("", "training", "images", "held out", "images")
        return table(head, [(row.label, *cells(row.training), *cells(row.heldout)) for row in rows])
    head = ("", "training", "step 0, images", "held out", "step 0, images")
    return table(
        head,
        [
            (row.label, *beside(row.training, row.training_step0), *beside(row.heldout, row.heldout_step0))
            for row in rows
        ],
    )


def _usage(folder: Path, mlp: str, model: str) -> str:
    told = "dexcore.nn.route_by_rule(encoder, names, modalities)  # of the images: a rule chooses their experts\n"
    ruled = mlp.endswith("routing")
    return (
        ("import dexcore.nn\n" if ruled else "") + f"from dexcore.models import {model}\n\n"
        f'model = {model}.from_pretrained("{run_files(folder)["model"].as_posix()}")\n'
        "encoder = model.encoder.eval()  # a timm vision transformer\n"
        f"{told if ruled else ''}"
        "tokens = encoder.forward_features(images)  # [B, 3, S, S] -> [B, N, D]"
    )
