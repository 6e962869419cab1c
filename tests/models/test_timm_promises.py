"""What timm's own tests ask of a model, of every registered model and of stock timm models through the three ways in.

timm's tests (tests/test_models.py of its repository) are the oracle. Two things they ask cannot be: a gradient for
every parameter (a director has none), and TorchScript. Both have a test here that says what holds instead.
"""

from functools import partial

import pytest
import timm
import torch
from timm.models import FeatureInfo, group_parameters, save_for_hf
from timm.models._features import FeatureGetterNet
from timm.models._features_fx import create_feature_extractor
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from dexcore.nn import (
    DEXBlock,
    DEXMlp,
    aux_losses,
    collapse,
    param_groups,
    set_aux,
    set_mode,
    set_noise_std,
    upcycle,
    update_directors,
)

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}
REGISTERED = [
    "dex_vit_tiny_patch16_224",
    "dex_vit_small_patch16_224",
    "dex_vit_base_patch16_224",
    "dex_vit_base_patch16_256",
    "dex_vit_large_patch16_224",
    "dex_vit_huge_patch14_224",
]
STOCK = {  # and what the router sees in them
    "vit_tiny_patch16_224": "cls",
    "vit_small_patch32_224": "cls",
    "deit3_small_patch16_224": "cls",  # LayerScale, no position for the class token
    "vit_small_patch14_reg4_dinov2": "cls",  # registers
    "vit_medium_patch16_reg4_gap_256": "mean",  # registers, no class token
    "vit_base_patch16_siglip_224": "mean",  # attention pooling, no class token
}
WAYS = ("block_fn", "mlp_layer", "upcycle")
# One of each way; the stock models take turns, since all ways build the same model (the last test).
ENTRANCES = [("dex_vit_tiny_patch16_224", "registered"), *(("vit_tiny_patch16_224", way) for way in WAYS)]
CASES = [
    *ENTRANCES,
    *((name, "registered") for name in REGISTERED[1:]),
    *((name, WAYS[i % 3]) for i, name in enumerate(STOCK) if i),
]

every_model = pytest.mark.parametrize(("name", "way"), CASES)
every_way = pytest.mark.parametrize(("name", "way"), ENTRANCES)
every_way_of_the_factory = pytest.mark.parametrize(("name", "way"), ENTRANCES[:3])


@pytest.fixture(autouse=True)
def _one_thread():
    """For models as small as these a second thread costs more than it gives, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def arguments(way, pool="cls"):
    """What create_model needs to be told."""
    if way == "block_fn":
        return {"block_fn": partial(DEXBlock, num_experts=3, pool=pool)}
    if way == "mlp_layer":
        return {"mlp_layer": partial(DEXMlp, num_experts=3, pool=pool)}
    return {"num_experts": 3, "pool": pool} if way == "registered" else {}


def create(name, way, **kwargs):
    """A narrow and shallow one for small images, by timm's factory."""
    pool = kwargs.pop("pool", STOCK.get(name, "cls"))
    patch = int(name.split("patch")[1][:2])
    model = timm.create_model(name, **{**SMALL, "img_size": 4 * patch, **arguments(way, pool), **kwargs})
    if way == "upcycle":
        upcycle(model, num_experts=3, pool=pool)
    assert len(dex_layers(model)) == len(model.blocks)
    return model


def dex_layers(model):
    return [module for module in model.modules() if isinstance(module, DEXMlp)]


def images_for(model, count=2):
    """At the size the model was made for."""
    return torch.randn(count, model.in_chans, *model.patch_embed.img_size)


def vary(model):
    """Experts that differ and routers that choose, so that a wrong expert would show."""
    for layer in dex_layers(model):
        for parameter in [*layer.experts.parameters(), *layer.router.parameters()]:
            nn.init.normal_(parameter, std=0.3)
    return model


@every_model
@torch.no_grad()
def test_a_forward_is_finite_and_grad_checkpointing_changes_nothing(name, way):
    model = vary(create(name, way, num_classes=5)).eval()
    images = images_for(model)
    logits = model(images)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    model.set_grad_checkpointing()
    assert torch.equal(model(images), logits)


@every_model
def test_every_parameter_but_the_directors_gets_a_gradient(name, way):
    model = create(name, way, num_classes=42).train()
    images = images_for(model)
    logits = model(images)
    assert logits.shape == (2, 42)
    logits.mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if ".director." in name}
    model.zero_grad()
    set_mode(model, "director")
    model(images).mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if ".experts." in name or ".router." in name}


@every_model
@torch.no_grad()
def test_the_head_can_be_taken_off_and_exchanged(name, way):
    model = create(name, way, num_classes=7).eval()
    images = images_for(model)
    features = model.forward_features(images)
    assert features.shape[-1] == model.num_features == 24
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(images), pooled)
    if model.attn_pool is None:  # timm's own ViT cannot leave out attention pooling
        model.reset_classifier(0, "")
        assert torch.equal(model(images), model.fc_norm(features))
    model = create(name, way, num_classes=0).eval()
    assert model(images).shape == pooled.shape


@every_model
def test_its_configuration_names_the_first_convolution_and_the_classifier(name, way):
    model = create(name, way)
    config, state = model.default_cfg, model.state_dict()
    assert model.in_chans == config["input_size"][0]
    assert config["first_conv"] + ".weight" in state
    if config["num_classes"]:
        assert config["classifier"] + ".weight" in state


@every_model
@torch.no_grad()
def test_intermediates_have_the_announced_channels_and_sizes(name, way):
    model = vary(create(name, way)).eval()
    images = images_for(model, 1)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    final, maps = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images))
    assert len(maps) == len(info.channels()) == len(info.reduction()) == 3
    for feature, channels, reduction in zip(maps, info.channels(), info.reduction(), strict=True):
        assert feature.shape == (1, channels, *(pixels // reduction for pixels in images.shape[2:]))
        assert feature.isfinite().all()
    model.set_grad_checkpointing()
    assert torch.equal(model.forward_intermediates(images)[0], final)


@every_way
@torch.no_grad()
def test_features_only_gives_the_models_features_also_when_layers_were_pruned(name, way):
    model = vary(create(name, way)).eval()
    images = images_for(model)
    maps = model.forward_intermediates(images, intermediates_only=True)
    weights = model.state_dict()
    getter = FeatureGetterNet(model, out_indices=(0, 1))
    assert getter.feature_info.channels() == [24, 24]
    assert len(dex_layers(getter)) == 2
    assert all(torch.equal(got, want) for got, want in zip(getter(images), maps[:2], strict=True))
    for other in (64, 32):
        wrapped = timm.create_model(
            name, features_only=True, out_indices=(0, 2), img_size=other, **SMALL, **arguments(way)
        ).eval()
        if way == "upcycle":
            upcycle(wrapped, num_experts=3)
        assert len(dex_layers(wrapped)) == 3
        if other == 64:
            wrapped.model.load_state_dict(weights, strict=False)  # norm and head were left out
            assert all(torch.equal(got, want) for got, want in zip(wrapped(images), maps[::2], strict=True))
        else:
            assert [feature.shape for feature in wrapped(images[..., :32, :32])] == [(2, 24, 2, 2)] * 2


@every_way
def test_traced_with_fx_it_computes_the_same_and_trains(name, way):
    model = vary(create(name, way, num_classes=5))
    images = images_for(model)
    traced = create_feature_extractor(model, {"head": "logits"})
    assert len(dex_layers(traced)) == 3
    for mode in (True, False):
        model.train(mode), traced.train(mode)
        assert torch.equal(traced(images)["logits"], model(images))
    traced.train()
    (traced(images)["logits"].mean() + aux_losses(traced).align).backward()
    for parameter_name, parameter in traced.named_parameters():
        assert (parameter.grad is None) == (".director." in parameter_name), parameter_name
    update_directors(traced, momentum=0.9)


@every_way_of_the_factory
def test_features_traced_with_fx_come_out_of_timms_factory(name, way):
    kwargs = {"features_only": True, "feature_cls": "fx", "out_indices": (0, 2), **SMALL, **arguments(way)}
    features = timm.create_model(name, img_size=64, **kwargs)(torch.randn(2, 3, 64, 64))
    assert [feature.shape for feature in features] == [(2, 17, 24)] * 2


def test_plain_fx_takes_the_layer_as_a_leaf():
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, qualified_name):
            return isinstance(module, DEXMlp) or super().is_leaf_module(module, qualified_name)

    model = create("dex_vit_tiny_patch16_224", "registered").eval()
    images = images_for(model)
    assert torch.equal(fx.GraphModule(model, Tracer().trace(model))(images), model(images))
    with pytest.raises(fx.proxy.TraceError):
        fx.symbolic_trace(model)


@every_way
def test_torchscript_is_refused_and_takes_the_collapsed_model(name, way):
    model = create(name, way).eval()
    for _ in range(2):
        with pytest.raises(NotImplementedError, match=r"torch\.jit\.script cannot compile a DEX layer.*collapse"):
            torch.jit.script(model)
    plain, images = collapse(model), images_for(model)
    assert torch.equal(torch.jit.script(plain)(images), plain(images))


@every_way
@torch.no_grad()
def test_a_trace_without_gradients_holds_for_other_images(name, way):
    model = vary(create(name, way)).eval()
    traced = torch.jit.trace(model, images_for(model))
    images = images_for(model, 5)
    assert torch.equal(traced(images), model(images))


@every_way
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_with_gradients_is_refused_and_leaves_no_trace(name, way):
    model = vary(create(name, way)).eval()
    images = images_for(model)
    with pytest.raises(
        NotImplementedError, match=r"^torch\.jit\.trace .*dexcore\.ops\.route.*under torch\.no_grad"
    ) as info:
        torch.jit.trace(model, images)
    assert len(str(info.value)) < 300
    assert not torch.jit.is_tracing()
    assert torch.equal(torch.jit.trace(model.requires_grad_(False), images)(images), model(images))


OPTIONS = [
    ({"img_size": 96}, (96, 96)),
    ({"dynamic_img_size": True, "img_size": 64}, (48, 96)),
    ({"dynamic_img_size": True, "dynamic_img_pad": True, "img_size": 64}, (50, 90)),
    ({"in_chans": 1}, (64, 64)),
    ({"reg_tokens": 4}, (64, 64)),
    ({"class_token": False, "global_pool": "avg", "pool": "mean"}, (64, 64)),
    ({"class_token": False, "reg_tokens": 2, "global_pool": "map", "pool": "mean"}, (64, 64)),
    ({"pos_embed": "none"}, (64, 64)),
    ({"pre_norm": True, "qk_norm": True, "init_values": 1e-5}, (64, 64)),
    ({"drop_path_rate": 0.1, "pos_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_rate": 0.1}, (64, 64)),
    ({"patch_drop_rate": 0.5, "img_size": 64}, (64, 64)),
]


@every_way
@pytest.mark.parametrize(("options", "size"), OPTIONS)
def test_timms_options_work_by_every_way_in(name, way, options, size):
    model = create(name, way, num_classes=5, **options)
    images = torch.randn(2, options.get("in_chans", 3), *size)
    logits = model(images)
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(layer.experts.fc2.weight.grad.abs().sum() > 0 for layer in dex_layers(model))


@every_way
def test_its_input_size_can_be_changed_by_every_way_in(name, way):
    model = create(name, way, num_classes=5)
    model.set_input_size(img_size=(64, 96), patch_size=8)
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 5)


@every_model
def test_a_saved_model_opens_through_timm_bit_by_bit(name, way, tmp_path):
    model = vary(create(name, way, num_classes=5)).eval()
    # What JSON cannot say is left out and said again. An upcycled model is one with a DEX mlp_layer.
    left_out = {way: None} if way in ("block_fn", "mlp_layer") else None
    said_again = arguments("mlp_layer" if way == "upcycle" else way, STOCK.get(name, "cls"))
    save_for_hf(model, tmp_path, model_args=left_out, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **said_again).eval()
    images = images_for(model)
    assert torch.equal(again(images), model(images))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    for classes in (7, 0):
        gray = timm.create_model(
            f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=classes, **said_again
        ).eval()
        assert torch.equal(gray.patch_embed.proj.weight, model.patch_embed.proj.weight.sum(1, keepdim=True))
        assert gray(images[:, :1]).shape == (2, classes or gray.head_hidden_size)


@every_way
@torch.no_grad()
def test_a_model_saved_in_director_mode_opens_in_it(name, way, tmp_path):
    model = vary(create(name, way, num_classes=5)).eval()
    images = images_for(model)
    by_experts = model(images)
    set_mode(model, "director")
    left_out = {way: None} if way in ("block_fn", "mlp_layer") else None
    said_again = {}
    if way != "registered":  # a stock model's layers are said again, and with them their mode
        layer, factory = next(iter(arguments("mlp_layer" if way == "upcycle" else way).items()))
        said_again = {layer: partial(factory, mode="director")}
    save_for_hf(model, tmp_path, model_args=left_out, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **said_again).eval()
    assert torch.equal(again(images), model(images))
    assert not torch.equal(again(images), by_experts)
    assert all(p.requires_grad == (".mlp." not in n or ".director." in n) for n, p in again.named_parameters())
    set_mode(again, "experts")
    assert torch.equal(again(images), by_experts)


@pytest.mark.parametrize("classes", [SMALL.get("num_classes", 1000), 7])
@pytest.mark.parametrize("way", ["block_fn", "mlp_layer"])
def test_weights_of_a_dense_model_are_not_taken_for_a_dex_models(way, classes, tmp_path):
    dense = timm.create_model("vit_tiny_patch16_224", **SMALL)
    save_for_hf(dense, tmp_path, safe_serialization=True)
    with pytest.raises(RuntimeError, match=r"blocks\.0\.mlp is a DEX layer: load it by .*load_dense_checkpoint"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=classes, **arguments(way))


@every_model
def test_parameters_are_grouped_by_block_for_layer_decay(name, way):
    model = create(name, way)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups.keys() == dict(model.named_parameters()).keys()
    for i in range(3):
        assert {groups[n] for n in groups if n.startswith(f"blocks.{i}.")} == {i + 1}
    for pattern in model.no_weight_decay():
        assert pattern in groups or getattr(model, pattern, None) is None


@every_way
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_optimizers_scale_experts_with_their_block_and_decay_no_bias(name, way, layer_decay):
    """By timm's factory; it decays what is 2-D where there is layer decay: ours makes the groups then."""
    model = create(name, way)
    if layer_decay is None:
        groups = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1).param_groups
    else:
        ours = param_groups(model, weight_decay=0.1, layer_decay=layer_decay)
        groups = create_optimizer_v2(ours, "adamw", lr=1.0).param_groups
        theirs = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=layer_decay).param_groups
        assert scales(theirs) == scales(groups)
        assert {
            scale for parameter, scale in scales(groups).items() if parameter in set(model.blocks.parameters())
        } == {
            0.5,
            0.25,
            0.125,
        }
    names = {parameter: parameter_name for parameter_name, parameter in model.named_parameters()}
    decayed = {names[parameter]: group["weight_decay"] > 0 for group in groups for parameter in group["params"]}
    assert sorted(decayed) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    for parameter_name, decays in decayed.items():
        assert decays == (parameter_name.endswith("weight") and "norm" not in parameter_name), parameter_name


def scales(groups):
    return {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}


@every_model
def test_on_the_meta_device_it_is_built_reset_and_stays_frozen(name, way):
    with torch.device("meta"):
        model = create(name, way, device="meta", dtype=torch.float64)
    model.requires_grad_(False)
    model.reset_classifier(0)
    model.set_input_size(img_size=tuple(2 * pixels for pixels in model.patch_embed.img_size))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {name for name, tensor in tensors.items() if not tensor.is_meta} == set()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    features = model.forward_features(images_for(model).double().to("meta"))
    assert (features.is_meta, features.dtype, features.shape[-1]) == (True, torch.float64, 24)
    with pytest.raises(TypeError, match="not_a_model_arg"):
        create(name, way, not_a_model_arg=1)


@every_way
@torch.no_grad()
def test_its_dtype_can_be_changed_after_a_forward(name, way):
    model = create(name, way).eval()
    images = images_for(model)
    model(images)
    model.to(torch.bfloat16)
    assert model(images.bfloat16()).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


@every_way
def test_a_weight_average_follows_and_shares_nothing(name, way):
    model = vary(create(name, way))
    set_noise_std(model, 1.0)
    images = images_for(model)
    model(images)  # leaves live tensors behind
    ema = ModelEmaV3(model, decay=0.75)
    before = [tensor.clone() for tensor in ema.module.state_dict().values()]
    vary(model)(images)
    update_directors(model, momentum=0.5)
    ema.update(model)
    for old, average, new in zip(before, ema.module.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.allclose(average, 0.75 * old + 0.25 * new, atol=1e-6)
    assert all(layer.routing is None for layer in dex_layers(ema.module))
    ema.set(model)
    assert torch.equal(ema(images), model.eval()(images))


@every_way
def test_flops_are_those_of_the_dense_model_and_its_experts(name, way):
    model = create(name, way, num_classes=5).eval()
    dense = timm.create_model("vit_tiny_patch16_224", img_size=64, **SMALL, num_classes=5).eval()
    images = images_for(model)

    def flops(counted):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            counted(images)
        return counter.get_total_flops()

    tokens, mlp, router = 2 * 17, 4 * 24 * 96, 2 * 2 * 24 * 3
    # Two experts run where the dense model runs one MLP, and the director where it is asked for.
    assert flops(model) == flops(dense) + 3 * (tokens * mlp + router)
    set_aux(model, "always")
    assert flops(model) == flops(dense) + 3 * (2 * tokens * mlp + router)
    set_mode(model, "director")
    assert flops(model) == flops(dense)


@pytest.mark.parametrize("name", STOCK)
def test_all_ways_in_build_the_same_model_which_differs_from_the_dense_one_in_its_mlps(name):
    dense = timm.create_model(name, **SMALL, img_size=int(name.split("patch")[1][:2]) * 4)
    shapes = [[(n, t.shape) for n, t in create(name, way).state_dict().items()] for way in WAYS]
    assert shapes[0] == shapes[1] == shapes[2]
    theirs = [(n, t.shape) for n, t in dense.state_dict().items() if ".mlp." not in n]
    assert [(n, shape) for n, shape in shapes[0] if ".mlp." not in n] == theirs
