"""The report: one HTML file that carries its pictures, made from a run folder's numbers alone."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.extras import require
from dexcore.files import write_whole
from dexcore.report.curves import course_pictures
from dexcore.report.evaluation import Evaluation
from dexcore.report.files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PICTURES_FOLDER,
    REPORT_FILE,
    SUMMARY_FILE,
    run_files,
)
from dexcore.report.gallery import gallery_picture
from dexcore.report.heatmaps import specialization_pictures
from dexcore.report.history import History
from dexcore.report.measures import Variance
from dexcore.report.pictures import Picture
from dexcore.report.style import CSS
from dexcore.report.summary import Summary, summarize


def build_report(run_folder: str | Path) -> Path:
    """Write report.html, summary.json and the pictures into a run folder, each whole or not at all.

    Everything is read before anything is written.

    Args:
        run_folder: holds metrics.jsonl, config.yaml and evaluation.npz.

    Returns:
        The path of report.html.

    Raises:
        FileNotFoundError: one of the three is missing.
        ValueError: one of the three is empty or damaged; the message names it.
        MissingExtraError: matplotlib or PyYAML is not installed.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected the folder of a run")
    config = _read_config(folder / CONFIG_FILE)
    history = History.read(folder / METRICS_FILE)
    evaluation = Evaluation.load(folder / EVALUATION_FILE)
    summary = summarize(evaluation, run_files(folder))

    gallery = gallery_picture(evaluation)
    course = course_pictures(history)
    experts = specialization_pictures(summary.blocks)
    pictures = [*([gallery] if gallery else []), *course, *experts]
    page = _page(folder, config, history, summary, pictures)

    (folder / PICTURES_FOLDER).mkdir(exist_ok=True)
    for picture in pictures:
        write_whole(folder / PICTURES_FOLDER / picture.name, picture.png)
    summary.save(folder / SUMMARY_FILE)
    write_whole(folder / REPORT_FILE, page.encode())
    return folder / REPORT_FILE


def _read_config(path: Path) -> Mapping[str, Any]:
    yaml = require("yaml", "train")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the run's configuration")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, expected YAML ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a mapping of the run's configuration")
    return config


def _page(
    folder: Path, config: Mapping[str, Any], history: History, summary: Summary, pictures: Sequence[Picture]
) -> str:
    title = f"DEX pre-training: {escape(folder.resolve().name)}"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="quiet">{escape(_course(history))}</p>',
        f'<p class="headline">{escape(_headline(summary))}</p>',
        *(f'<p class="warning">{escape(text)}</p>' for text in _warnings(history, summary)),
        "<h2>Variance explained</h2>",
        "<p>The share of what varies inside hidden patches that the model predicts: 1 is perfect, 0 is what "
        "predicting each patch as its own mean colour reaches, below 0 is worse than that. Held-out images come "
        "from files, volumes and patients that training never saw. <b>Bad:</b> a held-out column far below "
        "the training column, or one modality near 0 beside good others.</p>",
        _variance_table(summary),
        *(f'<p class="quiet">{escape(note)}</p>' for note in summary.notes()),
        *(_figure(picture) for picture in pictures),
        "<h2>Use the model</h2>",
        f"<pre>{escape(_usage(folder))}</pre>",
        "<h2>Configuration</h2>",
        *(f"<p>{_section(name, value)}</p>" for name, value in config.items()),
        f'<p class="quiet">Made from {METRICS_FILE}, {CONFIG_FILE} and {EVALUATION_FILE} beside this file; '
        "<code>dexcore.report.build_report(folder)</code> makes it again.</p>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _course(history: History) -> str:
    steps = len(history.step)
    parts = [f"{steps} step{'s' * (steps != 1)}"]
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
        above = sum(block.nmi > block.null_95 for block in measurable)
        headline += f" Experts follow modalities beyond chance in {above} of {len(summary.blocks)} blocks."
    return headline


def _warnings(history: History, summary: Summary) -> Iterator[str]:
    bad = int((~np.isfinite(history.scalars["loss_self"])).sum())
    if bad:
        yield f"The loss was not finite in {bad} of {len(history.step)} steps."
    if not summary.blocks:
        yield "No DEX block was evaluated: nothing to say about experts."
    elif len(summary.blocks[0].modalities) < 2:
        yield "The images are of one modality: whether experts follow modalities cannot be asked."


def _variance_table(summary: Summary) -> str:
    def cells(variance: Variance | None) -> tuple[str, str]:
        return ("–", "") if variance is None else (f"{variance.value:.3f}", str(variance.images))

    head = "".join(f"<th>{text}</th>" for text in ("", "training", "images", "held out", "images"))
    rows = []
    for label, training, heldout in summary.table():
        numbers = "".join(f"<td>{text}</td>" for text in (*cells(training), *cells(heldout)))
        rows.append(f"<tr><th>{escape(label)}</th>{numbers}</tr>")
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f"<h2>{escape(picture.title)}</h2>\n<figure>\n"
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(picture.reading)} <b>Bad:</b> {escape(picture.bad)}</figcaption>\n</figure>"
    )


def _usage(folder: Path) -> str:
    return (
        "from dexcore.models import MaskedAutoencoder\n\n"
        f'model = MaskedAutoencoder.from_pretrained("{run_files(folder)["model"].as_posix()}")\n'
        "encoder = model.encoder.eval()  # a timm vision transformer\n"
        "tokens = encoder.forward_features(images)  # [B, 3, S, S] -> [B, N, D]"
    )


def _section(name: str, value: object) -> str:
    if not isinstance(value, Mapping):
        return f"<b>{escape(str(name))}</b> {escape(str(value))}"
    values = "; ".join(f"{key} {item}" for key, item in value.items())
    return f"<b>{escape(str(name))}</b> {escape(values)}"
