"""aux_losses over depth, and over processes."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from assertions import assert_close
from dexcore.nn import (
    DEXMlp,
    aux_losses,
    left_out,
    param_groups,
    record_load,
    set_aux,
    set_mode,
    share_load,
    update_directors,
)


def stack(depth=3, experts=(4, 3, 2)):
    torch.manual_seed(0)
    layers = nn.Sequential(*(DEXMlp(8, 12, num_experts=experts[i], top_k=1 + i % 2) for i in range(depth)))
    with torch.no_grad():
        for layer in layers:
            layer.router.weight.normal_()
            for pool, _ in layer.expert_director_pairs():
                pool += 0.3 * torch.randn_like(pool)
    return layers


def test_deeper_layers_are_aligned_harder():
    model = stack()
    model(torch.randn(5, 4, 8))
    losses = aux_losses(model)
    align = [layer.routing.align_loss.double() for layer in model]
    balance = [layer.routing.balance_loss.double() for layer in model]
    assert_close(losses.align, (align[0] / 3 + align[1] / 2 + align[2] / 1) / 3)
    assert_close(losses.balance, sum(balance) / 3)


def test_balance_is_one_at_uniform_use_and_r_at_collapse():
    layer = DEXMlp(8, 12, num_experts=4)
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(torch.randn(5, 4, 8))
    assert_close(layer.routing.balance_loss, torch.tensor(1.0))
    with torch.no_grad():
        layer.router.weight[2] = 1e4
    layer(torch.rand(5, 4, 8))
    assert_close(layer.routing.balance_loss, torch.tensor(4.0))


def test_another_group_than_a_process_group_is_refused_by_name():
    model = stack()
    model(torch.randn(2, 3, 8))
    with pytest.raises(TypeError, match="group must be a process group"):
        aux_losses(model, "gloo")


def test_without_a_forward_it_says_so():
    with pytest.raises(RuntimeError, match="needs a forward"):
        aux_losses(stack())
    with pytest.raises(ValueError, match="no DEX layer"):
        aux_losses(nn.Linear(2, 2))
    model = stack()
    set_mode(model, "director")
    model(torch.randn(2, 3, 8))
    with pytest.raises(RuntimeError, match="director mode"):
        aux_losses(model)


def test_an_evaluation_in_between_does_not_lose_the_gradient_in_silence():
    model, images = stack(), torch.randn(2, 3, 8)
    model(images)
    model.eval()(images)
    for _ in (model, model.train()):
        with pytest.raises(RuntimeError, match=r'ran in eval mode.*set_aux\(model, "always"\)'):
            aux_losses(model)


def test_asked_for_in_eval_the_losses_are_there_without_gradient():
    model, images = stack(), torch.randn(2, 3, 8)
    model(images)
    trained = aux_losses(model)
    set_aux(model, "always")
    model.eval()(images)
    losses = aux_losses(model)
    assert not losses.align.requires_grad
    assert not losses.balance.requires_grad
    for a, b in zip(losses, trained, strict=True):
        assert_close(a, b)
    model.train()
    with pytest.raises(RuntimeError, match="recorded no gradient"):
        aux_losses(model)


def test_switched_off_training_has_no_losses_and_says_so():
    model = stack()
    set_aux(model, "never")
    model(torch.randn(2, 3, 8)).sum().backward()
    with pytest.raises(RuntimeError, match=r'set_aux\(model, "never"\) asked'):
        aux_losses(model)
    update_directors(model, 0.9)  # the use of experts is counted all the same
    with pytest.raises(ValueError, match="when must be one of"):
        set_aux(model, "sometimes")


def test_no_image_has_losses_of_zero():
    model = stack()
    model(torch.randn(0, 3, 8))
    assert aux_losses(model) == (0, 0)


@pytest.mark.parametrize("use", [aux_losses, partial(param_groups, weight_decay=0.1)])
def test_the_class_tokens_pool_in_a_timm_model_without_one_is_refused(use):
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "class_token": False}
    wrong = nn.Sequential(VisionTransformer(**size, global_pool="avg", mlp_layer=partial(DEXMlp, num_experts=2)))
    wrong(torch.randn(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r'0\.blocks\.0\.mlp has pool="cls", but VisionTransformer has no class token'):
        use(wrong)
    layer = partial(DEXMlp, num_experts=2, pool="mean")
    right = VisionTransformer(**size, global_pool="avg", mlp_layer=layer)
    right(torch.randn(2, 3, 16, 16))
    use(right)


def _check_alone(images, group):
    """A process that gives a group of one sees its own images alone."""
    shared, alone = stack(), stack()
    for model in (shared, alone):
        model(images)
    assert not torch.equal(aux_losses(alone, group).balance, aux_losses(shared).balance)
    record_load(alone)
    summed, loads = share_load(alone, torch.ones(1), group)
    assert summed == 1
    assert all(load.sum().isclose(torch.tensor(float(len(images)))) for load in loads)
    update_directors(alone, 0.5)  # the load is shared already
    assert_close(alone[0].router.activation_frequency, 0.01 * loads[0] / loads[0].sum())
    update_directors(shared, 0.5)


def _rank(rank, folder, images):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = stack()
    y = model(images[rank * 3 : rank * 3 + 3])
    losses = aux_losses(model)  # the default group
    (losses.balance + losses.align + 0 * y.sum()).backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            dist.all_reduce(parameter.grad)
            parameter.grad /= 2
    update_directors(model, 0.5)
    values = torch.stack([losses.align.detach(), losses.balance.detach()])
    dist.all_reduce(values)
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    _check_alone(images[rank * 3 : rank * 3 + 3], dist.new_subgroups(1)[0])
    torch.save((values / 2, grads, model.state_dict()), f"{folder}/{rank}.pt")
    before = [tensor.clone() for tensor in model.state_dict().values()]
    poison = float("nan") if rank == 0 else 0.0  # an image of one rank alone
    model(images[rank * 3 : rank * 3 + 3] + poison)
    update_directors(model, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))
    assert left_out(model) == [(1, 0)] * 3
    dist.destroy_process_group()


def test_two_ranks_have_the_global_losses_gradients_and_directors(tmp_path):
    images = torch.randn(6, 4, 8)
    mp.spawn(_rank, (str(tmp_path), images), nprocs=2)
    model = stack()
    y = model(images)
    losses = aux_losses(model)
    (losses.balance + losses.align + 0 * y.sum()).backward()
    update_directors(model, 0.5)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for values, grads, state in ranks:
        assert_close(values, torch.stack([losses.align, losses.balance]))
        for got, parameter in zip(grads, (p for p in model.parameters() if p.requires_grad), strict=True):
            assert_close(got, parameter.grad, bound=1e-4)
        for name, tensor in model.state_dict().items():
            assert_close(state[name], tensor, name=name)
    for name, tensor in ranks[0][2].items():
        assert torch.equal(tensor, ranks[1][2][name]), name
