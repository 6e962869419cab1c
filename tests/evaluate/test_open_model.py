"""Models by their folders and names."""

import pytest
import timm
import torch
from made_models import dex, pictures
from timm.models.vision_transformer import VisionTransformer

from dexcore.evaluate.embedding import (
    FeaturesError,
    features,
    open_model,
)
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, ModelFileError, TaskDescription, TaskModel


def test_a_model_is_opened_by_its_folder_or_its_name(tmp_path):
    model = dex()
    model.save_pretrained(tmp_path / "run" / "model")
    MaskedAutoencoder(dex(), decoder_dim=16, decoder_depth=1, decoder_heads=2).save_pretrained(tmp_path / "mae")
    dense = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    MaskedAutoencoder(dense, decoder_dim=16, decoder_depth=1, decoder_heads=2).save_pretrained(tmp_path / "dense")
    found = features(tmp_path / "run", pictures(2), cache=tmp_path)
    assert found.mean.tobytes() == features(model, pictures(2), cache=tmp_path / "b").mean.tobytes()
    assert isinstance(open_model(tmp_path / "mae"), DEXVisionTransformer)
    assert type(open_model(tmp_path / "dense")) is VisionTransformer
    about = TaskDescription("made", "classification", ("sound", "ill"), ("X-ray",))
    TaskModel(MaskedAutoencoder.from_pretrained(tmp_path / "dense").encoder, about).save_pretrained(tmp_path / "tuned")
    assert type(open_model(tmp_path / "tuned")) is VisionTransformer
    with pytest.raises(FeaturesError, match="expected weights beside it"):
        open_model("vit_tiny_patch16_224")
    with pytest.raises(FeaturesError, match="no_such: expected a folder"):
        open_model("no_such")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        open_model("vit_tiny_patch16_224", tmp_path / "none.pth")


def test_weights_of_a_file_are_loaded_and_others_refused(tmp_path):
    one = timm.create_model("test_vit", num_classes=5)
    torch.save({"model": one.state_dict()}, tmp_path / "vit.pth")
    loaded = open_model("test_vit", tmp_path / "vit.pth")
    assert torch.equal(loaded.blocks[0].mlp.fc1.weight, one.blocks[0].mlp.fc1.weight)
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    loaded = open_model("test_resnet", tmp_path / "net.pth")
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(ModelFileError, match="does not fit"):
        open_model("test_resnet", tmp_path / "vit.pth")
    drawn = [open_model("test_vit", "random", seed=seed).blocks[0].mlp.fc1.weight for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
