"""Half-precision copies of parameters: reused while they are true, cast anew by one launch where they are not."""

import copy
import gc
import sys
import threading
import types
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import dexcore.kernels.cast
import dexcore.kernels.group_ema
from dexcore import ops
from dexcore.kernels import tables
from dexcore.kernels.launch import compiling
from dexcore.nn import DEXMlp, record_load, update_directors
from dexcore.ops import copies, reference
from dexcore.ops.copies import half_copies

pytestmark = pytest.mark.usefixtures("no_shards")
BF16, FP16 = torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _nothing_kept_before():
    copies._kept.clear()
    yield
    copies._kept.clear()


@pytest.fixture
def launches(monkeypatch):
    """The kernels launched, by name, in order."""
    seen = []
    for module in (dexcore.kernels.cast, dexcore.kernels.group_ema):

        def launch(kernel, *arguments, through=module.launch, **settings):
            seen.append(kernel.fn.__name__)
            through(kernel, *arguments, **settings)

        monkeypatch.setattr(module, "launch", launch)
    return seen


def parameters(*shapes):
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def pool(experts=3, shapes=((6, 4), (6,))):
    """Directors and experts."""
    directors = [nn.Parameter(torch.randn(shape), requires_grad=False) for shape in shapes]
    return directors, [nn.Parameter(torch.randn(experts, *shape)) for shape in shapes]


def move(directors, experts, momentum=0.5, weights=(0.5, 0.0, 0.5)):
    ops.group_ema_(directors, experts, [torch.tensor(weights)] * len(directors), momentum, backend="triton")


def assert_true(found, tensors, dtype=BF16):
    for half, tensor in zip(found, tensors, strict=True):
        torch.testing.assert_close(half, tensor.detach().to(dtype), rtol=0, atol=0, equal_nan=True)


def assert_same(found, others):
    assert all(a is b for a, b in zip(found, others, strict=True))


def assert_none_is(found, others):
    assert not any(a is b for a in found for b in others)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_a_second_call_gives_the_very_same_tensors_and_launches_nothing(launches, dtype):
    given = parameters((3, 5, 7), (3, 7), (1,))
    found = half_copies(given, dtype)
    assert_true(found, given, dtype)
    assert launches == ["_cast_all_kernel"]
    assert_same(half_copies(given, dtype), found)
    assert_same(half_copies(given[:1], dtype), found[:1])
    assert len(launches) == 1


def test_only_what_is_not_kept_is_cast(launches):
    given = parameters((4,), (5,), (6,))
    (first,) = half_copies(given[:1], BF16)
    found = half_copies(given, BF16)
    assert found[0] is first
    assert_true(found, given)
    assert len(launches) == 2


def test_none_stays_none_and_what_has_the_dtype_is_passed_on(launches):
    half, (single,) = torch.randn(4).bfloat16(), parameters((3,))
    found = half_copies([None, half, single, None], BF16)
    assert found[0] is found[3] is None
    assert found[1] is half
    assert_true(found[2:3], [single])
    assert half_copies([], BF16) == []
    assert half_copies([single], torch.float32)[0] is single
    assert len(launches) == 1


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_numbers_that_are_not_finite_or_subnormal_are_cast_as_by_torch(dtype):
    numbers = [
        float("nan"),
        float("inf"),
        -float("inf"),
        0.0,
        -0.0,
        1e-40,
        -1e-45,
        2**-25 * 1.01,
        2**-133,
        65520.0,
        3e38,
    ]
    given = [nn.Parameter(torch.tensor(numbers))]
    assert_true(half_copies(given, dtype), given, dtype)


def test_the_copies_have_no_gradient_and_can_be_saved_for_a_backward_though_made_in_inference_mode():
    given = parameters((3,))
    with torch.inference_mode():
        (half,) = half_copies(given, BF16)
    assert not half.is_inference()
    assert not half.requires_grad
    assert half_copies(given, BF16)[0] is half
    x = torch.ones(3, requires_grad=True)
    (x * half).sum().backward()
    assert torch.equal(x.grad, half.float())


def step(given):
    optimizer = torch.optim.SGD(given, 0.1)
    for parameter in given:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@torch.no_grad()
def copy_into(given):
    for parameter in given:
        parameter.copy_(torch.randn_like(parameter))


def load(given):
    holder = nn.ParameterList(given)
    assert all(a is b for a, b in zip(holder, given, strict=True))
    holder.load_state_dict({name: torch.randn_like(tensor) for name, tensor in holder.state_dict().items()})


def swap_data(given):
    for parameter in given:
        parameter.data = torch.randn_like(parameter)


class WritesPastVersions(torch.optim.Optimizer):
    """As optimizers do whose kernels PyTorch does not know."""

    def __init__(self, given):
        super().__init__(given, {})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1)


def step_past_versions(given):
    before = [parameter._version for parameter in given]
    WritesPastVersions(given).step()
    assert [parameter._version for parameter in given] == before


def average_past_versions(given):
    """As a teacher that follows a student after each of its steps."""
    step(parameters((3,)))
    for parameter in given:
        parameter.data.mul_(0.5)


@pytest.mark.parametrize(
    "change",
    [
        step,
        copy_into,
        load,
        swap_data,
        step_past_versions,
        average_past_versions,
    ],
)
def test_what_changes_a_parameter_makes_its_copy_untrue(launches, change):
    given = parameters((3, 50), (60,))
    before = half_copies(given, BF16)
    held = [half.clone() for half in before]
    change(given)
    launched = len(launches)
    found = half_copies(given, BF16)
    assert len(launches) == launched + 1
    assert_true(found, given)
    assert all(torch.equal(half, was) for half, was in zip(before, held, strict=True)), "a backward may need them"
    assert_same(half_copies(given, BF16), found)


def test_another_dtype_is_another_copy():
    given = parameters((6,))
    for dtype in (BF16, FP16, FP16, BF16):
        (half,) = half_copies(given, dtype)
        assert half.dtype == dtype
        assert_true([half], given, dtype)


def test_another_shape_of_the_same_memory_is_another_copy():
    (director,), (experts,) = pool(shapes=((6,),))
    for gema in (False, True):
        half_copies([director, experts], BF16)
        shape = [3, 2] if gema else [2, 3]
        director.data, experts.data = director.data.view(shape), experts.data.view(3, *shape)
        if gema:
            move([director], [experts])
        found = half_copies([director, experts], BF16)
        assert_true(found, [director, experts])


def test_other_memory_at_the_same_address_is_another_copy():
    """As of a model that is moved to the host, changed there, and moved back."""
    memory = bytearray(24)
    parameter = nn.Parameter(torch.frombuffer(memory, dtype=torch.float32))
    half_copies([parameter], BF16)
    address = parameter.data_ptr()
    parameter.data = torch.frombuffer(memory, dtype=torch.float32).fill_(2)
    assert parameter.data_ptr() == address
    assert_true(half_copies([parameter], BF16), [parameter])


def test_a_deep_copy_has_its_own(launches):
    model = nn.Linear(3, 4)
    found = half_copies(list(model.parameters()), BF16)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.weight.add_(1)
    others = half_copies(list(twin.parameters()), BF16)
    assert_none_is(found, others)
    assert_true(others, twin.parameters())
    assert_same(half_copies(list(model.parameters()), BF16), found)
    assert len(launches) == 2


def test_a_dead_model_leaves_no_copy():
    model = nn.Linear(3, 4)
    found = half_copies(list(model.parameters()), BF16)
    memory = [weakref.ref(half) for half in found]
    assert len(copies._kept) == 2
    del model, found
    gc.collect()
    assert not copies._kept
    assert not any(half() is not None for half in memory)


def test_a_parameter_whose_memory_was_given_back_leaves_no_copy_once_others_are_kept():
    first, other = parameters((3,), (4,))
    memory = weakref.ref(half_copies([first], BF16)[0])
    first.data = torch.zeros(0)
    half_copies([other], BF16)
    assert memory() is None
    assert_true(half_copies([first], BF16), [first])


def not_a_parameter():
    return torch.randn(3)


def a_view():
    return nn.Parameter(torch.randn(6))[:3]


def a_subclass():
    return nn.Parameter(torch.randn(3).as_subclass(type("Own", (torch.Tensor,), {})))


def an_inference_parameter():
    with torch.inference_mode():
        return nn.Parameter(torch.randn(3), requires_grad=False)


def not_contiguous():
    return nn.Parameter(torch.randn(6, 2).t())


def double():
    return nn.Parameter(torch.randn(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [not_a_parameter, a_view, a_subclass, an_inference_parameter, not_contiguous, double],
    ids=lambda f: f.__name__,
)
def test_what_has_no_version_to_trust_is_cast_at_every_call(make):
    tensor = make()
    first, second = half_copies([tensor], BF16), half_copies([tensor], BF16)
    assert first[0] is not second[0]
    assert_true([*first, *second], [tensor] * 2)
    assert not first[0].requires_grad
    assert not copies._kept


def test_a_detached_parameter_has_the_copy_of_its_parameter_for_as_long_as_both_are_true(launches):
    (given,) = parameters((3, 4))
    detached, data = given.detach(), given.data
    with torch.no_grad():
        given.add_(1)
    (half,) = half_copies([given], BF16)
    assert half_copies([detached], BF16)[0] is half
    assert half_copies([detached.view(4, 3)], BF16)[0].shape == (4, 3)
    assert half_copies([data], BF16)[0] is not half, "its version is its own"
    with torch.no_grad():
        detached.add_(1)
    anew = half_copies([given.detach()], BF16)
    assert anew[0] is not half
    assert_true(anew, [given])
    step(parameters((2,)))
    assert half_copies([detached], BF16)[0] is not half
    assert list(copies._kept) == [id(given)]


def test_a_transform_of_torch_func_is_no_obstacle():
    given = torch.randn(4, 3)
    found = torch.func.vmap(lambda row: half_copies([row], BF16)[0])(given)
    assert torch.equal(found, given.bfloat16())


def test_a_model_that_is_converted_by_swapping_can_still_be(monkeypatch):
    model = nn.Linear(3, 4)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        given = list(model.parameters())
        assert_none_is(half_copies(given, BF16), half_copies(given, BF16))
        del given
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_parameters_that_fsdp2_fills_are_cast_at_every_call(tmp_path):
    class Layer(nn.Linear):
        def forward(self, x):
            found.append((self.weight, half_copies([self.weight], BF16)[0], half_copies([self.weight], BF16)[0]))
            return super().forward(x)

    found = []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = Layer(8, 8)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for i in range(2):
            model(torch.ones(2, 8)).sum().backward()
            weight, first, second = found[i]
            assert type(weight) is nn.Parameter
            assert first is not second
            with torch.no_grad():
                model.weight.to_local().add_(1)
        assert found[0][0] is found[1][0], "the same parameter, filled anew"
        assert found[0][0]._version == 0
        torch.testing.assert_close(found[1][1].float(), found[0][1].float() + 1, rtol=0.02, atol=0.02)
        assert not copies._kept
        del model, weight, first, second
    finally:
        found.clear()
        dist.destroy_process_group()
    gc.collect()
    given = parameters((3,))
    assert_same(half_copies(given, BF16), half_copies(given, BF16))


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_gema_writes_the_copies_of_the_step_to_come(launches, dtype):
    directors, experts = pool()
    with torch.no_grad():
        experts[0][1, 2, 3] = float("nan")  # of an expert that is not in use
        directors[0][0, 0] = 1e-40
    everything = [*experts, *directors]
    found = half_copies(everything, dtype)
    step(experts)
    move(directors, experts)
    assert launches == ["_cast_all_kernel", "_group_ema_kernel"]
    assert_same(half_copies(everything, dtype), found)
    assert_true(found, everything, dtype)
    assert len(launches) == 2


def test_a_director_that_stays_as_it_is_has_a_true_copy():
    directors, experts = pool()
    found = half_copies(directors, BF16)
    move(directors, experts, weights=(0.0, 0.0, 0.0))
    assert_same(half_copies(directors, BF16), found)
    assert_true(found, directors)


def test_gema_writes_no_copy_that_nobody_asked_for_since_the_last(launches):
    directors, experts = pool()
    found = half_copies([*directors, *experts], BF16)
    for _ in range(2):
        copy_into(experts)
        move(directors, experts)
    anew = half_copies([*directors, *experts], BF16)
    assert_none_is(found, anew)
    assert_true(anew, [*directors, *experts])
    other_directors, other_experts = pool()
    move(other_directors, other_experts)
    assert id(other_experts[0]) not in copies._kept
    assert launches.count("_cast_all_kernel") == 2


def test_experts_that_did_not_change_are_not_written_and_a_backward_may_still_use_them():
    directors, experts = pool()
    of_director, of_experts = half_copies([directors[0], experts[0]], BF16)
    versions = of_director._version, of_experts._version
    move(directors, experts)
    assert of_director._version > versions[0]
    assert of_experts._version == versions[1]
    assert_same(half_copies([directors[0], experts[0]], BF16), [of_director, of_experts])
    assert_true([of_director, of_experts], [directors[0], experts[0]])


def test_a_backward_after_gema_has_overwritten_its_copy_is_an_error():
    directors, experts = pool()
    (half,) = half_copies([experts[0]], BF16)
    x = torch.ones(3, 6, 4, requires_grad=True)
    y = (x * half).sum()
    copy_into(experts)
    move(directors, experts)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_director_of_strange_strides_is_moved_and_cast_anew():
    director = nn.Parameter(torch.randn(6, 4).t(), requires_grad=False)
    experts = nn.Parameter(torch.randn(3, 4, 6))
    half_copies([director, experts], BF16)
    expected = reference.group_ema(director, experts, torch.tensor([0.5, 0.0, 0.5]), 0.5)
    move([director], [experts])
    torch.testing.assert_close(director.double(), expected, rtol=1e-5, atol=1e-6)
    assert_true(half_copies([director, experts], BF16), [director, experts])


def test_copies_of_two_dtypes_are_written_where_they_are_of_the_first():
    directors, experts = pool()
    half_copies([directors[0], experts[0]], BF16)
    half_copies([directors[1], experts[1]], FP16)
    step(experts)
    move(directors, experts)
    assert_true(half_copies([directors[0], experts[0]], BF16), [directors[0], experts[0]])
    assert_true(half_copies([directors[1], experts[1]], FP16), [directors[1], experts[1]], FP16)


def test_experts_of_two_directors_are_written_once():
    directors, experts = pool(shapes=((5,), (5,)))
    half_copies([*directors, experts[0]], BF16)
    step(experts)
    move(directors, [experts[0], experts[0]])
    assert_true(half_copies([*directors, experts[0]], BF16), [*directors, experts[0]])


def test_a_copy_that_another_thread_made_anew_meanwhile_is_not_taken_for_the_written_one():
    (director,), (experts,) = pool(shapes=((5,),))
    half_copies([director, experts], BF16)
    given = copies.to_write([director], [experts])
    half_copies([director], BF16)
    copy_into([director])
    copies.written([director, experts], [*given[0], *given[1]])
    assert_true(half_copies([director], BF16), [director])


def test_the_eager_path_leaves_the_copies_alone():
    directors, experts = pool()
    found = half_copies(directors, BF16)
    ops.group_ema_(directors, experts, [torch.tensor([0.5, 0.0, 0.5])] * 2, 0.5, backend="eager")
    assert_none_is(half_copies(directors, BF16), found)
    assert_true(half_copies(directors, BF16), directors)


def test_a_layer_is_trained_with_copies_that_update_directors_writes(launches):
    layer = DEXMlp(16, 32, num_experts=4, backend="triton").train()
    pairs = [tensor for pair in layer.expert_director_pairs() for tensor in pair]
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], 1e-2)
    found = half_copies(pairs, BF16)
    for _ in range(2):
        y = layer(torch.randn(5, 3, 16))
        (y.square().mean() + layer.routing.align_loss).backward()
        record_load(layer)
        optimizer.step()
        update_directors(layer, 0.5)
        assert_same(half_copies(pairs, BF16), found)
        assert_true(found, pairs)
    assert launches.count("_cast_all_kernel") == 1
    assert launches.count("_group_ema_kernel") == 2


def test_under_autocast_a_layer_casts_its_weights_and_its_directors_in_the_first_step_alone(launches):
    layer = DEXMlp(16, 32, num_experts=4, backend="triton").train()
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], 1e-2)
    seen = []
    for _ in range(3):
        with torch.autocast("cpu", BF16):
            y = layer(torch.randn(5, 3, 16))
        (y.float().square().mean() + layer.routing.align_loss).backward()
        optimizer.step()
        update_directors(layer, 0.5)
        seen.append(launches.copy())
        launches.clear()
    assert seen == [["_cast_all_kernel", "_group_ema_kernel"], ["_group_ema_kernel"], ["_group_ema_kernel"]]


def test_micro_batches_under_checkpointing_share_the_copies_of_a_step(launches):
    layer = DEXMlp(16, 32, num_experts=4, backend="triton").train()
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        for _ in range(2):
            with torch.autocast("cpu", BF16):
                y = checkpoint(layer, torch.randn(5, 3, 16), use_reentrant=False)
            y.float().square().mean().backward()
            record_load(layer)
        optimizer.step()
        update_directors(layer, 0.5)
    assert launches == ["_cast_all_kernel", "_group_ema_kernel", "_group_ema_kernel"]


class Capture:
    """As if a CUDA graph were captured."""

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tables, "is_capturing", lambda device: True)

    def __exit__(self, *error):
        self.patch.undo()


def test_a_capture_casts_whatever_is_kept_and_its_parameters_are_never_kept_again(launches):
    given = parameters((40,), (3, 5))
    before = half_copies(given, BF16)
    with Capture():
        found = half_copies(given, BF16)
        again = half_copies(given, BF16)
    assert launches == ["_cast_all_kernel"] * 3
    assert_none_is(found, [*before, *again])
    assert_true([*found, *again], given * 2)
    for parameter in given:
        parameter.data.add_(1)  # a replay
    first, second = half_copies(given, BF16), half_copies(given, BF16)
    assert_true(first, given)
    assert_none_is(first, second)
    assert all(kept.half is None for kept in copies._kept.values())


def test_a_capture_without_a_table_casts_too(launches):
    given = parameters((40,), (3, 5))
    half_copies(given, BF16)
    with Capture():
        assert_true(half_copies(given[1:], BF16), given[1:])
    assert len(launches) == 1


def test_a_captured_gema_writes_no_copies_and_needs_no_table_that_no_call_has_built(launches):
    directors, experts = pool()
    found = half_copies([*directors, *experts], BF16)
    step(experts)
    move(directors, experts)
    held = [half.clone() for half in found]
    half_copies([*directors, *experts], BF16)
    step(experts)
    with Capture():
        move(directors, experts)
    assert all(torch.equal(half, was) for half, was in zip(found, held, strict=True))
    anew = half_copies([*directors, *experts], BF16)
    assert_true(anew, [*directors, *experts])
    assert_none_is(anew, half_copies([*directors, *experts], BF16))


def test_what_a_captured_optimizer_changes_is_never_kept():
    given = parameters((3,))
    half_copies(parameters((2,)), BF16)  # from now on steps are counted
    with Capture():
        step(given)
    assert_none_is(half_copies(given, BF16), half_copies(given, BF16))


def test_what_is_compiled_and_not_launched_is_no_copy(launches):
    directors, experts = pool()
    kernels = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dexcore.kernels.cast, "launch", lambda kernel, *_, **__: kernels.append(kernel))
        patch.setattr(dexcore.kernels.group_ema, "launch", lambda kernel, *_, **__: kernels.append(kernel))
        with compiling(kernels.append):
            half_copies([*directors, *experts], BF16)
            move(directors, experts)
    assert len(kernels) == 2
    assert_true(half_copies([*directors, *experts], BF16), [*directors, *experts])
    assert launches == ["_cast_all_kernel"]


def test_what_is_no_parameter_is_cast_by_pytorch_since_it_is_elsewhere_each_time(launches):
    given = [torch.randn(3, 4), *parameters((5,))]
    assert_true(half_copies(given, BF16), given)
    assert launches == ["_cast_all_kernel"]
    half_copies(given, BF16)
    assert len(launches) == 1


def compiled_gradients(layer):
    with torch.autocast("cpu", BF16):
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(torch.ones(2, 5, 16))
    (y.float().square().sum() + layer.routing.align_loss).backward()
    return [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]


def test_compiled_code_has_copies_too(launches):
    compiled_gradients(DEXMlp(16, 32, num_experts=3, backend="triton"))
    assert launches == ["_cast_all_kernel"], "the backward has the forward's"
    assert copies._kept


def test_beside_cuda_graphs_of_torch_compile_nothing_outlives_a_call(launches, monkeypatch):
    layer = DEXMlp(16, 32, num_experts=3, backend="triton")
    expected = compiled_gradients(copy.deepcopy(layer))
    copies._kept.clear()
    launches.clear()
    built = []
    monkeypatch.setattr(tables.Tables, "find", lambda *_: built.append(_))
    monkeypatch.setattr(dexcore.kernels.cast, "is_known", lambda *_: False)  # nor is memory where it was
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", types.ModuleType("made graphs"))
    for found, wanted in zip(compiled_gradients(layer), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not copies._kept
    assert launches == built == []


def test_several_threads_get_the_same_copies(launches):
    given = parameters((3, 500), (700,))
    found, begin = [], threading.Barrier(4)

    def ask():
        begin.wait()
        found.append(half_copies(given, BF16))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in found:
        assert_same(other, found[0])
    assert len(launches) == 1


def test_weights_that_are_swapped_for_an_evaluation_and_back_are_those_that_run():
    layer = DEXMlp(16, 32, num_experts=3, backend="triton")
    x = torch.randn(2, 5, 16)

    def run():
        with torch.no_grad(), torch.autocast("cpu", BF16):
            return layer(x)

    own, average = ([torch.randn(p.shape) * 0.1 for p in layer.experts.parameters()] for _ in range(2))

    def put(values):  # past the version, as averages are
        for parameter, value in zip(layer.experts.parameters(), values, strict=True):
            parameter.data.copy_(value)

    put(own)
    torch.optim.SGD(layer.parameters(), lr=0.0).step()
    trained = run()
    put(average)
    layer.eval()
    averaged = run()
    assert not torch.equal(averaged, trained)
    put(own)
    layer.train()
    assert torch.equal(run(), trained)
    put(average)
    layer.eval()
    assert torch.equal(run(), averaged)


def test_copies_that_were_cast_together_go_together_once_untrue():
    given = parameters((4, 8), (8, 4), (8,), (4,))
    half_copies(given, BF16)
    step(given)
    half_copies(given[:2], BF16)
    assert len(copies._kept) == 2
