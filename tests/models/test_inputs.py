"""What a saved model says of its images, to us and to timm, and the view that `preprocess` makes."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer

from dexcore.data.feed.augment import CHANNEL_STATISTICS, to_tensor
from dexcore.data.modality import Modality
from dexcore.data.synthetic import SyntheticMVU
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, ModelFileError
from dexcore.models.inputs import described_inputs, slices_of
from dexcore.nn import set_mode
from dexcore.view import center

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
RUN = {"input_size": (3, 32, 32), "interpolation": "box", "crop_pct": 1.0, "crop_mode": "center"}
METHODS = {"CT": ["hu_window"], "PET": ["suv_window", "percentile_zscore_minmax"]}


def dex(**kwargs):
    return DEXVisionTransformer(**{**TINY, "num_experts": [4, 3], "top_k": [1, 2], "num_classes": 0, **kwargs})


def autoencoder(encoder=None, statistics="gray"):
    model = MaskedAutoencoder(encoder or dex(), decoder_dim=24, decoder_depth=1, decoder_heads=3)
    model.set_preprocessing(*CHANNEL_STATISTICS[statistics], METHODS)
    return model


@pytest.fixture
def saved(tmp_path):
    autoencoder().save_pretrained(tmp_path)
    return tmp_path


def opened_by_timm(folder, **kwargs):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


def picture(dtype, channels=None, height=50, width=61):
    pixels = np.random.default_rng(0).random((height, width, channels) if channels else (height, width))
    if dtype == np.float32:
        return pixels.astype(np.float32)
    return (pixels * np.iinfo(dtype).max).round().astype(dtype)


@pytest.mark.parametrize("statistics", ["gray", "imagenet"])
def test_a_loaded_model_tells_timm_how_its_images_were_made(tmp_path, statistics):
    autoencoder(statistics=statistics).save_pretrained(tmp_path)
    mean, std = CHANNEL_STATISTICS[statistics]
    for kind in (MaskedAutoencoder, DEXVisionTransformer):
        model = kind.from_pretrained(tmp_path)
        assert resolve_model_data_config(model.vision_transformer) == RUN | {"mean": mean, "std": std}
        assert model.normalization == METHODS
    told = resolve_model_data_config(opened_by_timm(tmp_path))
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()} == RUN | {
        "mean": mean,
        "std": std,
    }


def test_a_loaded_model_that_is_resized_tells_timm_its_new_size_and_classes(saved):
    model = DEXVisionTransformer.from_pretrained(saved)
    before = resolve_model_data_config(model)
    model.set_input_size(48)
    model.reset_classifier(5)
    assert resolve_model_data_config(model) == before | {"input_size": (3, 48, 48)}
    assert (model.pretrained_cfg["input_size"], model.pretrained_cfg["num_classes"]) == ((3, 48, 48), 5)
    assert model.normalization == METHODS
    assert model.preprocess(picture(np.uint8)).shape == (3, 48, 48)


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_preprocess_is_the_evaluation_view_of_the_data_to_the_bit(saved, dtype, channels):
    image = picture(dtype, channels)
    expected = to_tensor(center(image, 32), "gray")
    models = [kind.from_pretrained(saved) for kind in (MaskedAutoencoder, DEXVisionTransformer)]
    for model in [*models, opened_by_timm(saved)]:
        assert torch.equal(model.preprocess(image), expected)


def test_a_tensors_channels_come_first_an_arrays_last_and_several_make_a_batch(saved):
    model = DEXVisionTransformer.from_pretrained(saved)
    gray, color = picture(np.float32), picture(np.float32, 3)
    views = {True: model.preprocess(gray), False: model.preprocess(color)}
    channels_first = torch.from_numpy(color).permute(2, 0, 1)
    for same, is_gray in (
        (gray[..., None], True),
        (torch.from_numpy(gray), True),
        (torch.from_numpy(gray)[None], True),
        (gray.astype(np.float64), True),
        (channels_first, False),
        (torch.from_numpy(color).double().permute(2, 0, 1), False),
    ):
        assert torch.equal(model.preprocess(same), views[is_gray])
    batch = torch.stack([views[False]] * 2)
    for several in (np.stack([color] * 2), torch.stack([channels_first] * 2), [color, channels_first]):
        assert torch.equal(model.preprocess(several), batch)
    of_two_sizes = model.preprocess([gray, picture(np.uint8, 3, 90, 40)])
    assert of_two_sizes.shape == (2, 3, 32, 32)
    assert torch.equal(of_two_sizes[0], views[True])


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (picture(np.float32) * 255, ValueError, r"image must lie in \[0, 1\], got .* to 25"),
        (np.full((9, 9), np.nan, np.float32), ValueError, r"image must lie in \[0, 1\], got nan"),
        (picture(np.uint8).astype(np.int64), ValueError, "dtype int64, expected uint8, uint16, or float32"),
        (picture(np.uint8, 3).transpose(2, 0, 1), ValueError, r"an array's channels come last.*got 3 x 50 x 61"),
        (torch.from_numpy(picture(np.float32, 3)), ValueError, r"a tensor's channels come first.*got 50 x 61 x 3"),
        (picture(np.uint8, 4), ValueError, "with 1 or 3 channels, got 50 x 61 x 4"),
        (np.zeros((0, 4), np.uint8), ValueError, "got 0 x 4"),
        ([], ValueError, "images must be at least one"),
        ("image.png", TypeError, "image must be a numpy array, a tensor or a PIL image, got str"),
    ],
)
def test_what_is_no_image_is_refused_by_what_was_expected(image, error, words):
    with pytest.raises(error, match=words):
        autoencoder().preprocess(image)


def test_a_model_that_does_not_say_how_its_images_were_made_prepares_none():
    image = picture(np.uint8)
    with pytest.raises(ValueError, match=r"does not say that it saw it: .*None.*set_preprocessing"):
        dex().preprocess(image)
    by_name = timm.create_model("dex_vit_tiny_patch16_224", num_experts=2, depth=1)
    with pytest.raises(ValueError, match=r"'bicubic'.*create_transform"):
        by_name.preprocess(image)
    with pytest.raises(ValueError, match="square images, the model takes 3 x 32 x 48"):
        autoencoder(dex(img_size=(32, 48))).preprocess(image)
    gray = dex(in_chans=1)
    gray.set_preprocessing([0.4], [0.2])
    assert torch.equal(gray.preprocess(image), to_tensor(center(image, 32))[:1] * 0 + view_of(image, 0.4, 0.2))


def test_a_model_of_one_channel_sees_a_colour_image_in_gray_and_one_of_five_its_own():
    gray, color = dex(in_chans=1), picture(np.uint8, 3)
    gray.set_preprocessing([0.4], [0.2])
    luma = np.asarray(Image.fromarray(color).convert("L"))  # rounded to whole numbers
    assert (gray.preprocess(color) - gray.preprocess(luma)).abs().max() < 1.1 / 255 / 0.2
    assert torch.equal(gray.preprocess(Image.fromarray(color)), gray.preprocess(color))
    five, image = dex(in_chans=5), picture(np.uint8, 5)
    five.set_preprocessing([0.4], [0.2])
    planes = [gray.preprocess(plane)[0] for plane in np.moveaxis(image, 2, 0)]
    assert torch.equal(five.preprocess(image), torch.stack(planes))
    with pytest.raises(ValueError, match="image has 3 channels, expected 5"):
        five.preprocess(color)
    with pytest.raises(ValueError, match=r"with 1, 3 or 5 channels, got 5 x 50 x 61"):
        five.preprocess(np.moveaxis(image, 2, 0))


def view_of(image, mean, std):
    return torch.from_numpy((center(image, 32) - np.float32(mean)) / np.float32(std))[None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5] * 2, [0.2] * 3), "mean must be one number or 3, one a channel, got 2"),
        (([0.5] * 3, [0.2, 0.0, 0.2]), "std must be above 0"),
        (([0.5] * 3, [float("nan")] * 3), "std must be below"),
        (([0.5] * 3, [0.2] * 3, {"CT": [3]}), "normalization of CT must be a list of names, got 3"),
        (([0.5] * 3, [0.2] * 3, {}, 5), "slices must be 1, or 3 as the channels, got 5"),
        (([0.5] * 3, [0.2] * 3, {}, 2), "slices must be odd, got 2"),
        (([0.5] * 3, [0.2] * 3, {}, "3"), "slices must be a whole number"),
    ],
)
def test_a_view_that_cannot_be_is_refused(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        dex().set_preprocessing(*arguments)


def test_a_model_of_slices_says_so_wherever_it_goes_and_with_other_channels_no_more(tmp_path):
    model = MaskedAutoencoder(dex(in_chans=5), decoder_dim=24, decoder_depth=1, decoder_heads=3)
    model.set_preprocessing([0.4], [0.2], METHODS, slices=5)
    model.save_pretrained(tmp_path / "slices")
    for opened in (
        MaskedAutoencoder.from_pretrained(tmp_path / "slices").encoder,
        DEXVisionTransformer.from_pretrained(tmp_path / "slices", img_size=48, num_classes=3),
    ):
        assert slices_of(opened) == 5
    image = picture(np.uint8)
    assert torch.equal(opened.preprocess(image), opened.preprocess(np.repeat(image[..., None], 5, axis=2)))
    opened.save_pretrained(tmp_path / "again")
    single = DEXVisionTransformer.from_pretrained(tmp_path / "slices", in_chans=1)
    assert slices_of(single) == 1
    assert "slices" not in described_inputs(single)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["slices"] == 5
    for wrong, words in ((4, "slices must be odd, got 4"), (3, "slices must be 1, or 5 as the channels, got 3")):
        (tmp_path / "again" / "config.json").write_text(json.dumps(config | {"slices": wrong}))
        with pytest.raises(ModelFileError, match=rf"config\.json: {words}"):
            DEXVisionTransformer.from_pretrained(tmp_path / "again")


ENCODERS = [
    {"num_classes": 5, "reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
    {"class_token": False, "global_pool": "avg", "pool": "mean"},
    {"qk_norm": True, "qkv_bias": False, "pre_norm": True, "tau": 0.7, "align": "mse", "keep": "z"},
    {"act_layer": "gelu_tanh", "norm_layer": lambda dim, **kwargs: torch.nn.LayerNorm(dim, eps=1e-3, **kwargs)},
    {"mlp_ratio": 2.3, "img_size": (32, 48), "dynamic_img_size": True, "in_chans": 1},
]


@pytest.mark.parametrize("arguments", ENCODERS)
@pytest.mark.parametrize("whole", [True, False], ids=["autoencoder", "encoder"])
def test_timm_opens_the_encoder_of_any_saved_model_bit_by_bit(tmp_path, arguments, whole):
    encoder = dex(**arguments).eval()
    model = MaskedAutoencoder(encoder, 24, 1, 3, init_encoder=False) if whole else encoder
    model.save_pretrained(tmp_path)
    again = opened_by_timm(tmp_path)
    assert type(again) is DEXVisionTransformer
    for (name, tensor), (other, expected) in zip(again.state_dict().items(), encoder.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, expected), name
    images = torch.randn(2, encoder.in_chans, *encoder.patch_embed.img_size)
    with torch.no_grad():
        assert torch.equal(again(images), encoder(images))
    settings = [(m.num_experts, m.top_k, m.tau, m.align, m.keep) for m in dex_layers(again)]
    assert settings == [(m.num_experts, m.top_k, m.tau, m.align, m.keep) for m in dex_layers(encoder)]


def dex_layers(model):
    return [block.mlp for block in model.blocks]


def test_a_registered_model_keeps_its_name_and_its_mode_with_timm(tmp_path):
    model = timm.create_model("dex_vit_tiny_patch16_224", depth=1, num_experts=2, img_size=64, num_classes=3)
    set_mode(model, "director")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "dex_vit_tiny_patch16_224"
    again = opened_by_timm(tmp_path)
    assert again.blocks[0].mlp.mode == "director"
    assert resolve_model_data_config(again)["interpolation"] == "bicubic"  # what it was created with


OVERRIDES = [{"num_classes": 5}, {"in_chans": 1}, {"in_chans": 4}, {"img_size": 48}, {"img_size": (48, 32)}]


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_overrides_adapt_the_weights_as_timm_does(saved, overrides):
    ours, theirs = DEXVisionTransformer.from_pretrained(saved, **overrides), opened_by_timm(saved, **overrides)
    state = ours.state_dict()
    for name, expected in theirs.state_dict().items():
        assert state[name].shape == expected.shape, name
        assert name.startswith("head.") or torch.equal(state[name], expected), name
    side = {"height": 48 if "img_size" in overrides else 32, "width": 48 if overrides.get("img_size") == 48 else 32}
    images = torch.randn(2, overrides.get("in_chans", 3), *side.values())
    assert ours(images).shape == (2, overrides.get("num_classes", 16))
    told = resolve_model_data_config(ours)
    assert told["input_size"] == tuple(images.shape[1:])
    assert len(told["mean"]) == len(told["std"]) == images.shape[1]


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_an_adapted_model_is_saved_as_it_is_now(saved, overrides, tmp_path):
    model = DEXVisionTransformer.from_pretrained(saved, **overrides)
    model.save_pretrained(tmp_path / "again")
    again = DEXVisionTransformer.from_pretrained(tmp_path / "again")
    images = torch.randn(1, model.in_chans, *model.patch_embed.img_size)
    assert torch.equal(again(images), model(images))
    assert again.pretrained_cfg == model.pretrained_cfg
    assert again.normalization == METHODS


def test_a_classifier_of_the_same_size_stays(tmp_path):
    model = dex(num_classes=5)
    model.save_pretrained(tmp_path)
    assert torch.equal(DEXVisionTransformer.from_pretrained(tmp_path, num_classes=5).head.weight, model.head.weight)
    assert DEXVisionTransformer.from_pretrained(tmp_path, num_classes=0).num_classes == 0


def test_an_autoencoder_takes_another_size_and_refuses_classes_and_channels_by_name(saved):
    model, big = MaskedAutoencoder.from_pretrained(saved), MaskedAutoencoder.from_pretrained(saved, img_size=(48, 32))
    assert (big.num_patches, big.num_visible, big.training) == (24, 6, False)
    assert big(torch.randn(2, 3, 48, 32)).loss.isfinite()
    assert big.vision_transformer.pretrained_cfg["input_size"] == (3, 48, 32)
    same = MaskedAutoencoder.from_pretrained(saved, img_size=32)
    images, noise = torch.randn(2, 3, 32, 32), torch.rand(2, 16)
    assert torch.equal(same(images, noise).pred, model(images, noise).pred)
    assert {n for n, p in big.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    for name, value in (("num_classes", 5), ("in_chans", 1)):
        with pytest.raises(ValueError, match=f"{name} must be None, got {value}.*DEXVisionTransformer.from_pretrained"):
            MaskedAutoencoder.from_pretrained(saved, **{name: value})


@pytest.mark.parametrize("overrides", [{"num_classes": -1}, {"num_classes": 2.5}, {"in_chans": 0}, {"img_size": "x"}])
def test_an_override_that_is_no_size_is_refused_by_its_name(saved, overrides):
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(overrides))} must be"):
        DEXVisionTransformer.from_pretrained(saved, **overrides)


def test_a_dense_autoencoder_also_says_how_its_images_were_made(tmp_path):
    autoencoder(VisionTransformer(**TINY, num_classes=0)).save_pretrained(tmp_path)
    again = MaskedAutoencoder.from_pretrained(tmp_path)
    assert resolve_model_data_config(again.encoder)["interpolation"] == "box"
    image = picture(np.uint8)
    assert torch.equal(again.preprocess(image), to_tensor(center(image, 32), "gray"))


def test_timm_saves_a_loaded_encoder_as_it_does_to_push_it_and_opens_it_again(saved, tmp_path):
    model = DEXVisionTransformer.from_pretrained(saved)
    save_for_hf(model, tmp_path / "hub", safe_serialization=True)
    again = opened_by_timm(tmp_path / "hub")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert torch.equal(again.preprocess(picture(np.uint8)), model.preprocess(picture(np.uint8)))
    with pytest.raises(
        ModelFileError, match=r'written by timm.*timm\.create_model\("local-dir:.*hub", pretrained=True'
    ):
        DEXVisionTransformer.from_pretrained(tmp_path / "hub")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pretrained_cfg", 3, "pretrained_cfg must be an object, got 3"),
        ("pretrained_cfg", {"mean": "x"}, "mean must be a list of numbers"),
        ("pretrained_cfg", {"mean": [0.1, 0.2]}, "mean must be one number or 3"),
        ("pretrained_cfg", {"std": [0, 1, 1]}, "std must be above 0"),
        ("pretrained_cfg", {"std": [10**400] * 3}, "std must be below"),
        ("pretrained_cfg", {"crop_pct": 2}, "crop_pct must be above 0 and at most 1"),
        ("pretrained_cfg", {"interpolation": ["box"]}, "interpolation must be a name"),
        ("normalization", ["CT"], "normalization must be an object"),
        ("normalization", {"CT": "hu_window"}, "normalization of CT must be a list of names"),
    ],
)
def test_a_spoilt_word_on_the_images_is_refused_with_the_file(saved, key, value, words):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelFileError, match=rf"config\.json: {words}"):
        DEXVisionTransformer.from_pretrained(saved)


def test_a_file_cannot_name_another_architecture_or_a_place_to_load_from(saved):
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config |= {"architecture": "resnet50"}
    config["pretrained_cfg"] |= {"url": "http://localhost/x", "file": "/etc/passwd", "source": "hf-hub"}
    path.write_text(json.dumps(config))
    cfg = DEXVisionTransformer.from_pretrained(saved).pretrained_cfg
    assert cfg["architecture"] == "dex_vit"
    assert not {"url", "file", "source"} & cfg.keys()


@pytest.mark.parametrize(("shrink", "mean", "largest"), [(2, 5.0, 128.0), (3, 0.4, 0.7), (4, 2.0, 40.0)])
def test_timms_box_resize_differs_from_the_runs_view_as_the_docs_say(saved, shrink, mean, largest):
    """In levels of 8 bits, over images of all modalities; at 3 both average areas, and PIL rounds."""
    model = DEXVisionTransformer.from_pretrained(saved)
    transform = create_transform(**resolve_model_data_config(model))
    synthetic = SyntheticMVU(tuple(Modality), size=32 * shrink, seed=0)
    differences = []
    for index in range(20):
        image = (synthetic.sample(index).image * 255).round().astype(np.uint8)
        theirs = transform(Image.fromarray(image).convert("RGB"))
        differences.append((theirs - model.preprocess(image)).abs() * 0.225 * 255)
    levels = torch.stack(differences)
    assert mean / 10 < levels.mean() < mean
    assert levels.max() < largest
