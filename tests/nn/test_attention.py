"""XFormersAttention beside timm's Attention."""

import importlib.util
import inspect
import sys
from types import ModuleType

import pytest
import torch
from timm.layers import Attention, LayerNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from assertions import assert_close
from dexcore.extras import MissingExtraError
from dexcore.nn import DEXBlock, DEXMlp, XFormersAttention, attention, upcycle

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
SETTINGS = [
    {},
    {"num_heads": 3, "attn_head_dim": 16, "qkv_bias": True, "proj_bias": False},
    {"num_heads": 4, "qk_norm": True, "scale_norm": True, "norm_layer": LayerNorm, "gated": True, "dim_out": 40},
]


def layers(**settings):
    """timm's and ours with the same weights."""
    theirs = Attention(32, **settings)
    for parameter in theirs.parameters():  # norms too
        nn.init.normal_(parameter, std=0.3)
    ours = XFormersAttention(32, **settings)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("settings", SETTINGS)
def test_constructor_and_state_dict_are_timms(settings):
    assert inspect.signature(XFormersAttention) == inspect.signature(Attention)
    theirs, ours = layers(**settings)
    shapes = [{name: t.shape for name, t in layer.state_dict().items()} for layer in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])


def test_forward_takes_timms_arguments():
    ours, theirs = (inspect.signature(layer.forward).parameters for layer in (XFormersAttention, Attention))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_timms_vit_its_block_and_a_dex_block_build_with_it():
    dense = VisionTransformer(**SIZES, attn_layer=XFormersAttention)
    assert dense.state_dict().keys() == VisionTransformer(**SIZES).state_dict().keys()
    dex = VisionTransformer(**SIZES, attn_layer=XFormersAttention, block_fn=DEXBlock)
    blocks = [
        *dense.blocks,
        *dex.blocks,
        *upcycle(dense, num_experts=3).blocks,
        Block(24, 2, attn_layer=XFormersAttention),
        DEXBlock(24, 2, attn_layer=XFormersAttention, num_experts=4, qkv_bias=True, qk_norm=True),
    ]
    assert all(type(block.attn) is XFormersAttention for block in blocks)
    assert [isinstance(block.mlp, DEXMlp) for block in blocks[-6:]] == [True, True, True, True, False, True]


def test_on_a_cpu_it_says_where_it_runs():
    with pytest.raises(RuntimeError, match="runs on CUDA and ROCm devices, got x on cpu; timm's Attention"):
        XFormersAttention(32)(torch.randn(2, 5, 32))


def test_shapes_can_be_asked_for_anywhere():
    assert XFormersAttention(32, device="meta")(torch.empty(2, 5, 32, device="meta")).shape == (2, 5, 32)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(attention, "_DEVICES", ("cpu", "cuda"))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_without_xformers_the_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"xformers.ops is not installed.*dexcore\[xformers\]"):
        XFormersAttention(32)(torch.randn(2, 5, 32))


class LowerTriangularMask:
    pass


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
    """What xformers documents and checks, in plain words: [B, N, H, C], one dtype, aligned biases of full shape."""
    assert query.dtype == key.dtype == value.dtype
    assert all(t.stride(-1) == 1 for t in (query, key, value))
    batch, tokens, heads, _ = query.shape
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    scores = q @ k.transpose(-2, -1) * scale
    if isinstance(attn_bias, LowerTriangularMask):
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), float("-inf"))
    elif attn_bias is not None:
        assert attn_bias.shape == (batch, heads, tokens, tokens)
        assert attn_bias.dtype == query.dtype
        alignment = 16 // attn_bias.itemsize
        assert attn_bias.stride(-1) <= 1
        assert all(stride % alignment == 0 for stride in attn_bias.stride()[:-1])
        scores = scores + attn_bias
    return (nn.functional.dropout(scores.softmax(-1), p) @ v).transpose(1, 2)


@pytest.fixture
def stand_in(monkeypatch, on_cpu):
    """xformers has no CPU kernels: its documented interface in its place."""
    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    package.ops = ops
    ops.memory_efficient_attention = memory_efficient_attention
    ops.LowerTriangularMask = LowerTriangularMask
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def masks(batch, heads, tokens):
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    keep = drawn(batch, 1, 1, tokens) > -0.5
    keep[..., 0] = True
    return {
        "none": None,
        "keys": keep,
        "square": drawn(tokens, tokens),
        "by image": drawn(batch, 1, tokens, tokens),
        "full": drawn(batch, heads, tokens, tokens),
        "boolean": (drawn(heads, tokens, tokens) > 0) | torch.eye(tokens, dtype=torch.bool),
    }


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mask", masks(1, 1, 1))
@pytest.mark.parametrize("tokens", [1, 7, 8])
def test_it_computes_what_timms_does(settings, mask, tokens):
    theirs, ours = (layer.double().eval() for layer in layers(**settings))
    x = torch.randn(3, tokens, 32, dtype=torch.float64)
    given = masks(3, ours.num_heads, tokens)[mask]
    if given is not None and given.is_floating_point():
        given = given.double()
    assert_close(ours(x, given), theirs(x, given))


@pytest.mark.usefixtures("stand_in")
def test_a_causal_layer_sees_no_later_token():
    theirs, ours = (layer.double() for layer in layers())
    x = torch.randn(3, 6, 32, dtype=torch.float64)
    assert_close(ours(x, is_causal=True), theirs(x, is_causal=True))
    assert not torch.equal(ours(x, is_causal=True), ours(x))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("qk_norm", [False, True])
def test_under_autocast_all_operands_have_one_dtype(qk_norm):
    _, ours = layers(qk_norm=qk_norm, norm_layer=nn.LayerNorm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(torch.randn(2, 5, 32), torch.randn(5, 5)).dtype == torch.bfloat16


@pytest.mark.usefixtures("stand_in")
def test_attention_is_dropped_in_training_alone():
    _, ours = layers(attn_drop=0.5)
    x = torch.randn(2, 5, 32)
    assert not torch.equal(ours(x), ours(x))
    ours.eval()
    assert torch.equal(ours(x), ours(x))


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attn_mask": LowerTriangularMask()}, TypeError, "attn_mask must be a tensor.*got LowerTriangularMask"),
        (
            {"attn_mask": torch.ones(5, 5).int()},
            TypeError,
            "attn_mask must be boolean or floating point, got torch.int32",
        ),
        ({"attn_mask": torch.zeros(5, 5, requires_grad=True)}, ValueError, "attn_mask must not require a gradient"),
        ({"attn_mask": torch.zeros(5, 6)}, ValueError, r"broadcast to .* = \[2, 8, 5, 5\], got \[5, 6\]"),
        ({"attn_mask": torch.zeros(1, 2, 8, 5, 5)}, ValueError, "attn_mask must broadcast"),
        ({"attn_mask": torch.zeros(5, 5), "is_causal": True}, ValueError, "attn_mask and is_causal exclude"),
    ],
)
def test_a_mask_that_cannot_be_honored_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        XFormersAttention(32)(torch.randn(2, 5, 32), **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mask", masks(1, 1, 1))
def test_on_a_gpu_it_computes_what_timms_does(settings, mask):
    pytest.importorskip("xformers")
    theirs, ours = (layer.cuda().half().eval() for layer in layers(**settings))
    reference, _ = (layer.cuda().double().eval() for layer in layers(**settings))
    reference.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 65, 32, device="cuda").half().requires_grad_()
    given = masks(3, ours.num_heads, 65)[mask]
    given = None if given is None else given.cuda()
    halved = given if given is None or given.dtype == torch.bool else given.half()
    doubled = given if given is None or given.dtype == torch.bool else halved.double()
    grad_y = torch.randn(3, 65, ours.proj.out_features, device="cuda").half()
    results = []
    for layer, leaf, bias in ((ours, x, halved), (theirs, x, halved), (reference, x.detach().double(), doubled)):
        leaf = leaf.detach().requires_grad_()
        y = layer(leaf, bias)
        results.append((y, *torch.autograd.grad(y, leaf, grad_y.to(y.dtype))))
    for got, plain, want in zip(*results, strict=True):
        assert_close(got, want, plain=plain)
