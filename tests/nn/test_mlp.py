"""DEXMlp: timm's Mlp from outside, the method inside."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from timm.layers import GELUTanh, Mlp
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from assertions import assert_close
from dexcore.nn import DEXMlp, aux_losses, set_aux, set_mode, set_noise_std, set_router_noise, update_directors
from dexcore.ops import reference


def make(width=12, hidden=20, **kwargs):
    """A layer whose experts differ from one another."""
    layer = DEXMlp(width, hidden, **{"num_experts": 5, **kwargs})
    with torch.no_grad():
        for experts, _ in layer.expert_director_pairs():
            experts += 0.2 * torch.randn_like(experts)
        layer.router.weight.normal_()
    return layer


def parameters_of(layer):
    fc1, fc2, d1, d2 = layer.experts.fc1, layer.experts.fc2, layer.director.fc1, layer.director.fc2
    return (fc1.weight, fc1.bias, fc2.weight, fc2.bias), (d1.weight, d1.bias, d2.weight, d2.bias)


def by_reference(layer, x, noise=None):
    """Output, alignment and balance losses in float64, as the method says."""
    experts, director = parameters_of(layer)
    gates, indices, probs = reference.route(x, layer.router.weight, layer.top_k, layer.tau, noise, layer.pool)
    y, align = reference.dex_mlp(x, *experts, *director, gates, indices, layer.activation, layer.align)
    return y, align, reference.balance_loss(probs), gates, indices


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("align", ["kd", "cosine", "mse"])
def test_outputs_losses_and_gradients_are_the_methods(pool, align):
    layer = make(pool=pool, align=align)
    trained = [p for p in layer.parameters() if p.requires_grad]
    x = torch.randn(6, 7, 12, requires_grad=True)
    y = layer(x)
    y64, align64, balance64, gates64, indices64 = by_reference(layer, x)
    routing = layer.routing
    assert torch.equal(routing.indices, indices64)
    for name, got, want in (
        ("y", y, y64),
        ("gates", routing.gates, gates64),
        ("align", routing.align_loss, align64),
        ("balance", routing.balance_loss, balance64),
    ):
        assert_close(got, want, name=name)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad((y * dy).sum() + 3 * routing.align_loss + 2 * routing.balance_loss, [x, *trained])
    grads64 = torch.autograd.grad((y64 * dy).sum() + 3 * align64 + 2 * balance64, [x, *trained])
    for got, want in zip(grads, grads64, strict=True):
        assert_close(got, want)


def test_the_signature_begins_with_timms():
    ours, theirs = inspect.signature(DEXMlp).parameters, inspect.signature(Mlp).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert all(p.kind is p.KEYWORD_ONLY for name, p in ours.items() if name not in theirs)


def test_names_and_shapes_are_the_contract():
    layer = DEXMlp(12, 20, num_experts=5)
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert shapes == {
        "experts.fc1.weight": (5, 20, 12),
        "experts.fc1.bias": (5, 20),
        "experts.fc2.weight": (5, 12, 20),
        "experts.fc2.bias": (5, 12),
        "director.fc1.weight": (20, 12),
        "director.fc1.bias": (20,),
        "director.fc2.weight": (12, 20),
        "director.fc2.bias": (12,),
        "router.weight": (5, 12),
        "router.activation_frequency": (5,),
    }
    assert isinstance(layer.director.fc1, nn.Linear)
    assert not any(p.requires_grad for p in layer.director.parameters())
    assert (layer.router.activation_frequency == 0).all()
    assert layer.noise_std == 0.0
    assert layer.mode == "experts"
    assert layer.routing is None


def test_every_expert_begins_as_a_copy_of_the_director():
    for layer in (DEXMlp(12, 20), DEXMlp(12, 20, bias=False)):
        layer.reset_parameters()
        for experts, director in layer.expert_director_pairs():
            assert torch.equal(experts, director.expand_as(experts))
            assert director.abs().max() > 0


def test_meta_construction_then_init_fills_everything():
    with torch.device("meta"):
        layer = DEXMlp(12, 20)
    layer.to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(math.nan)
    layer.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in layer.state_dict().values())
    assert (layer.router.activation_frequency == 0).all()
    set_noise_std(layer, 0.5)
    assert layer(torch.randn(2, 3, 12)).isfinite().all()


def test_no_gradient_reaches_the_director():
    layer = make()
    layer(torch.randn(3, 4, 12)).sum().backward()
    assert all(p.grad is None for p in layer.director.parameters())
    assert layer.router.weight.grad.abs().max() > 0


def test_eval_is_detached_and_leaves_the_last_training_forward_countable():
    layer = make()
    layer(torch.randn(3, 4, 12))
    layer.eval()
    y = layer(x := torch.randn(3, 4, 12, requires_grad=True))
    assert y.requires_grad
    assert layer.routing.align_loss is None
    assert layer.routing.balance_loss is None
    assert all(t.grad_fn is None and not t.requires_grad for t in layer.routing[:3])
    assert_close(y, by_reference(layer, x)[0])
    update_directors(layer, 0.9)


def ops_called(function, *arguments):
    """Names of dexcore's ops in a call."""
    names = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if op.namespace == "dexcore":
                names.append(op._schema.name.removeprefix("dexcore::"))
            return op(*args, **(kwargs or {}))

    with Note():
        result = function(*arguments)
    return result, names


def test_eval_runs_no_director_unless_asked():
    layer, x = make().eval(), torch.randn(3, 4, 12)
    y, called = ops_called(layer, x)
    assert "expert_mlp" in called
    assert "dex_layer" not in called
    set_aux(layer, "always")
    again, called = ops_called(layer, x)
    assert "dex_layer" in called
    assert torch.equal(again, y)
    assert_close(layer.routing.align_loss, by_reference(layer, x)[1])
    assert not layer.routing.align_loss.requires_grad
    set_aux(layer, "never")
    _, called = ops_called(layer.train(), x)
    assert "dex_layer" not in called
    assert layer.routing.align_loss is None


def test_a_director_that_a_quantizer_replaced_is_refused_by_name_in_training_alone():
    layer, x = make(), torch.randn(3, 4, 12)
    want = layer.eval()(x)
    quantized = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear})
    assert torch.equal(quantized.eval()(x), want)
    quantized.train()
    with pytest.raises(TypeError, match=r"director.fc1 is a torch.ao.*Linear where a DEX layer needs an nn.Linear"):
        quantized(x)
    set_mode(quantized, "director")
    assert quantized(x).shape == x.shape


class LoRA(nn.Module):
    """W + B A, for every expert of [R, out, in]."""

    def __init__(self, weight, rank=2):
        super().__init__()
        experts, out_features, in_features = weight.shape
        self.a = nn.Parameter(torch.randn(experts, rank, in_features) / rank)
        self.b = nn.Parameter(torch.zeros(experts, out_features, rank))

    def forward(self, weight):
        return weight + self.b @ self.a


def test_experts_learn_through_a_parametrization_and_the_director_follows_what_they_compute():
    layer, x = make(), torch.randn(6, 4, 12)
    layer.requires_grad_(False)
    linear = layer.experts.fc1
    before = linear.weight.detach().clone()
    parametrize.register_parametrization(linear, "weight", LoRA(linear.weight))
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=1.0)
    layer(x).square().sum().backward()
    optimizer.step()
    director = layer.director.fc1.weight.clone()
    share = torch.zeros(5).scatter_add(0, layer.routing.indices.flatten(), layer.routing.gates.flatten()) / len(x)
    update_directors(layer, 0.5)
    assert torch.equal(linear.parametrizations.weight.original, before)
    assert not torch.equal(linear.weight, before)
    assert_close(layer.director.fc1.weight, reference.group_ema(director, linear.weight, share, 0.5))


def test_a_parametrized_director_is_not_updated_in_silence():
    layer = make()
    layer(torch.randn(3, 4, 12))
    parametrize.register_parametrization(layer.director.fc2, "weight", nn.Identity())
    with pytest.raises(TypeError, match=r"director.fc2 is parametrized.*would be lost"):
        update_directors(layer, 0.9)


def test_director_mode_is_the_director():
    layer = make()
    x = torch.randn(3, 4, 12)
    layer.set_mode("director")
    assert torch.equal(layer(x), layer.director(x))
    assert layer.routing is None
    assert all(p.requires_grad == name.startswith("director") for name, p in layer.named_parameters())
    layer.set_mode("experts")
    assert all(p.requires_grad != name.startswith("director") for name, p in layer.named_parameters())
    assert DEXMlp(12, mode="director").director.fc1.weight.requires_grad


def test_noise_pushes_rarely_used_experts_and_only_in_training():
    layer = make()
    x, normal = torch.randn(6, 4, 12), torch.randn(6, 5)
    layer.router.activation_frequency.copy_(torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0]))
    set_noise_std(layer, 0.7)
    set_router_noise(layer, [normal])
    layer(x)
    frequency = layer.router.activation_frequency.double()
    noise = 0.7 * (normal.double() + 1 - frequency / (frequency.sum() + 1e-6))
    _, _, probs = reference.route(x, layer.router.weight, 2, noise_br=noise)
    assert_close(layer.routing.probs, probs)
    layer.eval()
    layer(x)
    assert_close(layer.routing.probs, reference.route(x, layer.router.weight, 2)[2])


def test_given_noise_stays_until_replaced_and_none_draws():
    layer = make()
    x = torch.randn(6, 4, 12)
    set_noise_std(layer, 1.0)
    set_router_noise(layer, [torch.randn(6, 5)])
    layer(x)
    first = layer.routing.probs
    layer(x)
    assert torch.equal(layer.routing.probs, first)
    set_router_noise(layer, None)
    layer(x)
    second = layer.routing.probs
    layer(x)
    assert not torch.equal(layer.routing.probs, second)


def test_deepcopy_and_pickle_after_a_forward():
    layer = make()
    layer(torch.randn(3, 4, 12))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert twin.routing is None
        x = torch.randn(3, 4, 12)
        assert torch.equal(twin(x), layer(x))
    assert layer.routing is not None


def test_activation_checkpointing_gives_equal_gradients_and_counts_once():
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        layer = make()
        set_noise_std(layer, 1.0)
        x = torch.randn(6, 4, 12, requires_grad=True)
        y = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
        losses = aux_losses(layer)
        (y.square().sum() + losses.align + losses.balance).backward()
        grads = [x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]
        update_directors(layer, 0.5)
        results.append((grads, [t.clone() for t in layer.state_dict().values()]))
    for plain, again in zip(*results, strict=True):
        for a, b in zip(plain, again, strict=True):
            assert torch.equal(a, b)


def test_reentrant_checkpointing_raises_in_training():
    layer = make()
    x = torch.randn(6, 4, 12, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        y.sum().backward()
    checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        aux_losses(layer)


def test_a_compiled_forward_forgets_an_earlier_one_without_gradient():
    layer = make()
    x = torch.randn(3, 4, 12)
    with torch.no_grad():
        layer(x)
    torch.compile(layer, backend="aot_eager")(x)
    assert aux_losses(layer).align.requires_grad


@pytest.mark.slow
def test_inductor_agrees_with_eager():
    layer = make(width=32, hidden=64)
    x = torch.randn(3, 4, 32)
    results = []
    for forward in (torch.compile(layer, fullgraph=True), layer):
        layer.zero_grad()
        y = forward(x)
        losses = aux_losses(layer)
        (y.square().sum() + losses.align + losses.balance).backward()
        results.append([y, *losses, *(p.grad for p in layer.parameters() if p.requires_grad)])
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_a_training_forward_without_gradient_is_allowed():
    layer = make()
    with torch.no_grad():
        layer(torch.randn(3, 4, 12))
    layer(torch.randn(3, 4, 12)).sum().backward()
    update_directors(layer, 0.9)


def test_compiles_without_a_graph_break():
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4, 12, requires_grad=True)
    y = compiled(x)
    losses = aux_losses(layer)
    (y.square().sum() + losses.align + losses.balance).backward()
    got = [x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]
    x.grad = None
    layer.zero_grad()
    y_eager = layer(x)
    losses = aux_losses(layer)
    (y_eager.square().sum() + losses.align + losses.balance).backward()
    assert_close(y, y_eager)
    for a, b in zip(got, [x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_says_what_ran_its_experts_and_why(compiled):
    layer = make()
    assert layer.chosen_backend is None
    before = repr(layer)
    (torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer)(torch.randn(3, 4, 12))
    assert layer.chosen_backend == ("eager", "the fast path on the CPU")
    assert repr(layer) == before  # what is kept of a model is found by it


def test_a_layer_that_ran_its_director_names_no_backend_of_its_experts():
    layer = make()
    layer(torch.randn(3, 4, 12))
    assert layer.chosen_backend is not None
    layer.set_mode("director")
    layer(torch.randn(3, 4, 12))
    assert layer.chosen_backend is None


def test_a_layer_whose_backend_was_asked_for_says_that():
    layer = make(backend="triton")
    layer(torch.randn(3, 4, 12))
    assert layer.chosen_backend == ("triton", "asked for")


def test_a_falling_sigma_does_not_compile_again():
    layer = make()
    counter = CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for sigma in (1.0, 0.7, 0.3):
        set_noise_std(layer, sigma)
        compiled(torch.randn(3, 4, 12))
    assert counter.frame_count == 1


def test_exports_with_a_dynamic_batch():
    layer = make().eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (torch.randn(3, 4, 12),), dynamic_shapes=({0: batch},))
    x = torch.randn(7, 4, 12)
    with torch.no_grad():  # what is exported is inference, which sums the experts in another order than training
        assert torch.equal(program.module()(x), layer(x))


def test_autocast_routes_as_float32_does():
    layer = make(width=64, hidden=96)
    x = torch.randn(8, 5, 64)
    layer(x)
    routing = layer.routing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(layer.routing.gates, routing.gates)
    assert torch.equal(layer.routing.indices, routing.indices)
    assert layer.routing.gates.dtype == torch.float32
    (y.float().sum() + layer.routing.align_loss).backward()
    assert layer.experts.fc1.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("act_layer", "name"),
    [
        (nn.GELU, "gelu"),
        (GELUTanh, "gelu_tanh"),
        (lambda: nn.GELU("tanh"), "gelu_tanh"),
        (nn.ReLU, "relu"),
        (nn.SiLU, "silu"),
    ],
)
def test_activations_of_timm_models(act_layer, name):
    layer = make(act_layer=act_layer)
    assert layer.activation == name
    x = torch.randn(2, 3, 12)
    director = layer.director(x)
    assert_close(director, reference.mlp(x, *parameters_of(layer)[1], name))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"out_features": 7}, ValueError, r"out_features must equal in_features \(12\)"),
        ({"norm_layer": nn.LayerNorm}, ValueError, "norm_layer inside the MLP"),
        ({"act_layer": nn.Tanh}, ValueError, "act_layer must be one of .* got Tanh"),
        ({"bias": (True, False)}, ValueError, "bias must be True or False"),
        ({"drop": 0.1}, ValueError, "drop must be 0"),
        ({"drop": (0.0, 0.0)}, ValueError, "drop must be 0"),
        ({"use_conv": True}, ValueError, "use_conv"),
        ({"hidden_features": -3}, ValueError, "hidden_features must be at least 1"),
        ({"top_k": 9}, ValueError, r"top_k must lie in 1\.\.8 \(num_experts\), got 9"),
        ({"top_k": 0}, ValueError, "top_k"),
        ({"num_experts": 0}, ValueError, "num_experts must be at least 1"),
        ({"num_experts": 2.0}, TypeError, "num_experts must be an int"),
        ({"hidden_features": 0}, ValueError, "hidden_features must be at least 1"),
        ({"hidden_features": "12"}, TypeError, "hidden_features must be a whole number"),
        ({"tau": 0}, ValueError, "tau"),
        ({"tau": float("inf")}, ValueError, "tau must be finite"),
        ({"tau": None}, TypeError, "tau must be a number"),
        ({"pool": "max"}, ValueError, "pool must be one of"),
        ({"align": "l1"}, ValueError, "align must be one of"),
        ({"mode": "both"}, ValueError, "mode must be one of"),
        ({"keep": "all"}, ValueError, "keep must be one of"),
        ({"precision": "tf16"}, ValueError, "precision must be one of"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_name(kwargs, error, message):
    with pytest.raises(error, match=message):
        DEXMlp(**{"in_features": 12, "hidden_features": 20, **kwargs})


def test_wrong_tokens_are_named():
    layer = make()
    with pytest.raises(ValueError, match=r"tokens"):
        layer(torch.randn(2, 3, 3, 12))
    for mode in ("director", "experts"):
        layer.set_mode(mode)
        with pytest.raises(ValueError, match=r"x must be tokens \[B, N, 12\], got shape \[2, 3, 11\]"):
            layer(torch.randn(2, 3, 11))
    set_noise_std(layer, 1.0)
    set_router_noise(layer, [torch.randn(4, 5)])
    with pytest.raises(ValueError, match="noise must have shape"):
        layer(torch.randn(2, 3, 12))


def test_reading_timms_fc2_explains_itself():
    with pytest.raises(AttributeError, match="fix_init=True"):
        _ = make().fc2
