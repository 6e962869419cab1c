"""What a fine-tuning is called, in folders and tables."""

import pytest

from dexcore.evaluate import FinetuneConfig


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
