"""GEMA and the activation frequency: what is counted, once, and where it goes."""

import pytest
import torch
from torch import nn

from assertions import assert_close
from dexcore.nn import DEXMlp, discard_load, record_load, set_mode, set_noise_std, share_load, update_directors
from dexcore.ops import reference


def make(width=8, experts=5):
    layer = DEXMlp(width, 12, num_experts=experts)
    with torch.no_grad():
        layer.router.weight.normal_()
        for pool, _ in layer.expert_director_pairs():
            pool += torch.randn_like(pool)
    return layer


def omega(gates, indices, experts=5):
    load = torch.zeros(experts, dtype=torch.float64)
    for b in range(gates.shape[0]):
        for j in range(gates.shape[1]):
            load[indices[b, j]] += gates[b, j].double()
    return load / load.sum()


def test_directors_and_frequency_move_as_the_method_says():
    layer = make()
    layer.router.activation_frequency.copy_(torch.rand(5))
    frequency = layer.router.activation_frequency.double()
    layer(torch.randn(7, 3, 8))
    share = omega(layer.routing.gates.detach(), layer.routing.indices)
    expected = [reference.group_ema(director, pool, share, 0.9) for pool, director in layer.expert_director_pairs()]
    update_directors(layer, 0.9)
    for (_, director), want in zip(layer.expert_director_pairs(), expected, strict=True):
        assert_close(director, want)
    assert_close(layer.router.activation_frequency, 0.99 * frequency + 0.01 * share)


def test_the_load_is_consumed():
    layer = make()
    with pytest.raises(RuntimeError, match="no training forward"):
        update_directors(layer, 0.9)
    layer(torch.randn(2, 3, 8))
    update_directors(layer, 0.9)
    for call in (lambda: update_directors(layer, 0.9), lambda: record_load(layer)):
        with pytest.raises(RuntimeError, match="no training forward"):
            call()
    layer.eval()
    layer(torch.randn(2, 3, 8))
    with pytest.raises(RuntimeError, match="no training forward"):
        update_directors(layer, 0.9)


def test_recorded_micro_batches_equal_the_whole_batch():
    images = torch.randn(9, 3, 8)
    torch.manual_seed(1)
    whole = make()
    torch.manual_seed(1)
    parts = make()
    whole(images)
    update_directors(whole, 0.9)
    for micro in images.split([4, 3, 2]):
        parts(micro)
        record_load(parts)
    update_directors(parts, 0.9)
    for name, tensor in whole.state_dict().items():
        assert_close(parts.state_dict()[name], tensor, name=name)


def test_shared_loads_are_what_was_recorded_and_what_the_directors_follow():
    model = nn.Sequential(make(experts=5), make(experts=2))
    shares = []
    for batch in torch.randn(7, 3, 8).split([4, 3]):
        model(batch)
        record_load(model)
        shares.append([omega(m.routing.gates.detach(), m.routing.indices, m.num_experts) * len(batch) for m in model])
    summed, loads = share_load(model, torch.tensor([2.0, 3.0]))
    assert summed.tolist() == [2, 3]
    for load, first, second in zip(loads, *shares, strict=True):
        assert_close(load, first + second)
    update_directors(model, 0.9)
    for layer, load in zip(model, loads, strict=True):
        assert_close(layer.router.activation_frequency, 0.01 * load / 7)
    with pytest.raises(RuntimeError, match="no training forward"):
        share_load(model, torch.zeros(1))


def test_loads_that_were_not_recorded_are_not_shared():
    layer = make()
    layer(torch.randn(2, 3, 8))
    with pytest.raises(RuntimeError, match="needs a call of record_load before it"):
        share_load(layer, torch.zeros(1))


def test_a_forward_is_counted_once_however_often_it_ran():
    layer, twin = make(), None
    images = torch.randn(4, 3, 8)
    layer(images)
    layer(images)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    update_directors(layer, 0.9)
    twin = make()
    twin.load_state_dict(state)
    twin(images)
    update_directors(twin, 0.9)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor), name


def test_a_discarded_step_leaves_no_trace():
    layer = make()
    layer(torch.randn(2, 3, 8))
    record_load(layer)
    layer(torch.randn(2, 3, 8))
    discard_load(layer)
    with pytest.raises(RuntimeError, match="no training forward"):
        update_directors(layer, 0.9)
    layer(torch.randn(2, 3, 8))
    expected = omega(layer.routing.gates.detach(), layer.routing.indices)
    update_directors(layer, 0.9)
    assert_close(layer.router.activation_frequency, 0.01 * expected)


def test_an_empty_batch_leaves_the_layer_as_it_is():
    layer = make()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    layer(torch.randn(0, 3, 8))
    update_directors(layer, 0.5)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_idle_expert_does_not_pull_the_director():
    layer = make()
    with torch.no_grad():
        layer.router.weight[3] = -1e3  # never chosen by positive class tokens
        layer.experts.fc1.weight[3] = 1e6
    layer(torch.rand(6, 3, 8))
    assert 3 not in layer.routing.indices
    update_directors(layer, 0.5)
    assert layer.director.fc1.weight.abs().max() < 1e3


def test_layers_with_other_pools_are_updated_together():
    model = nn.Sequential(make(experts=5), make(experts=2))
    model(torch.randn(4, 3, 8))
    shares = [omega(layer.routing.gates.detach(), layer.routing.indices, layer.num_experts) for layer in model]
    update_directors(model, 0.9)
    for layer, share in zip(model, shares, strict=True):
        assert_close(layer.router.activation_frequency, 0.01 * share)


def test_noise_sees_the_frequency_from_before_the_forward():
    layer = make()
    set_noise_std(layer, 1.0)
    layer(torch.randn(4, 3, 8))
    assert (layer.router.activation_frequency == 0).all()
    update_directors(layer, 0.9)
    assert_close(layer.router.activation_frequency.sum(), torch.tensor(0.01))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_director_is_refused(dtype):
    layer = make().to(dtype)
    layer(torch.randn(2, 3, 8, dtype=dtype))
    with pytest.raises(ValueError, match="keep the parameters in float32"):
        update_directors(layer, 0.99)


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="no DEX layer"):
        update_directors(nn.Linear(2, 2), 0.9)
    layer = make()
    layer(torch.randn(2, 3, 8))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(ValueError, match="momentum must be in"):
        update_directors(layer, 2.0)
    with pytest.raises(TypeError, match="group must be a process group"):
        update_directors(layer, 0.9, group="gloo")
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    update_directors(layer, 0.9)  # the refused call consumed nothing
    layer(torch.randn(2, 3, 8))
    record_load(layer)
    with pytest.raises(RuntimeError, match="no training forward since the last call"):
        record_load(layer)
    with pytest.raises(TypeError, match="beside must be a tensor"):
        share_load(layer, [1.0])
    with pytest.raises(TypeError, match="group must be a process group"):
        share_load(layer, torch.zeros(1), group="gloo")
    set_mode(layer, "director")
    with pytest.raises(RuntimeError, match="director mode"):
        update_directors(layer, 0.9)
