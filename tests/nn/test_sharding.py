"""DEX layers cut by FSDP2: the same rows of experts and director on every process, and the models that only fit so."""

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.distributed as dist
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from dexcore.models import DEXVisionTransformer
from dexcore.nn import DEXMlp, aux_losses, left_out, set_mode, shard_placement, share_load, update_directors
from dexcore.shards import own_share

# width, depth, heads, experts, processes
SIZES = {"width 192": (192, 2, 3, 8, 6), "ViT-H": (1280, 32, 16, 8, 64), "SwiGLU": (192, 2, 3, 8, 6)}
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}


@pytest.fixture
def sharded(request):
    """A model on the meta device, cut for as many processes, of which this is one; no number exists."""
    width, depth, heads, experts, processes = SIZES[request.param]
    dist.init_process_group("fake", store=FakeStore(), rank=processes - 1, world_size=processes)
    try:
        with torch.device("meta"):
            sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "num_experts": experts}
            model = DEXVisionTransformer(224, 14, **sizes, **(SWIGLU if request.param == "SwiGLU" else {}))
        mesh, placement = init_device_mesh("cpu", (processes,)), shard_placement(model)
        whole = sum(parameter.numel() for parameter in model.parameters())
        for block in model.blocks:
            fully_shard(block, mesh=mesh, shard_placement_fn=placement)
        fully_shard(model, mesh=mesh, shard_placement_fn=placement)
        yield model, whole, processes
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("sharded", SIZES, indirect=True)
def test_a_process_holds_the_same_rows_of_experts_and_director(sharded):
    model, _, processes = sharded
    for layer in (module for module in model.modules() if isinstance(module, DEXMlp)):
        for expert, director in layer.expert_director_pairs():
            rows = director.shape[0] // processes
            assert own_share(director).shape == (rows, *director.shape[1:])
            assert own_share(expert).shape == (layer.num_experts, rows, *director.shape[1:])
            (of_expert,), (of_director,) = expert.placements, director.placements
            assert (of_expert.dim, of_director.dim) == (1, 0)


@pytest.mark.parametrize("sharded", ["ViT-H"], indirect=True)
def test_a_process_holds_its_share_and_no_more(sharded):
    model, whole, processes = sharded
    assert whole > 3.9e9
    own = sum(own_share(parameter).numel() for parameter in model.parameters())
    assert own <= 1.001 * whole / processes
    set_mode(model, "director")  # what is frozen is a shard as well
    assert sum(own_share(p).numel() for p in model.parameters() if p.requires_grad) < own / 5


@pytest.mark.parametrize("sharded", ["width 192", "SwiGLU"], indirect=True)
def test_directors_follow_and_are_counted_in_shards(sharded):
    model, _, _ = sharded
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            own_share(parameter).fill_(2.0 if parameter.requires_grad else 0.0)
    layers = [module for module in model.modules() if isinstance(module, DEXMlp)]
    for layer in layers:
        layer.router.activation_frequency.fill_(1.0)
        layer.record.recorded = torch.ones(layer.num_experts)
    own_share(layers[0].experts.fc1.weight).data[1, 0, :3] = float("nan")
    update_directors(model, 0.5, group=dist.new_group([dist.get_rank()]))
    assert [counts.elements for counts in left_out(model)] == [3, 0]
    director = own_share(layers[1].director.fc1.weight)
    assert torch.equal(director, torch.full_like(director, 1.0))


def test_a_model_that_made_a_step_can_be_let_go():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = DEXVisionTransformer(32, 16, embed_dim=16, depth=2, num_heads=2, num_experts=4)
        mesh = init_device_mesh("cpu", (2,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, shard_placement_fn=shard_placement(model))
        fully_shard(model, mesh=mesh)
        (model(torch.rand(2, 3, 32, 32)).square().sum() + sum(aux_losses(model))).backward()
        update_directors(model, 0.9)
        alive = weakref.ref(model)
        del model, block
        gc.collect()
        assert alive() is None
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("director_layer", [SwiGLU, partial(GluMlp, gate_last=True)])
def test_a_director_with_other_rows_than_its_experts_is_refused_by_name(director_layer):
    model = nn.Sequential(DEXMlp(8, 12), DEXMlp(8, 12, act_layer=nn.SiLU, director_layer=director_layer))
    with pytest.raises(
        ValueError, match=r"^1: a (SwiGLU|GluMlp) director has gate and value apart, or in another order"
    ):
        shard_placement(model)


def test_what_is_whole_is_this_process_s_own():
    tensor = torch.ones(3)
    assert own_share(tensor) is tensor


def test_directors_in_host_memory_follow_by_loads_that_a_gpu_counted():
    with FakeTensorMode():  # tensors without numbers, on devices that are not here
        layer = DEXMlp(8, 12, num_experts=4)
        for module in layer.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to("cuda"))
        layer.record.add(torch.ones(4, device="cuda"))
        share_load(layer, torch.ones(3, device="cuda"))
        update_directors(layer, 0.9)
        assert layer.director.fc1.weight.device.type == "cpu"
        assert layer.router.activation_frequency.device.type == "cuda"
