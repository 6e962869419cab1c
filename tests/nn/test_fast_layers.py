"""Fast layers in a loop of the user's own: the same numbers to rounding, and all as before afterwards."""

import copy
import pickle
import sys
from contextlib import nullcontext

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.profiler import ProfilerActivity, profile

from assertions import assert_close
from dexcore.nn import aux_losses, collapse, fast_layers, upcycle, update_directors
from onednn_here import needs_bf16

module = sys.modules["dexcore.nn.fast_layers"]  # the function hides it


def _autocast(dtype):
    return torch.autocast("cpu", dtype) if dtype == torch.bfloat16 else nullcontext()


@pytest.mark.parametrize(("dtype", "in_parts"), [(torch.bfloat16, True), (torch.float32, False)])
def test_attention_runs_in_parts_where_the_fused_kernel_is_slow_and_fused_again_after(dtype, in_parts):
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2)
    flags = [block.attn.fused_attn for block in model.blocks]
    assert all(flags)
    with fast_layers(model, dtype):
        assert [block.attn.fused_attn for block in model.blocks] == [not in_parts] * 2
    assert [block.attn.fused_attn for block in model.blocks] == flags


@pytest.fixture
def onednn_is_faster(monkeypatch):
    monkeypatch.setattr(module, "faster_by_onednn", lambda device: True)


def calls_onednn(run):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return "mkldnn::_linear_pointwise" in {event.name for event in profiler.events()}


@pytest.mark.usefixtures("onednn_is_faster")
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
def test_dense_layers_run_by_onednn_where_it_is_faster_and_as_before_after(dtype):
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2)
    images, bound = torch.randn(2, 3, 16, 16), 1e-4 if dtype == torch.float32 else 0.3

    def results():
        with _autocast(dtype):
            y = model(images)
        return [y, *torch.autograd.grad(y.float().square().sum(), [*model.parameters()])]

    expected = results()
    with fast_layers(model, dtype), fast_layers(model, dtype):
        assert calls_onednn(results)
        for name, mine, plain in zip(("y", *dict(model.named_parameters())), results(), expected, strict=True):
            assert_close(mine, plain, bound=bound, name=name)
            assert mine.dtype == plain.dtype
    assert all(torch.equal(again, plain) for again, plain in zip(results(), expected, strict=True))
    assert not calls_onednn(results)


@needs_bf16
@pytest.mark.usefixtures("onednn_is_faster")
def test_only_plain_dense_layers_in_a_fitting_precision_run_by_onednn():
    class Own(nn.Linear):
        pass

    wrapped = nn.Linear(4, 4)
    own_forward = wrapped.forward = lambda x: x + 1
    x = torch.randn(2, 4)
    others = [(Own(4, 4), x), (wrapped, x), (nn.Linear(4, 4).double(), x.double()), (nn.Linear(4, 4), x[0])]
    for layer, given in others:
        with fast_layers(layer):
            assert not calls_onednn(lambda layer=layer, given=given: layer(given))
    assert wrapped.forward is own_forward
    with fast_layers(others[-1][0]), _autocast(torch.bfloat16):
        assert others[-1][0](x).dtype == torch.bfloat16
        assert others[-1][0](x[0]).dtype == torch.bfloat16


@pytest.mark.usefixtures("onednn_is_faster")
def test_what_is_copied_or_pickled_inside_has_plain_dense_layers():
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    with fast_layers(model):
        pickled = pickle.dumps(model)
        copies = [
            copy.deepcopy(model),
            copy.copy(model.head),
            pickle.loads(pickled),
            collapse(upcycle(copy.deepcopy(model))),
        ]
        assert calls_onednn(lambda: model(images))
        with fast_layers(copies[0]):
            assert calls_onednn(lambda: copies[0](images))
    assert b"dexcore" not in pickled
    assert not any({"forward", "__getstate__"} & vars(layer).keys() for m in (model, *copies) for layer in m.modules())
    assert all(torch.equal(m(images), expected) for m in (copies[0], copies[2]))


def _trained(model, context, dtype, steps=3):
    """A user's own loop, with DEX layers and autocast; its losses."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    generator, losses = torch.Generator().manual_seed(0), []
    with context:
        for _ in range(steps):
            images, labels = torch.randn(4, 3, 16, 16, generator=generator), torch.arange(4) % 3
            with _autocast(dtype):
                loss = nn.functional.cross_entropy(model(images).float(), labels) + 0.01 * aux_losses(model).align
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_directors(model, momentum=0.9)
            losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("onednn_is_faster")
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-4), pytest.param(torch.bfloat16, 0.05, marks=needs_bf16)]
)
def test_a_users_own_loop_trains_as_without_it_to_rounding(dtype, bound):
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    plain = upcycle(vit, num_experts=3, top_k=2)
    fast = copy.deepcopy(plain)
    expected = _trained(plain, nullcontext(), dtype)
    got = _trained(fast, fast_layers(fast, dtype), dtype)
    assert got == pytest.approx(expected, rel=bound)
    assert expected[0] != expected[-1]
    for name, value in fast.state_dict().items():
        assert_close(value, plain.state_dict()[name], bound=bound, name=name)
    assert not any("forward" in vars(layer) for layer in fast.modules())
    assert all(block.attn.fused_attn for block in fast.blocks)


@pytest.mark.usefixtures("onednn_is_faster")
def test_after_an_error_inside_all_is_as_before():
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), fast_layers(model, torch.bfloat16):
        model.head(torch.randn(2, 3))
    assert not any("forward" in vars(layer) for layer in model.modules())
    assert all(block.attn.fused_attn for block in model.blocks)


def test_without_a_dtype_it_is_autocasts_or_the_weights():
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)
    attention = model.blocks[0].attn
    with fast_layers(model):
        assert attention.fused_attn
    with torch.autocast("cpu", torch.bfloat16), fast_layers(model):
        assert not attention.fused_attn
    with fast_layers(model.bfloat16()):
        assert not attention.fused_attn


@pytest.mark.usefixtures("onednn_is_faster")
def test_models_on_other_devices_and_without_weights_are_left_alone():
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, device="meta")
    with fast_layers(model, torch.bfloat16):
        assert model.blocks[0].attn.fused_attn
        assert "forward" not in vars(model.head)
    with fast_layers(nn.GELU(), torch.bfloat16):
        pass


def test_what_is_no_dtype_is_refused_by_name():
    with pytest.raises(TypeError, match=r"dtype must be a torch\.dtype, .* got"), fast_layers(nn.Linear(2, 2), "bf16"):
        pass
