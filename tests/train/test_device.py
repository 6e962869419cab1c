"""Device and precision."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.profiler import ProfilerActivity, profile

from assertions import assert_close
from dexcore.train import device
from dexcore.train.config import ConfigError
from dexcore.train.device import autocast, choose_device, fast_bf16, fast_layers

_CPU = torch.device("cpu")


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(ConfigError, match=r"run\.device: expected auto or a device that is here, got 'quantum'"):
        choose_device("quantum")


@pytest.mark.parametrize("name", ["meta", "privateuseone", "fpga"])
def test_a_device_that_pytorch_names_but_that_cannot_compute_is_refused_in_a_line(name):
    with pytest.raises(
        ConfigError, match=rf"run\.device: expected auto or a device that is here, got '{name}'"
    ) as told:
        choose_device(name)
    assert len(str(told.value)) < 300


def test_auto_is_a_device_that_works():
    torch.zeros(1, device=choose_device("auto"))
    assert choose_device("cpu") == _CPU


def test_processes_on_one_machine_get_a_device_each():
    assert choose_device("cpu", local_rank=3) == _CPU
    with pytest.raises(ConfigError, match=r"expected auto, cpu or cuda where several processes .* got 'cuda:1'"):
        choose_device("cuda:1", local_rank=0)
    with pytest.raises(ConfigError, match=r"'cuda' for process 77 of this machine"):
        choose_device("cuda", local_rank=77)


@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True), ("auto", fast_bf16(_CPU))])
def test_precision_decides_what_a_product_is_computed_in(precision, bf16):
    with autocast(_CPU, precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if bf16 else torch.float32)


@pytest.mark.parametrize(("precision", "in_parts"), [("bf16", True), ("fp32", False)])
def test_attention_runs_in_parts_where_the_fused_kernel_is_slow_and_fused_again_after(precision, in_parts):
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2)
    flags = [block.attn.fused_attn for block in model.blocks]
    assert all(flags)
    with fast_layers(model, _CPU, precision):
        assert [block.attn.fused_attn for block in model.blocks] == [not in_parts] * 2
    assert [block.attn.fused_attn for block in model.blocks] == flags


@pytest.fixture
def onednn_is_faster(monkeypatch):
    monkeypatch.setattr(device, "faster_by_onednn", lambda device: True)


def calls_onednn(run):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    return "mkldnn::_linear_pointwise" in {event.name for event in profiler.events()}


@pytest.mark.usefixtures("onednn_is_faster")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dense_layers_run_by_onednn_where_it_is_faster_and_as_before_after(precision):
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2)
    images, bound = torch.randn(2, 3, 16, 16), 1e-4 if precision == "fp32" else 0.3

    def results():
        with autocast(_CPU, precision):
            y = model(images)
        return [y, *torch.autograd.grad(y.float().square().sum(), [*model.parameters()])]

    expected = results()
    with fast_layers(model, _CPU, precision), fast_layers(model, _CPU, precision):
        assert calls_onednn(results)
        for name, mine, plain in zip(("y", *dict(model.named_parameters())), results(), expected, strict=True):
            assert_close(mine, plain, bound=bound, name=name)
            assert mine.dtype == plain.dtype
    assert all(torch.equal(again, plain) for again, plain in zip(results(), expected, strict=True))
    assert not calls_onednn(results)


@pytest.mark.usefixtures("onednn_is_faster")
def test_only_plain_dense_layers_in_a_fitting_precision_run_by_onednn():
    class Own(nn.Linear):
        pass

    wrapped = nn.Linear(4, 4)
    own_forward = wrapped.forward = lambda x: x + 1
    x = torch.randn(2, 4)
    others = [(Own(4, 4), x), (wrapped, x), (nn.Linear(4, 4).double(), x.double()), (nn.Linear(4, 4), x[0])]
    for layer, given in others:
        with fast_layers(layer, _CPU, "fp32"):
            assert not calls_onednn(lambda layer=layer, given=given: layer(given))
    assert wrapped.forward is own_forward
    with fast_layers(others[-1][0], _CPU, "fp32"), autocast(_CPU, "bf16"):
        assert others[-1][0](x).dtype == torch.bfloat16
        assert others[-1][0](x[0]).dtype == torch.bfloat16
