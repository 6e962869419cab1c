"""What a fine-tuning is called, in folders and tables; how long it is."""

import pytest

from dexcore.evaluate import FinetuneConfig
from dexcore.evaluate.finetuning.config import Length


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/mine", "mine"),
        ("runs/mine/model", "mine"),
        ("user/name", "name"),
        ("vit_small_patch16_224.dino", "vit_small_patch16_224.dino"),
        (".", "here"),
        ("../there/model", "there"),
        ("results/mine/finetune-experts/lesions/seed-0", "mine-finetune-experts-lesions-seed-0"),
        ("results/mine/finetune-experts/lesions/seed-0/model", "mine-finetune-experts-lesions-seed-0"),
        ("results/mine/finetune-experts/lesions/seed-1/best", "mine-finetune-experts-lesions-seed-1-best"),
    ],
)
def test_models_of_other_folders_have_other_names(model, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert FinetuneConfig(task="t.yaml", model=model).called == name
    assert FinetuneConfig(task="t.yaml", model=model, name="own").called == "own"


def test_a_length_is_100_epochs_or_2000_steps_up_to_20000():
    lengths = [Length(FinetuneConfig(), images).total_steps for images in (20, 1600, 10**6)]
    assert lengths == [2000, 10_000, 20_000]
    assert Length(FinetuneConfig(epochs=3), 160).total_steps == 30
    length = Length(FinetuneConfig(), 1600)
    assert length.warmup_steps == 1000
    assert length.lr(1000) == 1e-4
    assert length.lr(0) < length.lr(500) < 1e-4
    assert length.lr(9999) < 1e-8
    assert sum(length.validates(step + 1) for step in range(10_000)) == 20
    assert length.validates(10_000)
