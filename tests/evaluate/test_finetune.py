"""A fine-tuning from its task to its folder: what it leaves, what is not run again, what is refused."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from made_finetunings import config_of, ended_in, losses, place_of_tasks, sides, spots, tiny
from made_tasks import save
from PIL import Image

from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.evaluate import Predictions, finetune, score
from dexcore.evaluate.finetuning import run
from dexcore.evaluate.finetuning.run import RunResult
from dexcore.evaluate.finetuning.training import Finetuning
from dexcore.evaluate.scores.across import load_scores, table
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.models import TaskModel


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_of_tasks(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def ended(place):
    return ended_in(place)


@pytest.mark.parametrize("name", ["spots", "sides"])
def test_the_folder_holds_model_predictions_and_scores(ended, place, name):
    result, task = ended[name], Task.open(place / name / f"{name}.yaml")
    assert result.finished
    assert result.exit_code == 0
    (folder,) = result.folders
    assert folder == place / "out" / "mine" / "finetune-experts" / name / "seed-0"
    predictions = Predictions.load(folder / "predictions.parquet")
    assert sorted(predictions.image) == sorted(row.image for row in task.split("test"))
    assert predictions.kind == ("mask" if name == "spots" else "logits")
    if name == "spots":
        for number, image in enumerate(predictions.image):
            row = next(row for row in task.rows if row.image == image)
            assert predictions.mask(number).shape == task.image(row).shape  # the image's own
    else:
        assert predictions.values.dtype == np.float16
    again = score(predictions, task)
    assert again.as_json() == json.loads((folder / "scores.json").read_text()) == result.scores[0].as_json()
    assert len(Predictions.load(folder / "val" / "predictions.parquet")) == len(task.split("val"))
    assert not (folder / "checkpoints").exists()
    lines = losses(folder)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert (
        lines[-1][f"val_{task.spec.metric}"] == json.loads((folder / "choice.json").read_text())["best_on_val"]["value"]
    )
    for state in ("model", "best"):
        model = TaskModel.from_pretrained(folder / state)
        assert (model.task.kind, model.task.classes) == (task.kind, task.classes)


def test_tables_and_comparisons_read_it(ended, place):
    found = load_scores(place / "out")
    assert {(one.model, one.split) for one in found} == {("mine finetune-experts", "test")}
    assert [row.task for row in table(found).rows] == ["sides", "spots"]
    told = "\n".join(ended["spots"].lines())
    assert "dexcore predict IMAGE" in told
    assert "dexcore eval table" in told
    assert "dice" in told


def test_a_finished_seed_is_not_run_again_and_another_one_is_another_training(ended, place):
    (folder,) = ended["sides"].folders
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*") if path.is_file()}
    task = place / "sides" / "sides.yaml"
    both = finetune(tiny(task, place / "mine", place / "out", seeds=2))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("[!.]*") if path.is_file()} == written
    assert [path.name for path in both.folders] == ["seed-0", "seed-1"]
    of_seeds = [Predictions.load(one / "predictions.parquet") for one in both.folders]
    assert [one.seed for one in of_seeds] == [0, 1]
    assert (of_seeds[0].values != of_seeds[1].values).any()
    assert "2 seeds" in "\n".join(both.lines())
    shutil.rmtree(both.folders[1])


@pytest.mark.parametrize(("changed", "named"), [("0.png", "images"), ("3_mask.png", "task")])
def test_images_and_masks_that_changed_in_their_place_are_another_training(ended, place, tmp_path, changed, named):
    shutil.copytree(place / "spots", tmp_path / "spots")
    shutil.copytree(place / "out", tmp_path / "out")
    config = tiny(tmp_path / "spots" / "spots.yaml", place / "mine", tmp_path / "out")
    finetune(config)  # is done
    save(tmp_path / "spots" / changed, 1 - np.asarray(Image.open(tmp_path / "spots" / changed)))
    with pytest.raises(RunFolderError, match=rf"holds another fine-tuning(?s:.*)\n  {named}: ") as told:
        finetune(config)
    assert len(str(told.value).splitlines()) == 2


def test_images_are_read_once_for_all_seeds_which_is_told_where_it_takes_long(place, tmp_path, monkeypatch, capsys):
    asked = []

    def slow(task):
        asked.append(task.name)
        time.sleep(0.2)
        return "of these images"

    monkeypatch.setattr(run, "content_of", slow)
    config = config_of(place, "sides", out=str(tmp_path), steps=1, seeds=2)
    assert finetune(replace(config, dry_run=True)).finished
    assert asked == []
    for _ in range(2):  # the second time they are done
        monkeypatch.setattr(run, "_SILENT_SECONDS", 5.0 if not asked else 0.01)
        folders = finetune(config).folders
        assert {json.loads((folder / "finetune.json").read_text())["images"] for folder in folders} == {
            "of these images"
        }
    assert asked == ["sides"] * 2
    assert capsys.readouterr().err.count("reading the 12 images of task sides, to know them again") == 1


def test_seeds_that_cannot_be_summed_up_end_no_training_in_an_error(ended):
    (one,) = ended["sides"].scores
    found = RunResult((ended["sides"].folders[0],) * 2, (one, replace(one, seed=1)), finished=True)
    assert "  note: task sides: seeds 0 and 1 made the same predictions to the bit" in "\n".join(found.lines())
    (masks,) = ended["spots"].scores
    both = RunResult((ended["spots"].folders[0],) * 2, (masks, replace(masks, seed=1)), finished=True)
    told = "\n".join(both.lines())
    assert "2 seeds: dice" in told
    assert "note: seeds 0 and 1 predict alike" in told


def test_the_same_seed_gives_the_same_bytes(ended, place):
    for name, result in ended.items():
        (again,) = finetune(config_of(place, name, out=str(place / "again"))).folders
        for file in ("model/model.safetensors", "best/model.safetensors", "predictions.parquet", "choice.json"):
            assert (again / file).read_bytes() == (result.folders[0] / file).read_bytes(), file


def test_other_test_labels_change_no_byte_of_the_model_the_choice_or_the_logits(ended, place, tmp_path):
    shutil.copytree(place / "sides", tmp_path / "sides")
    table_file = tmp_path / "sides" / "sides.csv"
    lines = table_file.read_text().splitlines()
    other = {"left": "right", "right": "left"}
    for number, line in enumerate(lines):
        if ",test," in line:
            label = line.split(",")[2]
            lines[number] = line.replace(f",{label},", f",{other[label]},")
    table_file.write_text("\n".join(lines) + "\n")
    (found,) = finetune(tiny(tmp_path / "sides" / "sides.yaml", place / "mine", tmp_path / "out")).folders
    (known,) = ended["sides"].folders
    for file in ("choice.json", "model/model.safetensors", "best/model.safetensors", "val/scores.json"):
        if file == "val/scores.json":
            told = [json.loads((one / file).read_text()) for one in (found, known)]
            assert told[0]["numbers"] == told[1]["numbers"]
        else:
            assert (found / file).read_bytes() == (known / file).read_bytes(), file
    values = [Predictions.load(one / "predictions.parquet").values for one in (found, known)]
    assert (values[0] == values[1]).all()
    assert (found / "scores.json").read_bytes() != (known / "scores.json").read_bytes()


def test_a_mask_that_cannot_be_read_ends_it_with_task_file_and_line(place, tmp_path):
    task = spots(tmp_path / "task")
    save(tmp_path / "task" / "1_mask.png", np.full((21, 24), 7, np.uint8))
    with pytest.raises(TaskError, match=r"task spots: .*spots\.csv, line 3: .*1_mask\.png: holds the value 7"):
        finetune(tiny(task, place / "mine", tmp_path / "out"))


def test_a_folder_of_another_fine_tuning_is_refused_with_what_differs(ended, place):
    task = place / "spots" / "spots.yaml"
    with pytest.raises(RunFolderError, match=r"another fine-tuning.*(?s:.*)lr: 0.0001 -> 0.01"):
        finetune(tiny(task, place / "mine", place / "out", lr=1e-2))


@pytest.mark.parametrize("lost", ["scores.npz", "scores.json"])
def test_a_done_training_whose_scores_are_lost_predicts_again_and_is_not_trained_again(place, tmp_path, capsys, lost):
    config = config_of(place, "sides", out=str(tmp_path))
    (folder,) = finetune(config).folders
    kept = ("model/model.safetensors", "best/model.safetensors", "metrics.jsonl", "choice.json", "predictions.parquet")
    before = {name: (folder / name).read_bytes() for name in (*kept, "scores.json")}
    written = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    (folder / lost).unlink()
    again = finetune(config)
    assert again.finished
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert "scores.npz" in {path.name for path in folder.iterdir()}


def test_a_folder_says_from_its_beginning_what_is_made_there(place, tmp_path, monkeypatch):
    """One that was killed before its first checkpoint: another one is refused, its own command goes on."""
    config = config_of(place, "sides", out=str(tmp_path))

    def killed(self, stop):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Finetuning, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    with pytest.raises(RunFolderError, match=r"another fine-tuning.*(?s:.*)lr: 0.0001 -> 0.01"):
        finetune(replace(config, lr=1e-2))
    (folder,) = tmp_path.rglob("seed-0")
    (folder / "best").mkdir()
    (folder / "best" / "config.json").write_text("of another")
    (folder / "finetune.json").unlink()
    finetune(replace(config, validations=0))
    assert not (folder / "best").exists()
    assert json.loads((folder / "finetune.json").read_text())["finished"] is True


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lr": -1.0}, "lr: expected a number above 0"),
        ({"img_size": 18}, "img_size: expected a multiple of .*patches of 4, got 18"),
        ({"mode": "both"}, "mode: expected 'experts' or"),
        ({"pool": "mean"}, "pool: is not for task spots"),
        ({"steps": 3, "epochs": 1.0}, "steps: expected 0 beside epochs"),
        ({"mode": "director", "lambda_align": 1.0}, "lambda_align"),
    ],
)
def test_a_field_that_cannot_be_is_named(place, tmp_path, wrong, told):
    with pytest.raises(ConfigError, match=told):
        finetune(config_of(place, **({"out": str(tmp_path)} | wrong)))
    assert not (tmp_path / "mine").exists()


def test_a_full_disk_ends_it_with_the_file_and_what_was_done_stays(place, tmp_path, monkeypatch):
    config = config_of(place, "sides", out=str(tmp_path))

    def full(self, folder):
        raise OSError(28, "No space left on device", str(folder))

    with monkeypatch.context() as patched:
        patched.setattr(TaskModel, "save_pretrained", full)
        with pytest.raises(RunFolderError, match=r"best: the model cannot be written: .*No space left"):
            finetune(config)
    assert finetune(config).finished


@pytest.mark.parametrize("kind", ["multilabel", "ordinal", "multilabel_segmentation"])
def test_every_kind_of_task_is_trained_predicted_and_scored(place, tmp_path, kind):
    keys = {"kind": kind, "classes": ["left", "right"]}
    task = sides(tmp_path / "task", **keys)
    if kind == "multilabel_segmentation":
        text = (tmp_path / "task" / "sides.csv").read_text()
        head, *lines = text.splitlines()
        rows = [f"{line},{line.split(',')[1]}" for line in lines]
        table_text = [head.replace(",mask,", ",mask_left,") + ",mask_right", *rows]
        (tmp_path / "task" / "sides.csv").write_text("\n".join(table_text) + "\n")
    result = finetune(tiny(task, place / "mine", tmp_path / "out", steps=1))
    (scores,) = result.scores
    assert scores.kind == kind
    assert set(scores.per_class) == {"left", "right"}
    predictions = Predictions.load(result.folders[0] / "predictions.parquet")
    assert predictions.kind == ("mask" if "segmentation" in kind else "logits")


def test_a_task_without_val_has_no_best_state(place, tmp_path):
    task = sides(tmp_path / "task")
    table_file = tmp_path / "task" / "sides.csv"
    table_file.write_text(table_file.read_text().replace(",val,", ",train,"))
    (folder,) = finetune(tiny(task, place / "mine", tmp_path / "out", steps=1)).folders
    assert json.loads((folder / "choice.json").read_text())["best_on_val"] is None
    assert not (folder / "best").exists()
    assert not (folder / "val").exists()
