"""``dexcore export``: the model of a checkpoint is the one that the run had then, and the run is left as it is."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import tiny, write_images

from dexcore.cli import main
from dexcore.engine.checkpoint import load_checkpoint
from dexcore.engine.stop import StopRequest
from dexcore.evaluate.embedding import open_model
from dexcore.models import MaskedAutoencoder
from dexcore.train.loop import Pretraining
from dexcore.train.run.export import export_model
from dexcore.train.run.folder import open_run_folder

_FILES = ("model.safetensors", "config.json")


def under_way(config) -> Path:
    """The folder of a run that was trained to its end and not yet finished: no model is there."""
    with open_run_folder(config) as folder, StopRequest() as stop:
        Pretraining(config, folder).train(stop)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_newest_checkpoint_of_a_finished_run_is_its_model_byte_for_byte(whole_run, tmp_path, capsys):
    run, out = Path(whole_run.out), tmp_path / "out"
    before = content(run)
    assert main(["export", str(run), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}: the model after 40 steps\n"
    for name in _FILES:
        assert (out / name).read_bytes() == (run / "model" / name).read_bytes()
    assert content(run) == before
    assert open_model(out).embed_dim == 16


def test_an_earlier_step_is_the_model_of_then(whole_run, tmp_path):
    run, out = Path(whole_run.out), tmp_path / "out"
    assert export_model(run, out, step=35) == 35
    then = Pretraining(whole_run, run)
    shutil.copytree(run / "checkpoints" / "step-00000035", tmp_path / "alone" / "step-00000035")
    assert load_checkpoint(tmp_path / "alone", then.model, then.optimizer, print).step == 35
    own, expected = MaskedAutoencoder.from_pretrained(out).state_dict(), then.model.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], expected[name]) for name in expected)
    last = MaskedAutoencoder.from_pretrained(run / "model").state_dict()
    assert not torch.equal(own["decoder_pred.weight"], last["decoder_pred.weight"])


@pytest.mark.parametrize("mlp", ["dense-wide", "fixed-routing", "oracle-routing"])
def test_a_twin_that_is_under_way_is_exported_with_its_rule(store, tmp_path, mlp):
    config = tiny(store, tmp_path / "run", epochs=1.5)
    config = replace(config, model=replace(config.model, mlp=mlp, num_experts=4, top_k=2))
    run = under_way(config)
    step = export_model(run, tmp_path / "out")
    trained = Pretraining(replace(config, resume=True), run)
    trained.resume()
    assert trained.step_done == step > 0
    out = MaskedAutoencoder.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, out.state_dict()[name]) for name, value in trained.model.state_dict().items())
    assert out.describe()["encoder"] == trained.model.describe()["encoder"]


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    return Path(shutil.copytree(whole_run.out, tmp_path / "run"))


def refused(capsys, *command: str) -> str:
    assert main(["export", *command]) == 2
    return capsys.readouterr().err.removesuffix("\n")


def test_a_step_that_is_not_there_names_those_that_are(run, tmp_path, capsys):
    assert refused(capsys, str(run), f"--out={tmp_path / 'out'}", "--step=5") == (
        f"error: {run / 'checkpoints'}: expected the checkpoint of step 5; steps that are there: 35, 40"
    )
    shutil.rmtree(run / "checkpoints")
    assert refused(capsys, str(run), f"--out={tmp_path / 'out'}").endswith(
        "expected a checkpoint; steps that are there: none"
    )
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused_and_left_where_it_is(run, tmp_path, capsys):
    damaged = run / "checkpoints" / "step-00000040"
    (damaged / "__0_0.distcp").write_bytes(b"damaged")
    before = content(run)
    line = refused(capsys, str(run), f"--out={tmp_path / 'out'}")
    assert line == f"error: {damaged}: is damaged or gone (__0_0.distcp is not as it was written)"
    assert content(run) == before
    assert not (tmp_path / "out").exists()
    assert main(["export", str(run), f"--out={tmp_path / 'out'}", "--step=35"]) == 0


def test_other_images_and_other_folders_are_refused(run, store, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    other = write_images(tmp_path / "store", seed=1)
    assert "fingerprint: " in refused(capsys, str(run), out, f"--store={other}")
    moved = shutil.copytree(store, tmp_path / "moved")
    assert main(["export", str(run), out, f"--store={moved}"]) == 0
    assert refused(capsys, str(run), out).endswith("out: expected a new or an empty folder")
    nowhere = tmp_path / "nowhere"
    assert refused(capsys, str(nowhere), f"--out={tmp_path / 'more'}") == (
        f"error: {nowhere}: expected the folder of a run, which holds config.yaml"
    )
