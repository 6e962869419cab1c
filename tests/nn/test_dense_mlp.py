"""A DEX layer with each of timm's MLPs for its director, and where the parameters lie in the experts."""

import copy
from functools import partial

import pytest
import timm
import torch
from timm.layers import GatedMlp, GluMlp, LayerNorm, Mlp, SwiGLU, SwiGLUPacked
from timm.layers.activations import QuickGELU
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from assertions import assert_close
from dexcore import ops
from dexcore.models import DEXVisionTransformer
from dexcore.nn import DEXMlp, aux_losses, left_out, set_mode, update_directors
from dexcore.nn.upcycle import collapse, upcycle
from dexcore.ops import reference
from nn.tiny import IMAGES, TINY, dense, layers, shake

SILU = {"act_layer": nn.SiLU}
KINDS = {
    "Mlp": (Mlp, {}),
    "QuickGELU": (Mlp, {"act_layer": QuickGELU}),
    "SwiGLUPacked": (SwiGLUPacked, SILU),
    "gate last": (partial(GluMlp, gate_last=True), SILU),
    "SwiGLU": (SwiGLU, SILU),
    "without biases": (SwiGLU, SILU | {"bias": False}),
    "aligned": (partial(SwiGLU, align_to=8), SILU),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind, width=12, hidden=20, **kwargs):
    """A layer whose experts and director differ from one another."""
    director_layer, settings = KINDS[kind]
    layer = DEXMlp(width, hidden, director_layer=director_layer, **settings, **{"num_experts": 5, **kwargs})
    shake(layer)
    return layer


def as_dense(layer, expert):
    """An expert as a module of timm's, of the director's kind."""
    return collapse(nn.Sequential(layer), "average", [torch.arange(layer.num_experts) == expert])[0]


def chosen(layer, expert, x):
    """What the layer computes where every image goes to one expert."""
    gates, indices = torch.ones(len(x), 1), torch.full((len(x), 1), expert)
    fc1, fc2 = layer.experts.fc1, layer.experts.fc2
    return ops.expert_mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, gates, indices, layer.activation)


@each_kind
def test_an_expert_is_a_dense_mlp_of_the_directors_kind(kind):
    layer, x = make(kind).eval(), torch.randn(3, 4, 12)
    for expert in range(5):
        mlp = as_dense(layer, expert)
        assert type(mlp) is type(layer.director)
        assert not torch.equal(mlp.fc2.weight, layer.director.fc2.weight)
        assert_close(chosen(layer, expert, x), mlp.double()(x.double()), bound=1e-6)


@each_kind
@pytest.mark.parametrize(("align", "backend"), [("kd", "eager"), ("mse", "eager"), ("kd", "triton")])
def test_outputs_losses_and_gradients_of_a_step_agree_with_float64(kind, align, backend):
    layer, x = make(kind, align=align, backend=backend), torch.randn(6, 7, 12, requires_grad=True)
    layer.router.weight.data.normal_()
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    y = layer(x)
    fc1, fc2, routing = layer.experts.fc1, layer.experts.fc2, layer.routing
    gates, indices, probs = reference.route(x, layer.router.weight, layer.top_k, layer.tau)
    y64 = reference.expert_mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, gates, indices, layer.activation)
    director = copy.deepcopy(layer.director).double()
    align64, balance64 = reference.mix_align(y64, director(x.double()), align), reference.balance_loss(probs)
    assert torch.equal(routing.indices, indices)
    assert_close(y, y64)
    assert_close(routing.align_loss, align64)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad((y * dy).sum() + 3 * routing.align_loss + 2 * routing.balance_loss, [x, *trained])
    grads64 = torch.autograd.grad((y64 * dy).sum() + 3 * align64 + 2 * balance64, [x, *trained])
    for grad, grad64 in zip(grads, grads64, strict=True):
        assert_close(grad, grad64)


@each_kind
def test_the_alignment_loss_is_against_the_director(kind):
    layer, x = make(kind, align="mse").eval(), torch.randn(3, 4, 12)
    layer.aux = "always"
    y = layer(x)
    assert_close(layer.routing.align_loss, reference.mix_align(y, layer.director(x), "mse"))
    layer.copy_director()
    layer(x)
    assert layer.routing.align_loss < 1e-10


@each_kind
def test_a_new_layer_computes_what_its_director_does(kind):
    layer, x = make(kind), torch.randn(3, 4, 12)
    layer.reset_parameters()
    assert_close(layer(x), layer.director(x).detach().double())
    layer.set_mode("director")
    assert torch.equal(layer(x), layer.director(x))


@each_kind
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_a_director_follows_its_experts_wherever_it_holds_their_rows(kind, backend):
    layer = make(kind, backend=backend)
    layer.record.recorded = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    wanted = as_dense(layer, 2).state_dict()
    update_directors(layer, momentum=0.0)
    for name, tensor in layer.director.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    with torch.no_grad():
        layer.experts.fc1.weight[2, -3] = torch.nan
    assert left_out(layer)[0].elements == 12


def model(**arguments):
    return dense(**SILU, **arguments)


MODELS = {
    "SwiGLUPacked": lambda: model(mlp_layer=SwiGLUPacked),
    "gate last": lambda: model(mlp_layer=partial(GluMlp, gate_last=True)),
    "SwiGLU": lambda: model(mlp_layer=SwiGLU, proj_bias=False),
    "QuickGELU": lambda: dense(act_layer="quick_gelu"),
    "DINOv2 giant": lambda: timm.create_model(
        "vit_giant_patch14_dinov2", img_size=28, embed_dim=24, depth=2, num_heads=2
    ),
    "DINOv3 plus": lambda: timm.create_model(
        "vit_small_plus_patch16_dinov3", img_size=32, embed_dim=24, depth=2, num_heads=2
    ),
    "EVA-02": lambda: timm.create_model("eva02_tiny_patch14_224", img_size=28, embed_dim=24, depth=2, num_heads=2),
    "UNI2-h": lambda: VisionTransformer(
        img_size=28, patch_size=14, depth=2, num_heads=2, init_values=1e-5, embed_dim=24, mlp_ratio=2.66667 * 2,
        num_classes=0, no_embed_class=True, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, reg_tokens=8,
        dynamic_img_size=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_collapsed_an_upcycled_model_is_the_dense_one_again(name):
    plain = shake(MODELS[name](), 0.1)
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    kinds = [type(module) for module in plain.modules()]
    again = collapse(upcycle(plain, num_experts=3))
    assert [type(module) for module in again.modules()] == kinds
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    MODELS[name]().load_state_dict(again.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_moves_experts_and_director(name):
    trained = upcycle(shake(MODELS[name](), 0.1), num_experts=3)
    images = torch.randn(4, 3, *trained.patch_embed.img_size)
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.1)
    before = [[(e.clone(), d.clone()) for e, d in layer.expert_director_pairs()] for layer in layers(trained)]
    output, aux = trained(images), aux_losses(trained)
    (output.square().mean() + aux.align + aux.balance).backward()
    optimizer.step()
    update_directors(trained, momentum=0.5)
    for layer, old in zip(layers(trained), before, strict=True):
        assert layer.activation == ("quick_gelu" if name == "QuickGELU" else "swiglu")
        for (expert, director), (old_expert, old_director) in zip(layer.expert_director_pairs(), old, strict=True):
            assert not torch.equal(expert, old_expert)
            assert not torch.equal(director, old_director)
    set_mode(trained, "director")
    assert torch.equal(trained.eval()(images), collapse(trained).eval()(images))


def test_what_timm_saves_of_an_upcycled_giant_opens_when_told_of_its_layers(tmp_path):
    tiny = {"img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    saved = shake(upcycle(timm.create_model("vit_giant_patch14_dinov2", **tiny), num_experts=3), 0.1).eval()
    save_for_hf(saved, tmp_path)
    mlp_layer = partial(DEXMlp, num_experts=3, director_layer=SwiGLUPacked)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, mlp_layer=mlp_layer).eval()
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(again(images), saved(images))


@pytest.mark.parametrize("frozen", [(), ("fc1_g.weight",), ("fc1_g.weight", "fc1_x.weight", "fc2.bias")])
def test_experts_are_frozen_where_all_that_they_are_copies_of_was(frozen):
    plain = model(mlp_layer=SwiGLU)
    for name in frozen:
        plain.blocks[0].mlp.get_parameter(name).requires_grad_(False)
    layer = layers(upcycle(plain, num_experts=3, mode="experts"))[0]
    learns = {name: parameter.requires_grad for name, parameter in layer.experts.named_parameters()}
    both = len(frozen) > 1
    assert learns == {"fc1.weight": not both, "fc1.bias": True, "fc2.weight": True, "fc2.bias": not both}
    plain = model(mlp_layer=SwiGLU)
    for name in frozen:
        plain.blocks[0].mlp.get_parameter(name).requires_grad_(False)
    director = layers(upcycle(plain, num_experts=3, mode="director"))[0].director
    assert {name for name, parameter in director.named_parameters() if not parameter.requires_grad} == set(frozen)


@pytest.mark.parametrize("kind", ["SwiGLUPacked", "SwiGLU"])
def test_gated_layers_compile_without_a_graph_break(kind):
    layer, x = make(kind), torch.randn(3, 4, 12)
    y = layer(x)
    expected = torch.autograd.grad(y.square().sum() + layer.routing.align_loss, layer.experts.fc1.weight)[0]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = compiled(x)
    assert_close(got, y.detach())
    loss = got.square().sum() + layer.routing.align_loss
    assert_close(torch.autograd.grad(loss, layer.experts.fc1.weight)[0], expected)


def test_autocast_runs_a_gated_layer_in_half_precision():
    layer, x = make("SwiGLU"), torch.randn(3, 4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        loss = y.float().square().mean() + layer.routing.align_loss
    assert y.dtype == torch.bfloat16
    loss.backward()
    assert layer.experts.fc1.weight.grad.dtype == torch.float32
    assert_close(y, layer(x).detach(), bound=2e-2)


def test_names_and_shapes_of_a_gated_layer():
    layer = DEXMlp(12, 40, director_layer=SwiGLUPacked, act_layer=nn.SiLU, num_experts=5)
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert shapes == {
        "experts.fc1.weight": (5, 40, 12),
        "experts.fc1.bias": (5, 40),
        "experts.fc2.weight": (5, 12, 20),
        "experts.fc2.bias": (5, 12),
        "director.fc1.weight": (40, 12),
        "director.fc1.bias": (40,),
        "director.fc2.weight": (12, 20),
        "director.fc2.bias": (12,),
        "router.weight": (5, 12),
        "router.activation_frequency": (5,),
    }


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"director_layer": SwiGLUPacked},
            ValueError,
            r"act_layer must be nn.SiLU in a gated MLP \(GluMlp\), got GELU",
        ),
        ({"director_layer": SwiGLU, "act_layer": nn.ReLU}, ValueError, r"gated MLP \(SwiGLU\), got ReLU"),
        ({"director_layer": GatedMlp}, TypeError, "director_layer must be timm's Mlp, GluMlp"),
        ({"director_layer": partial(SwiGLU, norm_layer=LayerNorm), **SILU}, ValueError, "has a norm inside"),
        ({"director_layer": partial(SwiGLU, drop=0.1), **SILU}, ValueError, "has dropout"),
        ({"director_layer": SwiGLUPacked, "hidden_features": 21, **SILU}, ValueError, "even, got 21"),
    ],
)
def test_directors_that_experts_cannot_follow_are_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        DEXMlp(12, **{"hidden_features": 20, **arguments})


def test_a_gated_dense_mlps_weights_are_refused_by_name():
    layer = make("SwiGLU")
    with pytest.raises(RuntimeError, match=r"0\.fc1_g\.weight is a dense MLP's, 0 is a DEX layer"):
        nn.Sequential(layer).load_state_dict(nn.Sequential(layer.director).state_dict(), strict=False)


def test_timms_own_arguments_build_gated_experts():
    built = shake(DEXVisionTransformer(**TINY, **SILU, mlp_layer=SwiGLUPacked, num_experts=3))
    assert [layer.activation for layer in layers(built)] == ["swiglu"] * 2
    assert built(IMAGES).isfinite().all()
