"""Masks over experts: what runs, what stands in, and that nothing of it is left afterwards."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from dexcore.models import DEXVisionTransformer
from dexcore.nn import DEXMlp, aux_losses, record_load, set_expert_mask, set_mode, set_noise_std, set_router_noise
from nn.tiny import IMAGES, TINY, layers, shake

B, N, D = 6, 3, 8


def layer(experts=4, top_k=2, **settings):
    torch.manual_seed(0)
    return shake(DEXMlp(D, 12, num_experts=experts, top_k=top_k, **settings), 0.5).eval()


def tokens():
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(1))


def vit(**settings):
    torch.manual_seed(0)
    return shake(DEXVisionTransformer(**TINY, num_experts=(4, 3), **settings)).eval()


KEEP = [[True, False, True, True], [False, True, True]]


def by_hand(net, x, mask, instead):
    """The masked layer in the plainest words."""
    logits = x[:, 0].double() @ net.router.weight.double().T / net.tau
    if instead == "reroute":
        logits = logits.masked_fill(~mask, -torch.inf)
    probs = logits.softmax(-1)
    gates, indices = probs.topk(net.top_k)
    gates = gates / gates.sum(-1, keepdim=True)
    y = torch.zeros(x.shape, dtype=torch.float64)
    for image in range(len(x)):
        for gate, index in zip(gates[image], indices[image], strict=True):
            if mask[index]:
                fc1, fc2 = net.experts.fc1, net.experts.fc2
                weights = (fc1.weight[index], fc1.bias[index], fc2.weight[index], fc2.bias[index])
            elif instead == "director":
                weights = (*net.director.fc1.parameters(), *net.director.fc2.parameters())
            else:
                continue
            w1, b1, w2, b2 = (w.double() for w in weights)
            hidden = nn.functional.gelu(x[image].double() @ w1.T + b1)
            y[image] += gate * (hidden @ w2.T + b2)
    return y


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_each_variant_is_what_its_words_say(backend, instead):
    net, x, mask = layer(backend=backend), tokens(), torch.tensor([True, False, True, False])
    assert (net(x).detach() - by_hand(net, x, mask, instead)).abs().max() > 0.01  # the mask matters here
    with set_expert_mask(net, [mask], instead), torch.no_grad():
        torch.testing.assert_close(net(x).double(), by_hand(net, x, mask, instead), atol=1e-5, rtol=1e-5)
        routing = net.routing
    if instead == "reroute":
        assert set(routing.indices.unique().tolist()) == {0, 2}
        torch.testing.assert_close(routing.gates.sum(-1), torch.ones(B))
        assert (routing.probs[:, [1, 3]] == 0).all()
    else:
        assert (routing.gates[~mask[routing.indices]] == 0).all()
        assert (routing.gates.sum(-1) < 1).any()


def test_a_masked_expert_is_not_chosen_where_the_others_underflow_to_probability_zero():
    net = layer(experts=3, top_k=2)
    with torch.no_grad():
        net.router.weight.copy_(torch.stack([torch.zeros(D), torch.ones(D), -torch.ones(D)]) * 1e4)
    x = torch.ones(2, 1, D)
    with set_expert_mask(net, [[False, True, True]]):
        net(x)
    assert net.routing.indices.tolist() == [[1, 2]] * 2
    assert net.routing.gates.tolist() == [[1, 0]] * 2


@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_outputs_are_bit_equal_afterwards_also_after_an_exception(instead):
    model = vit()
    before, names = model(IMAGES), set(model.state_dict())

    def stops():
        with set_expert_mask(model, KEEP, instead):
            assert not torch.equal(model(IMAGES), before)
            assert set(model.state_dict()) == names
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stops()
    assert torch.equal(model(IMAGES), before)
    assert [(layer.kept_experts, layer.instead) for layer in layers(model)] == [(None, "reroute")] * 2


def test_masks_nest_and_none_lifts_them():
    model = vit()
    free = model(IMAGES)
    with set_expert_mask(model, KEEP):
        masked = model(IMAGES)
        with set_expert_mask(model, None):
            assert torch.equal(model(IMAGES), free)
        with set_expert_mask(model, [[False, True, True, False], [True] * 3], "zero"):
            assert not torch.equal(model(IMAGES), masked)
        assert torch.equal(model(IMAGES), masked)


def test_it_acts_at_once_and_until_it_is_lifted():
    model = vit()
    free = model(IMAGES)
    set_expert_mask(model, KEEP)
    assert not torch.equal(model(IMAGES), free)
    set_expert_mask(model, None)
    assert torch.equal(model(IMAGES), free)


def test_a_mask_that_keeps_all_is_none_and_lists_arrays_and_tensors_are_alike():
    model = vit()
    free = model(IMAGES)
    with set_expert_mask(model, [[True] * 4, np.ones(3, bool)]):
        assert torch.equal(model(IMAGES), free)
    found = []
    for given in (KEEP, [np.array(one) for one in KEEP], [torch.tensor(one) for one in KEEP]):
        with set_expert_mask(model, given):
            found.append(model(IMAGES))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_rerouting_among_the_chosen_changes_nothing():
    net, x = layer(), tokens()[:1]
    free = net(x)
    keep = torch.zeros(4, dtype=torch.bool)
    keep[net.routing.indices[0]] = True
    with set_expert_mask(net, [keep]):
        torch.testing.assert_close(net(x), free)


def test_director_instead_of_all_experts_is_the_director():
    net, x = layer(), tokens()
    with set_expert_mask(net, [[False] * 4], "director"):
        torch.testing.assert_close(net(x), net.director(x))
    with set_expert_mask(net, [[False] * 4], "zero"):
        assert (net(x) == 0).all()


@pytest.mark.parametrize("instead", ["reroute", "director"])
def test_under_autocast_types_stay_and_numbers_are_near(instead):
    net, x = layer(), tokens()
    with set_expert_mask(net, [KEEP[0]], instead), torch.no_grad():
        expected = net(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = net(x)
            assert set(net.routing.indices.unique().tolist()) <= ({0, 2, 3} if instead == "reroute" else set(range(4)))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_in_training_losses_and_gradients_are_those_of_what_ran(instead):
    model = nn.Sequential(layer(), nn.LayerNorm(D), layer()).train()
    set_noise_std(model, 0.5)
    set_router_noise(model, [torch.randn(B, 4) for _ in range(2)])
    with set_expert_mask(model, [[True, False, True, True], [True] * 4], instead):
        out = model(tokens())
        losses = aux_losses(model)
        (out.square().mean() + losses.align + losses.balance).backward()
        record_load(model)
    assert (model[0].experts.fc1.weight.grad[1] == 0).all()
    assert model[0].experts.fc1.weight.grad[0].abs().sum() > 0
    assert model[2].experts.fc1.weight.grad[1].abs().sum() > 0
    if instead == "reroute":
        assert (model[0].router.weight.grad[1] == 0).all()


def test_in_director_mode_a_mask_changes_nothing():
    model = vit()
    set_mode(model, "director")
    free = model(IMAGES)
    with set_expert_mask(model, KEEP):
        assert torch.equal(model(IMAGES), free)


def test_a_copy_and_a_pickle_carry_the_mask_and_the_model_moves_with_it():
    model = vit()
    with set_expert_mask(model, KEEP):
        masked, twin = model(IMAGES), copy.deepcopy(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        assert torch.equal(twin(IMAGES), masked)
        assert torch.equal(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)(IMAGES), masked)
        model.double()
        assert layers(model)[0].kept_experts.dtype == torch.int64
        model(IMAGES.double())
        assert layers(model.to("meta"))[0].kept_experts.is_meta
    assert not torch.equal(twin(IMAGES), vit()(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_a_compiled_model_follows_the_mask_of_now(instead):
    model = nn.Sequential(layer(), nn.LayerNorm(D), layer())
    compiled, x = torch.compile(model, backend="aot_eager"), tokens()
    given = [None, *([[i != out for i in range(4)], [i != other for i in range(4)]] for out, other in ((0, 1), (1, 3)))]
    given += [[[True, False, True, False]] * 2, None]
    with torch.no_grad():
        for keep in given:
            with set_expert_mask(model, keep, instead):
                torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_an_exported_program_computes_what_the_masked_model_did(instead):
    model = vit()
    with set_expert_mask(model, KEEP, instead):
        expected, program = model(IMAGES), torch.export.export(model, (IMAGES,)).module()
    torch.testing.assert_close(program(IMAGES), expected)
    assert not torch.allclose(program(IMAGES), model(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_onnx_computes_what_the_masked_model_did(instead, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, path = vit(), tmp_path / "model.onnx"
    with set_expert_mask(model, KEEP, instead), torch.no_grad():
        expected = model(IMAGES)
        torch.onnx.export(model, (IMAGES,), path, dynamo=True, verbose=False)
    (found,) = runtime.InferenceSession(path).run(None, {"x": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("instead", ["reroute", "zero", "director"])
def test_on_a_gpu_a_masked_forward_waits_for_nothing_and_agrees_with_the_cpu(instead):
    model = vit()
    with set_expert_mask(model, KEEP, instead), torch.no_grad():
        expected = model(IMAGES)
        model.cuda()
        for block in model.blocks:
            block.mlp.backend = "triton"  # in float32 "auto" is eager, which waits
        images = IMAGES.cuda()
        model(images)  # kernels are compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = model(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (KEEP[:1], ValueError, "keep must hold one list for each of the 2 DEX layers, got 1"),
        (True, TypeError, "keep must be one list of bools for each DEX layer, or None, got bool"),
        ([KEEP[0], [True] * 4], ValueError, r"keep\[1\] must be 3 bools, got shape \[4\]"),
        ([KEEP[0], [1, 0, 1]], TypeError, r"keep\[1\] must be 3 bools, got numbers of type torch.int64"),
        ([KEEP[0], [[True], [True, False]]], TypeError, r"keep\[1\] must be 3 bools, got \[\["),
        ([KEEP[0], None], TypeError, r"keep\[1\] must be 3 bools, got None"),
        ([[True, False, False, False], [True] * 3], ValueError, r"keep\[0\] leaves 1 of 4 experts, .* top_k = 2"),
    ],
)
def test_what_cannot_be_masked_is_refused_and_changes_no_layer(keep, error, message):
    model = vit()
    with set_expert_mask(model, KEEP):
        masked = model(IMAGES)
        with pytest.raises(error, match=message):
            set_expert_mask(model, keep)
        assert torch.equal(model(IMAGES), masked)


def test_models_without_experts_and_unknown_words_are_refused():
    with pytest.raises(ValueError, match="no DEX layer"):
        set_expert_mask(nn.Linear(2, 2), [])
    with pytest.raises(ValueError, match="instead must be one of"):
        set_expert_mask(vit(), KEEP, "drop")
