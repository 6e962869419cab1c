"""The masked autoencoder against `plain_mae`, and what it promises around it."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import timm
import torch
from plain_mae import Sizes, cut, plain_mae, position
from timm.layers import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from assertions import assert_close
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.nn import (
    DEXBlock,
    DEXMlp,
    aux_losses,
    param_groups,
    record_load,
    set_noise_std,
    upcycle,
    update_directors,
)

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}


def tiny(encoder=None, **kwargs):
    """An autoencoder of 16 patches, 4 of them visible."""
    if encoder is None:
        encoder = DEXVisionTransformer(**TINY, num_experts=[4, 3], top_k=[3, 2])
    return MaskedAutoencoder(encoder, **{"decoder_dim": 24, "decoder_depth": 2, "decoder_heads": 3, **kwargs})


def shake(model):
    """Weights that make every term count: no zero biases, no equal experts."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def inputs(model, batch=2, dtype=torch.float32):
    images = torch.randn(batch, model.encoder.in_chans, *model.encoder.patch_embed.img_size, dtype=dtype)
    return images, torch.rand(batch, model.num_patches)


def check_parity(model, sizes, bound, hidden_only=False):
    images, noise = inputs(model, dtype=next(model.parameters()).dtype)
    output = model(images, noise, hidden_only=hidden_only)
    output.loss.backward()
    state = {name: t.detach().double().requires_grad_() for name, t in model.state_dict().items()}
    loss, pred, mask = plain_mae(state, images.double(), noise, sizes)
    loss.backward()
    assert torch.equal(output.mask.double(), mask)
    if hidden_only:
        pred = pred[mask.bool()].unflatten(0, (len(images), -1))
    assert_close(output.loss, loss, bound=bound, name="loss")
    assert_close(output.pred, pred, bound=bound, name="pred")
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert_close(parameter.grad, state[name].grad, bound=bound, name=name)
            compared += parameter.grad.abs().sum().item() > 0
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert compared == len(trained), "a trained parameter got no gradient"


@pytest.mark.parametrize("hidden_only", [False, True])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_loss_prediction_mask_and_gradients_are_those_of_the_plain_implementation(
    dtype, bound, norm_pix_loss, hidden_only
):
    encoder = DEXVisionTransformer(**TINY, num_experts=[4, 3], top_k=[3, 2], dtype=dtype)
    model = shake(tiny(encoder, norm_pix_loss=norm_pix_loss))
    check_parity(model, Sizes((8, 8), 2, 3, 4, [3, 2], norm_pix_loss=norm_pix_loss), bound, hidden_only)


@pytest.mark.parametrize("hidden_only", [False, True])
@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [
        ({"class_token": True, "reg_tokens": 2}, 3),
        ({"class_token": True, "reg_tokens": 2, "no_embed_class": True}, 3),
        ({"class_token": False, "global_pool": "avg"}, 0),
        ({"class_token": True, "dynamic_img_size": True}, 1),
        ({"class_token": True, "img_size": (16, 32), "patch_size": (4, 8), "in_chans": 1}, 1),
    ],
)
def test_dense_encoders_of_every_token_layout_agree_with_the_plain_implementation(arguments, prefix, hidden_only):
    model = shake(tiny(VisionTransformer(**{**TINY, **arguments}, dtype=torch.float64)))
    check_parity(model, Sizes(model.encoder.patch_embed.patch_size, 2, 3, 4, [], prefix), 1e-10, hidden_only)


def test_hidden_only_spares_the_visible_tokens_mlp_and_prediction():
    model = tiny(VisionTransformer(**TINY))
    flops = []
    for hidden_only in (False, True):
        with FlopCounterMode(display=False) as counter:
            model(*inputs(model), hidden_only=hidden_only)
        flops.append(counter.get_total_flops())
    mlp, pred = 2 * 24 * 4 * 24, 24 * 3 * 8 * 8  # products a token
    images, prefix, visible = 2, 1, 4
    assert flops[0] - flops[1] == 2 * images * ((prefix + visible) * mlp + visible * pred)


def test_hidden_only_is_the_same_with_experts_in_the_decoder():
    model = shake(upcycle(tiny(VisionTransformer(**TINY)), num_experts=3, pool="mean")).eval()
    images, noise = inputs(model)
    assert_close(model(images, noise, hidden_only=True).loss, model(images, noise).loss)


def test_positions_are_fixed_sines_and_cosines_of_the_column_then_the_row():
    model = tiny(VisionTransformer(**{**TINY, "img_size": (16, 32)}, reg_tokens=1), mask_ratio=0.5)
    for positions, dim in ((model.encoder.pos_embed, 16), (model.decoder_pos_embed, 24)):
        assert not positions.requires_grad
        assert positions[:, :2].eq(0).all()
        for i in range(8):
            assert_close(positions[0, 2 + i], position(dim, i // 4, i % 4), bound=1e-6)


def test_the_patches_with_the_smallest_noise_stay_visible_and_ties_go_to_the_lower_index():
    model = tiny()
    noise = torch.ones(2, 16)
    noise[0, [9, 3]] = 0
    output = model(torch.randn(2, 3, 32, 32), noise)
    assert [row.eq(0).nonzero().flatten().tolist() for row in output.mask] == [[0, 1, 3, 9], [0, 1, 2, 3]]


def test_noise_that_is_not_given_is_drawn_for_every_image():
    masks = tiny()(torch.randn(8, 3, 32, 32)).mask
    assert masks.sum(1).eq(12).all()
    assert len(masks.unique(dim=0)) > 1


@pytest.mark.parametrize("mask_ratio", [0.75, 0.9, 0.7, 0.5])
def test_the_number_of_visible_patches_is_rounded_down(mask_ratio):
    model = tiny(mask_ratio=mask_ratio)
    assert model(*inputs(model)).mask.eq(0).sum(1).tolist() == [int(16 * (1 - mask_ratio))] * 2


def test_hidden_pixels_do_not_reach_the_encoder():
    model = shake(tiny())
    images, noise = inputs(model)
    output = model(images, noise)
    hidden = model.unpatchify(output.mask.unsqueeze(-1).expand_as(output.pred))
    again = model(torch.where(hidden > 0, torch.randn_like(images), images), noise)
    assert torch.equal(again.pred, output.pred)
    assert not torch.equal(again.loss, output.loss)


def test_patchify_orders_row_column_channel_and_unpatchify_undoes_it():
    model = tiny(VisionTransformer(**{**TINY, "img_size": (16, 32), "patch_size": (4, 8)}))
    images = torch.randn(2, 3, 16, 32)
    patches = model.patchify(images)
    assert torch.equal(patches[1], torch.stack(cut(images[1], (4, 8))))
    assert torch.equal(model.unpatchify(patches), images)


def test_patches_and_images_of_other_shapes_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match=r"images must be \[B, C, 32, 32\], got \[2, 3, 64, 16\]"):
        model.patchify(torch.zeros(2, 3, 64, 16))
    with pytest.raises(ValueError, match=r"patches must be \[B, 16, 64\*C\], got \[2, 8, 192\]"):
        model.unpatchify(torch.zeros(2, 8, 192))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_has_no_loss_and_reconstructs_the_images(norm_pix_loss):
    model = tiny(norm_pix_loss=norm_pix_loss)
    images = torch.rand(2, 3, 32, 32) + torch.tensor([0.0, 5.0]).reshape(2, 1, 1, 1)
    target = model.target(images)
    assert_close(model.reconstruct(images, target), images)
    if norm_pix_loss:
        assert_close(target.var(-1), torch.ones(2, 16), bound=1e-4)
        assert target.mean(-1).abs().max() < 1e-5


def test_a_constant_patch_has_a_finite_target():
    model = tiny()
    target = model.target(torch.full((1, 3, 32, 32), 0.3))
    assert target.isfinite().all()
    assert target.abs().max() < 1e-3


def test_weights_are_drawn_as_mae_does():
    encoder = DEXVisionTransformer(**{**TINY, "embed_dim": 64, "depth": 1}, reg_tokens=2, init_values=0.1)
    model = tiny(encoder, decoder_dim=96)
    drawn = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    drawn += [m.router.weight for m in model.modules() if isinstance(m, DEXMlp)]
    drawn.append(encoder.patch_embed.proj.weight.flatten(1))
    for weight in drawn:
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        if "norm" in name and name.endswith("weight"):
            assert parameter.eq(1).all(), name
    for token in (encoder.cls_token, encoder.reg_token, model.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.35)
    assert_experts_equal_the_director(model)
    assert_close(encoder.blocks[0].ls1.gamma, torch.full((64,), 0.1))


def test_the_patch_embedding_of_a_channels_last_encoder_is_drawn_too():
    models = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        encoder = DEXVisionTransformer(**TINY, num_experts=3).to(memory_format=memory_format)
        with torch.no_grad():
            encoder.patch_embed.proj.weight.fill_(7)
        models.append(tiny(encoder))
    plain, other = (model.encoder.patch_embed.proj.weight for model in models)
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert plain.std().item() == pytest.approx(math.sqrt(2 / (16 + 3 * 64)), rel=0.1)
    assert torch.equal(other, plain)
    images, noise = inputs(models[0])
    assert_close(models[1](images, noise).loss, models[0](images, noise).loss, bound=1e-5)


def test_every_strided_weight_is_drawn_as_a_contiguous_one_is():
    """A transposed storage under the same shape, as weights come from some converters."""

    def strided(model):
        for module in model.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                if parameter.ndim > 1:
                    turned = parameter.detach().mT.contiguous().mT
                    setattr(module, name, nn.Parameter(turned.fill_(7), requires_grad=parameter.requires_grad))
        return model

    model = tiny(strided(DEXVisionTransformer(**TINY, num_experts=3)))
    model = strided(model)
    assert not model.encoder.patch_embed.proj.weight.is_contiguous()
    model.init_weights()
    for name, tensor in model.named_parameters():
        if tensor.ndim > 1:
            assert not tensor.eq(7).any(), name
    assert_experts_equal_the_director(model)


def assert_experts_equal_the_director(model):
    for layer in (m for m in model.modules() if isinstance(m, DEXMlp)):
        assert layer.router.activation_frequency.eq(0).all()
        assert layer.director.fc1.weight.abs().sum() > 0
        for experts, director in layer.expert_director_pairs():
            assert torch.equal(experts, director.expand_as(experts))


def test_an_encoder_that_was_trained_keeps_its_weights_when_asked_to():
    encoder = shake(DEXVisionTransformer(**TINY, num_experts=3))
    before = copy.deepcopy(encoder.state_dict())
    after = tiny(encoder, init_encoder=False).encoder.state_dict()
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert changed == ["pos_embed"]


def test_a_model_made_on_the_meta_device_is_complete_after_init_weights():
    with torch.device("meta"):
        model = tiny()
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(math.nan)
    model.init_weights()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.isfinite().all(), name
    assert_experts_equal_the_director(model)
    assert torch.equal(model.decoder_pos_embed, tiny().decoder_pos_embed)
    model(*inputs(model)).loss.backward()


def test_an_encoder_with_a_distillation_token_works_too():
    model = tiny(VisionTransformerDistilled(**TINY))
    assert model.encoder.dist_token.std().item() == pytest.approx(0.02, rel=0.5)
    assert model.encoder.pos_embed[:, :2].eq(0).all()
    assert model(*inputs(model)).pred.shape == (2, 16, 192)


def total_loss(model, images, noise, hidden_only=False):
    output, aux = model(images, noise, hidden_only=hidden_only), aux_losses(model)
    return output.loss + aux.align + aux.balance


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("selective", [False, True])
@pytest.mark.parametrize("hidden_only", [False, True])
def test_activation_checkpointing_changes_neither_losses_nor_gradients_nor_directors(hidden_only, selective):
    plain = shake(tiny())
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing(selective=selective)
    runs = []
    for block in [*saving.encoder.blocks, *saving.decoder_blocks]:
        block.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    images, noise = inputs(plain)
    for model in (plain, saving):
        set_noise_std(model, 1.0)
        torch.manual_seed(1)
        loss = total_loss(model, images, noise, hidden_only)
        loss.backward()
        record_load(model)
        update_directors(model, 0.9)
    assert len(runs) == 2 * 4, "every block runs again in the backward"
    expected, actual = gradients(plain), gradients(saving)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name
    for (name, a), b in zip(saving.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_it_compiles_without_a_graph_break_and_gives_the_same_gradients():
    plain = shake(tiny(DEXVisionTransformer(**{**TINY, "depth": 1}, num_experts=3), decoder_depth=1))
    images, noise = inputs(plain)
    other = copy.deepcopy(plain)
    expected = plain(images, noise)
    expected.loss.backward()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    output = compiled(images, noise)
    output.loss.backward()
    assert_close(output.loss, expected.loss.double())
    assert torch.equal(output.mask, expected.mask)
    for name, gradient in gradients(plain).items():
        assert_close(gradients(other)[name], gradient.double(), name=name)


def test_the_loss_is_float32_under_autocast_and_near_the_full_precision_one():
    model = shake(tiny())
    images, noise = inputs(model)
    expected = model(images, noise)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, noise)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.pred.dtype == torch.bfloat16
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("resized_before", [False, True])
@pytest.mark.parametrize("reg_tokens", [0, 2])
def test_a_resized_autoencoder_is_one_built_at_that_size_with_the_same_weights(resized_before, reg_tokens):
    arguments = {**TINY, "num_experts": 3, "reg_tokens": reg_tokens}
    model = tiny(DEXVisionTransformer(**arguments))
    drawn = {name: t.clone() for name, t in model.state_dict().items() if "pos_embed" in name}
    shake(model).load_state_dict(drawn, strict=False)
    if resized_before:
        model.encoder.set_input_size((48, 40))
    model.set_input_size((48, 40))
    expected = tiny(DEXVisionTransformer(**{**arguments, "img_size": (48, 40)}))
    assert {name: t.shape for name, t in expected.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }
    assert torch.equal(model.encoder.pos_embed, expected.encoder.pos_embed)
    assert torch.equal(model.decoder_pos_embed, expected.decoder_pos_embed)
    assert not model.encoder.pos_embed.requires_grad
    assert not model.decoder_pos_embed.requires_grad
    assert (model.num_patches, model.num_visible) == (30, 7)
    expected.load_state_dict(model.state_dict())
    images, noise = inputs(expected)
    assert torch.equal(model(images, noise).loss, expected(images, noise).loss)
    rebuilt = MaskedAutoencoder.from_description(model.describe())
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(images, noise).loss, expected(images, noise).loss)


def test_positions_that_were_learned_are_resampled_with_the_autoencoder():
    model, learned = tiny(), torch.randn(1, 17, 16)
    with torch.no_grad():
        model.encoder.pos_embed.copy_(learned)
    model.set_input_size(48)
    expected = resample_abs_pos_embed(learned, [6, 6], [4, 4], num_prefix_tokens=1)
    assert torch.equal(model.encoder.pos_embed, expected)
    assert torch.equal(
        model.decoder_pos_embed, tiny(DEXVisionTransformer(**{**TINY, "img_size": 48})).decoder_pos_embed
    )


@pytest.mark.parametrize("size", [(48, 40), (64, 16)])  # the second has as many patches, in another grid
def test_an_encoder_resized_alone_is_refused_with_what_to_do(size):
    model = tiny()
    model.encoder.set_input_size(size)
    with pytest.raises(ValueError, match=r"encoder was resized .* call set_input_size\(\(\d+, \d+\)\) of the Masked"):
        model(torch.randn(2, 3, *size))


def test_sizes_and_patches_that_an_autoencoder_cannot_take_are_refused_and_change_nothing():
    model = tiny()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for size in (36, (48, 36)):
        with pytest.raises(ValueError, match="img_size must be a positive multiple of the patch size"):
            model.set_input_size(size)
    with pytest.raises(ValueError, match="mask_ratio must leave at least one of 1 patches"):
        model.set_input_size(8)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    model(*inputs(model))
    model.encoder.set_input_size(patch_size=16)
    for attempt in (lambda: model(torch.randn(2, 3, 32, 32)), lambda: model.set_input_size(32)):
        with pytest.raises(ValueError, match="set the patch size first"):
            attempt()


@pytest.mark.parametrize(
    ("images", "noise", "error", "words"),
    [
        (torch.zeros(2, 3, 32, 24), None, ValueError, r"images must be \[B, 3, 32, 32\].*\[2, 3, 32, 24\]"),
        (torch.zeros(2, 1, 32, 32), None, ValueError, r"images must be \[B, 3, 32, 32\].*\[2, 1, 32, 32\]"),
        (torch.zeros(3, 32, 32), None, ValueError, r"images must be"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            None,
            TypeError,
            "images must be floating point.*uint8",
        ),
        (
            torch.zeros(2, 3, 32, 32, device="meta"),
            None,
            ValueError,
            "images are on meta, the model is on cpu",
        ),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, 15), ValueError, r"noise must be \[2, 16\].*\[2, 15\]"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(1, 16), ValueError, r"noise must be \[2, 16\].*\[1, 16\]"),
        (np.zeros((2, 3, 32, 32), np.float32), None, TypeError, r"images must be a tensor, got .*\(ndarray\)"),
        (torch.zeros(2, 3, 32, 32), [0.5] * 16, TypeError, "noise must be a tensor or None"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, 16) * 1j, TypeError, "noise must be real numbers"),
    ],
)
def test_wrong_inputs_are_refused_by_name(images, noise, error, words):
    with pytest.raises(error, match=words):
        tiny()(images, noise)


def test_patches_of_another_kind_or_without_values_are_refused_by_name():
    model = tiny()
    for call in (model.patchify, model.unpatchify, model.target):
        with pytest.raises(TypeError, match=r"(images|patches) must be a tensor, got None"):
            call(None)
    with pytest.raises(TypeError, match="pred must be a tensor, got None"):
        model.reconstruct(torch.zeros(2, 3, 32, 32), None)
    with pytest.raises(ValueError, match=r"patches must be \[B, 16, 64\*C\], got \[2, 16, 0\]"):
        model.unpatchify(torch.zeros(2, 16, 0))


@pytest.mark.parametrize(
    ("encoder", "arguments", "error", "words"),
    [
        (nn.Linear(2, 2), {}, TypeError, "encoder must be a timm VisionTransformer, got Linear"),
        (
            timm.create_model("resnet10t"),
            {},
            TypeError,
            "encoder must be a timm VisionTransformer, got ResNet",
        ),
        (VisionTransformer(**TINY, pos_embed="none"), {}, ValueError, "encoder must have positions"),
        (VisionTransformer(**TINY, patch_drop_rate=0.5), {}, ValueError, "patch_drop_rate=0"),
        (VisionTransformer(**{**TINY, "img_size": 36}), {}, ValueError, "multiple of its patch_size"),
        (VisionTransformer(**{**TINY, "embed_dim": 18}), {}, ValueError, "multiple of 4, got 18"),
        (None, {"decoder_dim": 26}, ValueError, "decoder_dim must be a multiple of 4"),
        (None, {"decoder_heads": 5}, ValueError, "decoder_dim must be.*decoder_heads=5"),
        (None, {"mask_ratio": 0.0}, ValueError, "mask_ratio must be a number between 0 and 1, got 0.0"),
        (None, {"mask_ratio": 0.99}, ValueError, "mask_ratio must leave"),
        (None, {"mask_ratio": math.nan}, ValueError, "mask_ratio must be a number between 0 and 1, got nan"),
        (None, {"mask_ratio": -math.inf}, ValueError, "mask_ratio must be a number between"),
        (None, {"mask_ratio": "0.75"}, TypeError, "mask_ratio must be a number, got '0.75'"),
        (None, {"decoder_depth": 1.5}, TypeError, "decoder_depth must be a whole number, got 1.5"),
        (None, {"norm_pix_loss": "x"}, TypeError, "norm_pix_loss must be True or False, got 'x'"),
        (None, {"init_encoder": 1}, TypeError, "init_encoder must be True or False, got 1"),
        (None, {"decoder_dim": 0}, ValueError, "decoder_dim must be at least 1"),
        (None, {"decoder_heads": 0}, ValueError, "decoder_heads must be at least 1"),
        (None, {"decoder_depth": 0}, ValueError, "decoder_depth must be at least 1"),
        (
            VisionTransformer(**{**TINY, "img_size": 4, "patch_size": 1, "in_chans": 1}),
            {},
            ValueError,
            "norm_pix",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(encoder, arguments, error, words):
    with pytest.raises(error, match=words):
        tiny(encoder, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"block_fn": partial(DEXBlock, num_experts=3)},
        {"mlp_layer": partial(DEXMlp, num_experts=3)},
    ],
)
def test_timm_models_with_dex_layers_are_encoders_too(arguments):
    model = tiny(VisionTransformer(**TINY, **arguments))
    assert_experts_equal_the_director(model)
    assert total_loss(model, *inputs(model)).isfinite()


def test_the_mask_token_is_not_decayed():
    model = tiny()
    free = {id(p) for group in param_groups(model, 0.1) if not group["weight_decay"] for p in group["params"]}
    assert id(model.mask_token) in free
    assert id(model.encoder.cls_token) in free
    assert id(model.decoder_pred.weight) not in free
