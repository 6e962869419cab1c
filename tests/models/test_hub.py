"""Models by their name on the Hugging Face Hub: its own client, offline, on a cache laid out as the client does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from dexcore.models import DEXVisionTransformer

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


def tiny(depth=1):
    return DEXVisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=depth, num_heads=2, num_experts=2)


def fill(cache: Path, model, revision="main"):
    """Put a saved model into the cache as user/name: blobs by digest, a snapshot of links, a reference."""
    repository = cache / "models--user--name"
    snapshot = repository / "snapshots" / COMMITS[revision]
    for folder in (repository / "blobs", snapshot, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(COMMITS[revision])
    model.save_pretrained(cache / "made")
    for file in (cache / "made").iterdir():
        blob = repository / "blobs" / f"{file.name}-{revision}"
        shutil.move(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one model, and a working folder that holds nothing."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "hub", tiny())
    return tmp_path / "hub"


def test_a_model_opens_by_its_name_on_the_hub_also_through_timm(cache):
    model = DEXVisionTransformer.from_pretrained("user/name", cache_dir=cache)
    assert len(model.blocks) == 1
    again = timm.create_model("hf-hub:user/name", pretrained=True, cache_dir=cache).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), again(images))


def test_a_revision_is_passed_on(cache):
    fill(cache, tiny(depth=2), "v2")
    assert len(DEXVisionTransformer.from_pretrained("user/name", cache_dir=cache, revision="v2").blocks) == 2
    assert len(DEXVisionTransformer.from_pretrained("user/name", cache_dir=cache, revision=COMMITS["main"]).blocks) == 1


def test_the_clients_own_cache_is_found_by_hf_home(cache):
    code = (
        "from dexcore.models import DEXVisionTransformer; print(len(DEXVisionTransformer.from_pretrained('user/name')"
        ".blocks))"
    )
    environment = {**os.environ, "HF_HOME": str(cache.parent), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_folder_here_comes_before_a_model_on_the_hub(cache, tmp_path):
    tiny(depth=3).save_pretrained(tmp_path / "user" / "name")
    assert len(DEXVisionTransformer.from_pretrained("user/name", cache_dir=cache).blocks) == 3
    with pytest.raises(ValueError, match="revision is of a model on the Hugging Face Hub, but user/name is a path"):
        DEXVisionTransformer.from_pretrained("user/name", cache_dir=cache, revision="main")
    shutil.rmtree(tmp_path / "user")
    for folder in (Path("user/name"), "./user/name", "user/name/model"):  # none of them a name on the hub
        with pytest.raises(FileNotFoundError, match=r"name(/model)?: no such folder; expected"):
            DEXVisionTransformer.from_pretrained(folder, cache_dir=cache)


def test_what_is_neither_here_nor_on_the_hub_is_an_error_that_names_both(cache):
    with pytest.raises(
        FileNotFoundError, match=r"^user/other: no such folder here, and no such model .*Hugging Face Hub"
    ):
        DEXVisionTransformer.from_pretrained("user/other", cache_dir=cache)
    with pytest.raises(FileNotFoundError, match="user/name: no such folder here"):
        DEXVisionTransformer.from_pretrained("user/name", cache_dir=cache, revision="v3")


def test_weights_that_are_a_pickle_are_not_taken(cache):
    snapshot = cache / "models--user--name" / "snapshots" / COMMITS["main"]
    (snapshot / "model.safetensors").unlink()
    torch.save(tiny().state_dict(), snapshot / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        DEXVisionTransformer.from_pretrained("user/name", cache_dir=cache)
