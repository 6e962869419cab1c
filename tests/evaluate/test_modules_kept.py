"""What dexcore eval modules keeps: a kill loses the part at work, and what cannot be measured is refused first."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from made_tasks import picture, save, write
from planted import planted, write_stripes
from runs import ends, start_ranks

from dexcore.cli import main
from dexcore.data import open_mvu
from dexcore.evaluate.modules import run as modules_run
from dexcore.evaluate.modules import take_samples
from dexcore.evaluate.modules.part import Part
from dexcore.evaluate.modules.run import Plan, measure_modules
from dexcore.evaluate.modules.shared import SharedSpace
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.measures.bootstrap import Estimate
from dexcore.measures.shared_space import Across
from dexcore.nn import RoutingRule, set_rule

_CPU = torch.device("cpu")
_MEASURES = ("collect", "measure_routing", "knock_out", "extract", "task_damage", "fold_gradients")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store and planted models."""
    root = tmp_path_factory.mktemp("kept")
    images = write_stripes(root / "store")
    for reads in ("modality", "tag"):
        planted(images, reads).save_pretrained(root / reads)
    return root


@pytest.fixture(scope="module")
def models(folder):
    images = open_mvu(folder / "store")
    return {reads: planted(images, reads) for reads in ("modality", "tag")}


@pytest.fixture
def counted(monkeypatch):
    """How often each measure was taken."""
    counts = dict.fromkeys(_MEASURES, 0)

    def counting(name, true):
        def call(*given, **named):
            counts[name] += 1
            return true(*given, **named)

        return call

    for name in _MEASURES:
        monkeypatch.setattr(modules_run, name, counting(name, getattr(modules_run, name)))
    return counts


def labels(folder: Path, **keys) -> Task:
    """Twelve pictures of two classes."""
    rows = []
    for case in range(12):
        save(folder / f"{case}.png", picture(case, (32, 32, 3)))
        split = ("train", "test")[case % 2]
        rows.append(
            {"image": f"{case}.png", "split": split, "case": str(case), "label": ("sound", "ill")[case // 2 % 2]}
        )
    return Task.open(write(folder, rows, **keys))


def test_what_a_model_was_measured_to_be_is_the_same_when_read_again(folder, models, tmp_path):
    images = open_mvu(folder / "store")
    kept = tmp_path / "parts"
    measure_modules(models, images, _CPU, Plan(images=6, random=2, keep=kept))
    (path, *_) = sorted(kept.glob("model-*.npz"))
    found = Part.load(path)
    q = torch.arange(3).double().numpy()
    across = Across(
        Estimate(0.5, float("nan"), 1.0, 0.1, 2, 3), 0.1, 0.2, 0.3, 2, 3, 4, q, q.astype(int), q.astype(int)
    )
    full = Part(found.numbers, found.extraction, {"director": SharedSpace(across, across)})
    full.save(tmp_path / "full.npz")
    again = Part.load(tmp_path / "full.npz")
    assert again.numbers == full.numbers
    for name, value in vars(full.extraction).items():
        other = getattr(again.extraction, name)
        if isinstance(value, tuple):
            assert other == value
        else:
            assert (other.dtype, other.tobytes()) == (value.dtype, value.tobytes())
    other = again.spaces["director"].centered
    assert repr(other) == repr(across)
    (tmp_path / "full.npz").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        Part.load(tmp_path / "full.npz")


def test_after_a_kill_only_what_is_missing_is_measured_and_all_numbers_are_the_same(
    folder, models, tmp_path, monkeypatch, counted
):
    images = open_mvu(folder / "store")
    plan = Plan(images=6, random=2, keep=tmp_path / "parts")
    whole = measure_modules(models, images, _CPU, Plan(images=6, random=2))
    assert counted["knock_out"] == 2
    counting = modules_run.extract

    def killed(model, *given, **named):
        if model is models["tag"]:
            raise KeyboardInterrupt
        return counting(model, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(modules_run, "extract", killed)
        with pytest.raises(KeyboardInterrupt):
            measure_modules(models, images, _CPU, plan)
    counted.update(dict.fromkeys(_MEASURES, 0))
    again = measure_modules(models, images, _CPU, plan)
    of_one = {"collect": 2, "measure_routing": 1, "knock_out": 1, "extract": 1}
    assert counted == of_one | {"task_damage": 0, "fold_gradients": 1}
    assert json.dumps(again) == json.dumps(whole)
    counted.update(dict.fromkeys(_MEASURES, 0))
    assert json.dumps(measure_modules(models, images, _CPU, plan)) == json.dumps(whole)
    assert not any(counted.values())


def test_another_plan_another_store_and_other_weights_are_measured_anew(folder, models, tmp_path, counted):
    images = open_mvu(folder / "store")
    keep = tmp_path / "parts"
    own = {"own": models["modality"]}

    def taken(models, store, **plan):
        counted.update(dict.fromkeys(_MEASURES, 0))
        measure_modules(models, store, _CPU, Plan(**{"images": 3, "random": 1, "keep": keep} | plan))
        return counted["knock_out"]

    assert [taken(own, images), taken(own, images)] == [1, 0]
    assert taken({"renamed": models["modality"]}, images) == 0
    for changed in ({"images": 4}, {"seed": 1}, {"instead": "zero"}, {"random": 2}):
        assert taken(own, images, **changed) == 1
    assert taken(own, write_stripes(tmp_path / "store", seed=1)) == 1
    with torch.no_grad():
        models["modality"].decoder_pred.bias += 1
        try:
            assert taken(own, images) == 1
        finally:
            models["modality"].decoder_pred.bias -= 1
    for path in keep.iterdir():
        path.write_bytes(b"damaged")
    assert [taken(own, images), taken(own, images)] == [1, 0]


def test_what_cannot_be_measured_of_a_later_model_is_known_before_the_first(folder, models, tmp_path, counted):
    images = open_mvu(folder / "store")
    blind = planted(images)
    set_rule(blind, RoutingRule("oracle", modalities=("PET", "OCT")))
    both = {"own": models["modality"], "blind": blind}
    with pytest.raises(ValueError, match="blind: gives experts by modality, and has none for Photo of the store"):
        measure_modules(both, images, _CPU)
    seeing = planted(images)
    set_rule(seeing, RoutingRule("oracle", modalities=take_samples(images).train.modalities))
    task = labels(tmp_path / "task")
    with pytest.raises(ValueError, match=f"seeing: gives experts .* none for X-ray of task {task.name}"):
        measure_modules({"own": models["modality"], "seeing": seeing}, images, _CPU, Plan(task=task))
    table = task.spec.path.with_suffix(".csv")
    table.write_text(table.read_text().replace(",test,", ",train,"))
    with pytest.raises(TaskError, match="has no image of split test"):
        measure_modules(models, images, _CPU, Plan(task=Task.open(task.spec.path)))
    assert not any(counted.values())


@pytest.mark.slow
def test_the_command_goes_on_after_a_real_kill_and_writes_the_same_bytes(folder, tmp_path, counted):
    task = labels(tmp_path / "task", metric="auroc", positive="ill")
    command = ["eval", "modules", str(folder / "modality"), str(folder / "store"), f"--twin=tag={folder / 'tag'}"]
    command += ["--device=cpu", "--images=6", f"--task={task.spec.path}", f"--cache={tmp_path / 'cache'}"]
    command += ["--other-seed", str(folder / "tag")]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    (process,) = start_ranks(1, ["-m", "dexcore", *command, f"--out={killed}"])
    while not (parts := list(killed.glob("parts/model-*.npz"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    ends([process])
    assert not (killed / "modules.json").exists()
    written = [(path, path.stat().st_mtime_ns) for path in (*parts, *killed.glob("parts/seeds-*.npz"))]
    assert len(written) == 2
    assert main([*command, f"--out={killed}"]) == 0
    assert (counted["knock_out"], counted["task_damage"]) == (1, 2)
    assert [(path, path.stat().st_mtime_ns) for path, _ in written] == written
    assert main([*command, f"--out={whole}"]) == 0
    for file in ("modules.json", "modules.html"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
    counted.update(dict.fromkeys(_MEASURES, 0))
    assert main([*command, f"--out={killed}"]) == 0
    assert not any(counted.values())
