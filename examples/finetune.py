"""Fine-tune a Director-Experts model on masks: through its experts, its director, and from scratch.

    python examples/finetune.py                          # under five minutes on two CPU cores
    python examples/finetune.py --model runs/mine        # your own pre-trained model
    python examples/finetune.py --task mni               # the grey matter of nilearn's template brain (extra samples)

The task are the lesions of SyntheticMVU, images of ten modalities drawn from another seed than those that the model is
pre-trained on: many cases, all known. Without --model a small one is pre-trained first. Shown are a table with
intervals, a column a way of training, and a picture of the worst, the median and the best case: image, reference,
prediction. All of it lies in --out; what is done there is not run again. So short a training shows that it works, not
which of the three is better: that takes seeds (--seeds 5) and your own data.
"""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate import FinetuneConfig, Predictions, RunResult, Scores, Task, finetune
from dexcore.evaluate.finetuning import PRESETS
from dexcore.evaluate.scores.across import load_scores, table
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks
from dexcore.evaluate.tasks.table import Row
from dexcore.evaluate.tasks.write import write_task
from dexcore.extras import require
from dexcore.report.pictures import WIDTH, new_figure, styled, to_png
from dexcore.train import pretrain
from dexcore.train.config import PRESETS as PRETRAIN_PRESETS
from dexcore.train.config import PretrainConfig

SIZE = 64  # pixels of the pre-training images
MODES = ("experts", "director", "scratch")
ONE_CASE = "one case, seen in pre-training: it shows pictures and proves nothing"


def pretrained(out: Path, images: int, epochs: float) -> Path:
    """The folder of a small model, pre-trained on drawn images; made where it is not there."""
    model = out / "pretrained" / "model"
    if not (model / "config.json").is_file():
        store = out / "store"
        if not store.is_dir():
            source = SyntheticMVU(size=SIZE, seed=0)
            write_store((source.record(index) for index in range(images)), store, name="drawn")
        pretrain(_pretraining(out, store, images, epochs))
    return model


def _pretraining(out: Path, store: Path, images: int, epochs: float) -> PretrainConfig:
    laptop = PRETRAIN_PRESETS["laptop"]
    return replace(
        laptop,
        out=str(out / "pretrained"),
        resume=(out / "pretrained").is_dir(),
        data=replace(laptop.data, store=str(store), epoch_size=images),
        optimizer=replace(laptop.optimizer, warmup_epochs=epochs / 10),
        run=replace(laptop.run, epochs=epochs, evaluate_images=2),
    )


def mni_task(out: Path) -> Task:
    """Slices of nilearn's template brain with its grey matter; each third of them is for the test."""
    if (out / "grey_matter.yaml").is_file():
        return Task.open(out / "grey_matter.yaml")
    datasets, nibabel = require("nilearn.datasets", "samples"), require("nibabel", "samples")
    out.mkdir(parents=True, exist_ok=True)
    brain, matter = datasets.load_mni152_template(resolution=1), datasets.load_mni152_gm_template(resolution=1)
    mask = (np.asarray(matter.get_fdata()) > 0.5).astype(np.uint8)
    nibabel.save(brain, out / "brain.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, matter.affine), out / "matter.nii.gz")
    numbers = [number for number in range(0, mask.shape[2], 4) if mask[:, :, number].mean() > 0.02]
    rows = [
        {
            "image": f"brain.nii.gz#axial={number}",
            "mask": f"matter.nii.gz#axial={number}",
            "split": "test" if place % 3 == 1 else "train",
            "case": "template",
        }
        for place, number in enumerate(numbers)
    ]
    told: dict[str, Any] = {"modality": "MR", "kind": "segmentation", "split": "column", "unit": "image"}
    return write_task(out, "grey_matter", rows, classes=["background", "grey matter"], about=ONE_CASE, **told)


def picture(task: Task, result: RunResult) -> bytes:
    """The test images of which the prediction is worst, median and best: image, reference, prediction."""
    scores, predictions = result.scores[0], Predictions.load(result.folders[0] / "predictions.parquet")
    chosen = _chosen(task, scores)
    side = WIDTH / 3
    with styled():
        figure = new_figure((side + 0.3) * len(chosen))
        axes = figure.subplots(len(chosen), 3, squeeze=False)
        for (name, value, row), line in zip(chosen, axes, strict=True):
            image, reference = task.image(row), task.reference().mask(row)
            mask = predictions.mask(predictions.image.index(row.image))
            titles = {f"{name} {value:.2f}, {row.modality.value}": None, "reference": reference, "prediction": mask}
            for axis, (title, shown) in zip(line, titles.items(), strict=True):
                axis.imshow(image, cmap="gray", vmin=0, vmax=1)
                if shown is not None:
                    axis.imshow(np.ma.masked_equal(shown, 0), cmap="autumn", alpha=0.6, interpolation="nearest")
                axis.set_axis_off()
                axis.set_title(title, loc="left", fontsize=8, weight="normal")
        return to_png(figure)


def _chosen(task: Task, scores: Scores) -> list[tuple[str, float, Row]]:
    """(name, Dice, row) of the worst, the median and the best case; of one case only its middle image."""
    values = sorted((value, case) for case, value in scores.case_values().items() if value is not None)
    rows = {row.case: row for row in sorted(task.split("test"), key=lambda row: row.image)}
    if len(values) < 3:
        of_test = task.split("test")
        return [("mean", scores.primary.value, of_test[len(of_test) * part // 4]) for part in (1, 2, 3)]
    places = {"worst": 0, "median": len(values) // 2, "best": -1}
    return [(name, values[place][0], rows[values[place][1]]) for name, place in places.items()]


def command(config: FinetuneConfig) -> str:
    """The command line of a fine-tuning."""
    usual = vars(PRESETS["laptop"]) | {"task": config.task, "model": config.model}
    changed = [(name, value) for name, value in vars(config).items() if value != usual[name]]
    flags = [word for name, value in changed for word in (f"--{name.replace('_', '-')}", str(value))]
    return shlex.join(["dexcore", "finetune", config.task, config.model, "--preset", "laptop", *flags])


def main(argv: list[str] | None = None) -> int:
    """Run the example; the return value is the process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_example"), help="the folder of all results")
    parser.add_argument("--model", help="a pre-trained model of dexcore's (default: a small one is trained)")
    parser.add_argument("--task", choices=("lesions", "mni"), default="lesions")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings of each way (default: 1)")
    parser.add_argument("--quick", action="store_true", help="so short that it only shows that all parts work")
    asked = parser.parse_args(argv)
    out = asked.out / "quick" if asked.quick else asked.out
    images, steps, epochs = (96, 12, 2.0) if asked.quick else (600, 200, 10.0)

    model = asked.model or str(pretrained(out, images, epochs))
    if asked.task == "mni":
        task, size = mni_task(out / "tasks"), 96
    else:
        task, size = synthetic_tasks(out / "tasks", images, SIZE)[0], SIZE
    results = out / f"results_{task.name}"
    given = {"task": str(task.spec.path), "model": model, "out": str(results), "name": "small"}
    changes = {"img_size": size, "steps": steps, "seeds": asked.seeds, "validations": 3}
    configs = [FinetuneConfig(**(vars(PRESETS["laptop"]) | given | changes | {"mode": mode})) for mode in MODES]
    for mode, config in zip(MODES, configs, strict=True):
        result = finetune(config)
        if not result.finished:
            return result.exit_code
        (out / f"{task.name}_{mode}.png").write_bytes(picture(task, result))
    scores = load_scores(results)
    print("\n".join(table(scores, against="small finetune-scratch").lines()))
    if asked.task == "mni":
        print(f"\n{ONE_CASE}")
    print(f"\npictures  {out}/{task.name}_{{{','.join(MODES)}}}.png")
    for config in configs:
        print(f"the same  {command(config)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
