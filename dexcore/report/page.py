"""The report: one HTML file that carries its pictures, made from a run folder's numbers alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from dexcore.files import write_whole
from dexcore.report.curves import course_pictures
from dexcore.report.features import map_picture, patch_picture
from dexcore.report.files import (
    ANALYSIS_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PICTURES_FOLDER,
    REPORT_FILE,
    SIMILARITY_FILE,
    SUMMARY_FILE,
    run_files,
)
from dexcore.report.gallery import gallery_picture
from dexcore.report.heatmaps import block_pictures, depth_picture
from dexcore.report.history import History
from dexcore.report.html import document, figure, folded, mapping, table
from dexcore.report.loads import flow_picture, hunger_picture, load_picture
from dexcore.report.matrices import gradient_picture, similarity_picture
from dexcore.report.measures import Variance
from dexcore.report.numbers import RunNumbers
from dexcore.report.pictures import Picture
from dexcore.report.routes import flow
from dexcore.report.similarity_course import similarity_course_picture
from dexcore.report.summary import Summary, summarize


@dataclass(frozen=True)
class _Section:
    """A part of the page: what it asks, its pictures, and those that are folded away under a line."""

    name: str
    title: str
    pictures: tuple[Picture, ...]
    folded: tuple[Picture, ...] = ()


def build_report(run_folder: str | Path) -> Summary:
    """Write report.html, summary.json and the pictures into a run folder, each whole or not at all.

    Everything is read before anything is written. No model and no image is needed.

    Args:
        run_folder: holds metrics.jsonl, config.yaml, evaluation.npz, analysis.npz, and similarity.jsonl unless the
            run was made by an older version.

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

    written = {picture.name: picture for section in sections for picture in (*section.pictures, *section.folded)}
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

    sections = [
        _Section("learned", "What it learned", of(gallery_picture(evaluation), patch_picture(evaluation, analysis))),
        _Section(
            "experts",
            "What the experts do",
            of(
                depth_picture(summary.blocks),
                flow_picture(flow(evaluation), evaluation.modality_names),
                similarity_picture(analysis, summary.likeness),
                similarity_course_picture(numbers.similarity),
                load_picture(history),
                hunger_picture(history, summary.hunger),
            ),
            tuple(block_pictures(summary.blocks)),
        ),
        _Section(
            "modalities",
            "Between modalities",
            of(map_picture(evaluation, analysis, summary.separation), gradient_picture(analysis, summary.conflicts)),
        ),
        _Section("course", "The course of training", tuple(course_pictures(history))),
    ]
    return [section for section in sections if section.pictures or section.folded]


def _page(folder: Path, numbers: RunNumbers, summary: Summary, sections: list[_Section]) -> str:
    title = f"DEX pre-training: {folder.resolve().name}"
    links = "".join(
        f'<a href="#{name}">{escape(text)}</a>' for name, text in [(s.name, s.title) for s in sections] + [_USE]
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(_course(numbers.history))}</p>',
        f'<p class="headline">{escape(_headline(summary))}</p>',
        *(f'<p class="warning">{escape(text)}</p>' for text in _warnings(numbers.history, summary)),
        f"<nav>{links}</nav>",
        "<h3>Variance explained</h3>",
        "<p>The share of what varies inside hidden patches that the model predicts: 1 is perfect, 0 is what "
        "predicting each patch as its own mean colour reaches, below 0 is worse than that. Held-out images come "
        "from files, volumes and patients that training never saw. <b>Bad:</b> a held-out column far below "
        "the training column, or one modality near 0 beside good others.</p>",
        _variance_table(summary),
        *(f'<p class="quiet">{escape(note)}</p>' for note in summary.notes()),
    ]
    for section in sections:
        body.append(f'<h2 id="{section.name}">{escape(section.title)}</h2>')
        body += map(figure, section.pictures)
        if section.folded:
            body.append(folded("Block by block: modality and expert", map(figure, section.folded)))
    read = [name for name in _READ if (folder / name).is_file()]
    body += [
        f'<h2 id="{_USE[0]}">{_USE[1]}</h2>',
        f"<pre>{escape(_usage(folder))}</pre>",
        folded("Configuration", (mapping(name, value) for name, value in numbers.config.items())),
        f'<p class="quiet">Made from {", ".join(read)} beside this '
        f"file; <code>dexcore report {escape(folder.as_posix())}</code> makes it again.</p>",
    ]
    return document(title, body)


_READ = (METRICS_FILE, CONFIG_FILE, EVALUATION_FILE, ANALYSIS_FILE, SIMILARITY_FILE)
_NEGLIGIBLE = 0.01  # mutual information of a collapsed router may be beyond chance and still nothing
_USE = ("use", "Use the model")


def _course(history: History) -> str:
    steps = len(history.step)
    skipped = int(history.skipped.sum())
    told = f", {skipped} of them skipped (loss or gradient not finite)" if skipped else ""
    parts = [f"{steps} step{'s' * (steps != 1)}{told}"]
    loss = history.scalars["loss_self"]
    finite = np.flatnonzero(np.isfinite(loss))
    if len(finite) > 1:
        parts.append(f"reconstruction loss from {loss[finite[0]]:.3f} to {loss[finite[-1]]:.3f}")
    speed = history.scalars["images_per_second"]
    if np.isfinite(speed).any():
        parts.append(f"{np.nanmedian(speed):.0f} images per second")
    return "; ".join(parts) + "."


def _headline(summary: Summary) -> str:
    real = summary.training.mean_real.images or summary.heldout.mean_real.images
    kind = "real" if real else "synthetic"
    sentences = []
    for name, split in (("training", summary.training), ("held-out", summary.heldout)):
        variance = split.mean_real if real else split.mean
        if variance.images:
            modalities = "modality" if variance.modalities == 1 else "modalities"
            images = f"{variance.images} {kind} {name} image{'s' * (variance.images != 1)}"
            sentences.append(f"{100 * variance.value:.1f} % on {images} ({variance.modalities} {modalities})")
    if not sentences:
        return "No image was evaluated."
    headline = "Masked-patch variance explained, mean over modalities: " + "; ".join(sentences) + "."
    measurable = [block for block in summary.blocks if block.nmi == block.nmi]
    if measurable:
        above = sum(block.nmi > max(block.null_95, _NEGLIGIBLE) for block in measurable)
        headline += f" Experts follow modalities beyond chance in {above} of {len(summary.blocks)} blocks."
    return headline


def _warnings(history: History, summary: Summary) -> Iterator[str]:
    bad = int((history.skipped | ~np.isfinite(history.scalars["loss_self"])).sum())
    if bad:
        yield f"The loss or its gradient was not finite in {bad} of {len(history.step)} steps."
    if not summary.blocks:
        yield "No DEX block was evaluated: nothing to say about experts."
    elif len(summary.blocks[0].modalities) < 2:
        yield "The images are of one modality: whether experts follow modalities cannot be asked."
    if any(block.starving for block in summary.hunger):
        yield f"Starving experts: {summary.starving()}."


def _variance_table(summary: Summary) -> str:
    def cells(variance: Variance | None) -> tuple[str, str]:
        return ("–", "") if variance is None else (f"{variance.value:.3f}", str(variance.images))

    head = ("", "training", "images", "held out", "images")
    return table(head, [(label, *cells(training), *cells(heldout)) for label, training, heldout in summary.table()])


def _usage(folder: Path) -> str:
    return (
        "from dexcore.models import MaskedAutoencoder\n\n"
        f'model = MaskedAutoencoder.from_pretrained("{run_files(folder)["model"].as_posix()}")\n'
        "encoder = model.encoder.eval()  # a timm vision transformer\n"
        "tokens = encoder.forward_features(images)  # [B, 3, S, S] -> [B, N, D]"
    )
