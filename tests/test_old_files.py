"""Files of earlier versions (tests/fixtures), which this one must read."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dexcore.cli import main
from dexcore.data.feed.dataset import open_mvu
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in FIXTURES.glob("*.tar.xz"))


@pytest.fixture(params=VERSIONS)
def old(request, tmp_path):
    """A copy of what a version wrote."""
    with tarfile.open(FIXTURES / f"{request.param}.tar.xz") as archive:
        # Our own archive: Python 3.11 before 3.11.4 knows no filter, and 3.12 asks for one.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path


def test_files_of_the_first_version_are_kept():
    assert "0.1.0" in VERSIONS


def test_an_old_model_opens_and_computes_what_it_did(old):
    model = MaskedAutoencoder.from_pretrained(old / "run" / "model")
    encoder = DEXVisionTransformer.from_pretrained(old / "run" / "model")
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.parameters(), encoder.parameters(), strict=True))
    image = torch.linspace(-1, 1, 3 * 32 * 32).sin().reshape(1, 3, 32, 32)
    expected = torch.tensor(json.loads((old / "features.json").read_text()))
    with torch.no_grad():
        torch.testing.assert_close(encoder.forward_features(image)[0, 0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="does not say"):  # the first version wrote nothing of it
        encoder.preprocess(np.zeros((40, 40), np.uint8))


def test_an_old_store_opens(old):
    images = open_mvu(old / "store")
    assert len(images) == 8
    assert images.fingerprint == json.loads((old / "store" / "manifest.json").read_text())["fingerprint"]
    assert images[0]["image"].max() <= 1


def test_an_old_run_is_resumed_and_takes_the_step_it_took(old, monkeypatch, capsys):
    from dexcore.train import pretrain
    from dexcore.train.arguments import parse

    monkeypatch.chdir(old)
    steps = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    shutil.rmtree("run/checkpoints/step-00000002")
    result = pretrain(parse(["--config", "run/config.yaml", "--resume"]))
    assert (result.finished, result.step) == (True, 2)
    again = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert again[0] == steps[0]
    for name in ("loss", "grad_norm", "loss_align"):
        # The run's precision is auto: bf16 where it was made, float32 on other CPUs and with torch 2.10 (7e-4 away).
        assert again[1][name] == pytest.approx(steps[1][name], rel=2e-3), name
    assert "resuming" in capsys.readouterr().err


def test_a_report_is_made_again_from_an_old_runs_numbers(old, capsys):
    assert main(["report", str(old / "run")]) == 0
    assert "variance explained" in capsys.readouterr().out
    assert (old / "run" / "report.html").is_file()
