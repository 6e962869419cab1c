"""From DEX layers back to plain timm models: the directors alone, or the experts' average."""

import json
import pickle
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from timm.layers import LayerNorm
from timm.models import save_for_hf
from timm.models.vision_transformer import Block, VisionTransformer

from assertions import assert_close
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.nn import DEXBlock, set_mode, update_directors
from dexcore.nn.upcycle import collapse, upcycle
from nn.tiny import IMAGES, TINY, dense, layers, shake


def trained(model):
    """Shaken weights, and directors that followed."""
    for layer in layers(shake(model)):
        layer.router.activation_frequency.uniform_(0.1, 1)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: DEXVisionTransformer(**TINY, num_experts=3),
        lambda: VisionTransformer(**TINY, block_fn=partial(DEXBlock, num_experts=3)),
        lambda: upcycle(dense(), num_experts=3),
    ],
)
def test_a_collapsed_model_is_plain_timm_and_equals_the_director(make):
    model = trained(make())
    plain = collapse(model)
    assert len(layers(model)) == 2, "the model itself stays as it was"
    assert {type(m).__module__.partition(".")[0] for m in plain.modules()} <= {"timm", "torch"}
    assert type(plain) is VisionTransformer
    assert {type(block) for block in plain.blocks} == {Block}
    assert all(parameter.requires_grad for parameter in plain.parameters())
    shared = {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared
    fresh = VisionTransformer(**TINY)
    fresh.load_state_dict(plain.state_dict())
    set_mode(model, "director")
    model.eval(), plain.eval(), fresh.eval()
    assert torch.equal(plain(IMAGES), model(IMAGES))
    assert torch.equal(fresh(IMAGES), model(IMAGES))


_OPEN = """
import json, pickle, sys, timm, torch
from pathlib import Path

folder, threads = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)  # how BLAS rounds depends on it
found = {}
for file in folder.glob("*.pt"):
    images, expected = torch.load(file)
    pickled = file.with_suffix(".pkl")
    if pickled.exists():
        model = pickle.loads(pickled.read_bytes())
    else:
        model = timm.create_model(f"local-dir:{file.with_suffix('')}", pretrained=True).eval()
    found[file.stem] = torch.equal(model(images), expected), model.blocks[0].norm1.eps
print(json.dumps([found, "dexcore" in sys.modules]))
"""


@pytest.fixture(scope="module")
def collapsed():
    """Collapsed models by their names, and those of them that were saved and loaded before."""
    tiny = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    ways_in = {  # a size that timm does not have, and what timm would write down
        "ours": timm.create_model("dex_vit_base_patch16_256", **tiny, num_experts=3, num_classes=5, align="mse"),
        "block": timm.create_model("vit_tiny_patch16_224", **TINY, block_fn=partial(DEXBlock, num_experts=3)),
        "upcycled": upcycle(timm.create_model("vit_tiny_patch16_224", **TINY), num_experts=3),
    }
    return {name: collapse(trained(model)).eval() for name, model in ways_in.items()}


@pytest.fixture(scope="module")
def loaded_and_collapsed(tmp_path_factory):
    """Of any size, of a registered one, and the encoder of an autoencoder."""
    folder = tmp_path_factory.mktemp("dex")
    saved = {
        "any": DEXVisionTransformer(**TINY, num_experts=3),
        "registered": timm.create_model("dex_vit_tiny_patch16_224", depth=2, num_experts=3, num_classes=5),
        "loaded": timm.create_model("dex_vit_base_patch16_256", depth=1, embed_dim=16, num_heads=2, num_experts=3),
        "pooled": DEXVisionTransformer(**{**TINY, "num_classes": 0}, num_experts=3, global_pool="avg", pool="mean"),
        "autoencoder": MaskedAutoencoder(DEXVisionTransformer(**TINY, num_experts=3), 24, 1, 3),
    }
    plain = {}
    for name, model in saved.items():
        trained(model).save_pretrained(folder / name)
        plain[name] = collapse(type(model).from_pretrained(folder / name))
    return plain | {"autoencoder": plain["autoencoder"].encoder.eval()}


@pytest.fixture(scope="module")
def opened_by_timm_alone(collapsed, loaded_and_collapsed, tmp_path_factory):
    """Whether each computes the same in a process without dexcore, and the epsilon of its norms there; "pickled": not
    by timm's file."""
    folder = tmp_path_factory.mktemp("plain")
    models = collapsed | loaded_and_collapsed
    for name, model in models.items():
        save_for_hf(model, folder / name)
    model = DEXVisionTransformer(**TINY, num_experts=3)
    model(IMAGES)
    models["pickled"] = collapse(model)
    (folder / "pickled.pkl").write_bytes(pickle.dumps(models["pickled"]))
    for name, model in models.items():
        images = torch.randn(1, 3, *model.patch_embed.img_size)
        torch.save((images, model(images)), folder / f"{name}.pt")
    command = [sys.executable, "-c", _OPEN, str(folder), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, with_dexcore = json.loads(done.stdout)
    assert not with_dexcore
    assert found.keys() == models.keys()
    return found


def test_what_timm_saves_of_a_collapsed_model_timm_alone_loads(collapsed, opened_by_timm_alone):
    assert all(opened_by_timm_alone[name][0] for name in collapsed), opened_by_timm_alone


def test_what_timm_saves_of_a_loaded_and_collapsed_model_timm_alone_loads(loaded_and_collapsed, opened_by_timm_alone):
    assert all(opened_by_timm_alone[name] == [True, 1e-6] for name in loaded_and_collapsed), opened_by_timm_alone


def test_a_collapsed_model_opens_without_dexcore(opened_by_timm_alone):
    assert opened_by_timm_alone["pickled"][0]


def test_a_norms_epsilon_that_timms_file_cannot_say_is_refused_and_not_lost(tmp_path):
    model = trained(DEXVisionTransformer(**TINY, num_experts=3, norm_layer=partial(LayerNorm, eps=1e-5)))
    model.save_pretrained(tmp_path / "model")
    plain = collapse(DEXVisionTransformer.from_pretrained(tmp_path / "model"))
    assert plain.blocks[0].norm1.eps == 1e-5
    with pytest.raises(ValueError, match="'norm_layer' is not serializable"):
        save_for_hf(plain, tmp_path / "plain")


def test_the_average_is_the_experts_weighted_mean():
    model = shake(DEXVisionTransformer(**TINY, num_experts=[3, 2])).double()
    weights = [[1.0, 2.0, 5.0], torch.tensor([3, 1])]
    plain = collapse(model, to="average", weights=weights)
    assert type(plain) is VisionTransformer
    for block, layer, shares in zip(plain.blocks, layers(model), ([0.125, 0.25, 0.625], [0.75, 0.25]), strict=True):
        for mean, (experts, director) in zip(block.mlp.parameters(), layer.expert_director_pairs(), strict=True):
            assert mean.requires_grad
            assert_close(mean.detach(), sum(w * e for w, e in zip(shares, experts.detach(), strict=True)))
            assert not torch.equal(mean, director)
    assert torch.equal(plain.head.weight, model.head.weight)


def test_all_weight_on_one_expert_gives_that_expert_to_the_bit():
    model = shake(DEXVisionTransformer(**TINY, num_experts=3, dtype=torch.bfloat16))
    plain = collapse(model, "average", torch.tensor([[0, 0, 2.0], [0, 0, 2.0]]))
    for block, layer in zip(plain.blocks, layers(model), strict=True):
        assert block.mlp.fc1.weight.dtype == torch.bfloat16
        assert torch.equal(block.mlp.fc1.weight, layer.experts.fc1.weight[2])
        assert torch.equal(block.mlp.fc2.bias, layer.experts.fc2.bias[2])


def test_without_weights_the_average_follows_the_experts_running_use():
    model = shake(DEXVisionTransformer(**TINY, num_experts=3))
    with pytest.raises(ValueError, match=r"no use of experts was counted yet in DEX layers \[0, 1\]: give weights"):
        collapse(model, to="average")
    model(IMAGES)
    update_directors(model, momentum=1.0)
    use = [layer.router.activation_frequency for layer in layers(model)]
    assert all(0 < frequency.count_nonzero() for frequency in use)
    given, running = collapse(model, "average", use), collapse(model, "average")
    assert torch.equal(given(IMAGES), running(IMAGES))
    assert not torch.equal(given(IMAGES), collapse(model, "average", [[1, 1, 1]] * 2)(IMAGES))


def test_the_average_of_copies_is_the_dense_model():
    model = dense().eval()
    expected = model(IMAGES)
    plain = collapse(upcycle(model, num_experts=3), "average", [[0.2, 0.3, 0.5]] * 2)
    assert_close(plain(IMAGES), expected.double())


@pytest.mark.parametrize(
    ("to", "weights", "words"),
    [
        ("director", [[1, 1, 1]] * 2, "weights are for to=\"average\", got to='director'"),
        ("average", [[1, 1, 1]], "weights must have one row for each of the 2 DEX layers, got 1"),
        ("average", [[1, 1, 1], [1, 1]], r"weights\[1\] must be \[3\], one an expert, got \[2\]"),
        ("average", torch.ones(2), r"weights\[0\] must be \[3\], one an expert, got \[\]"),
        ("average", [[1, 1, 1], [0, 0, 0]], r"weights\[1\] must be finite, at least 0 and not all 0"),
        ("average", [[1, 1, 1], [2, -1, 0]], r"weights\[1\] must be finite, at least 0"),
        ("average", [[float("nan"), 1, 1], [1, 1, 1]], r"weights\[0\] must be finite"),
        ("average", ["abc", "abc"], r"weights\[0\] must hold numbers"),
        ("average", [None, None], r"weights\[0\] must hold numbers"),
        ("average", 3, "weights must be one row for each DEX layer"),
        ("average", torch.ones(()), r"weights must be a dense tensor \[L, R\] with data"),
        ("average", torch.ones(2, 3, device="meta"), "weights must be a dense tensor"),
        ("average", torch.ones(2, 3).to_sparse(), "weights must be a dense tensor"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(to, weights, words):
    model = DEXVisionTransformer(**TINY, num_experts=3)
    with pytest.raises((ValueError, TypeError), match=words):
        collapse(model, to, weights)


def test_upcycling_and_collapsing_gives_the_model_back():
    model = dense()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = collapse(upcycle(model)).state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_a_masked_autoencoder_collapses_to_a_dense_one():
    model = MaskedAutoencoder(DEXVisionTransformer(**TINY, num_experts=3), 24, 1, 3)
    trained(model)
    plain = collapse(model)
    assert type(plain) is MaskedAutoencoder, "dexcore's; what is timm's is inside"
    assert {type(m).__module__.partition(".")[0] for m in plain.encoder.modules()} <= {"timm", "torch"}
    noise = torch.rand(3, 16)
    set_mode(model, "director")
    assert torch.equal(plain(IMAGES, noise).pred, model(IMAGES, noise).pred)
    assert not any(word in name for name in plain.state_dict() for word in ("expert", "director", "router"))


def test_what_cannot_be_collapsed_is_refused_by_name():
    with pytest.raises(ValueError, match="VisionTransformer has no DEX layer"):
        collapse(dense())
    with pytest.raises(ValueError, match="to must be one of director, average, got 'experts'"):
        collapse(DEXVisionTransformer(**TINY), to="experts")
