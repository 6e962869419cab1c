"""What a model's description says, and leaves to the machine."""

import pytest
import torch
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer

from dexcore.models import DEXVisionTransformer, NotDescribableError
from dexcore.models.vit import build_encoder, describe_encoder
from dexcore.nn import DEXBlock, XFormersAttention

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}


class OtherAttention(Attention):
    pass


def test_a_model_with_xformers_attention_is_saved_and_opens_with_timms_anywhere(tmp_path):
    images = torch.randn(2, 3, 32, 32)
    model = DEXVisionTransformer(**TINY, num_experts=3, qk_norm=True, attn_layer=XFormersAttention)
    model.save_pretrained(tmp_path)
    again = DEXVisionTransformer.from_pretrained(tmp_path)
    assert all(type(block.attn) is Attention for block in again.blocks)
    plain = DEXVisionTransformer(**TINY, num_experts=3, qk_norm=True).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(again(images), plain(images))
    # And the way back: built with it, the weights go in.
    built = DEXVisionTransformer(**TINY, num_experts=3, qk_norm=True, attn_layer=XFormersAttention)
    built.load_state_dict(again.state_dict())
    assert torch.equal(built.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)


@pytest.mark.parametrize("block_fn", [DEXBlock, None])
def test_stock_models_with_xformers_attention_are_described_as_with_timms(block_fn):
    blocks = {"block_fn": block_fn} if block_fn else {}
    described = [
        describe_encoder(VisionTransformer(**TINY, **blocks, attn_layer=layer))
        for layer in (XFormersAttention, Attention)
    ]
    assert described[0] == described[1]
    assert all(type(block.attn) is Attention for block in build_encoder(described[0]).blocks)


def test_another_attention_is_refused_by_name():
    with pytest.raises(NotDescribableError, match=r"attn_layer.*Attention or XFormersAttention, got OtherAttention"):
        describe_encoder(DEXVisionTransformer(**TINY, num_experts=3, attn_layer=OtherAttention))
