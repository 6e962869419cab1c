"""Training loops as users write them, forgotten calls included: right, or loud."""

import copy
import gc
import os
import socket
import warnings
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import LayerScale
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from assertions import assert_close
from dexcore.nn import (
    DEXMlp,
    aux_losses,
    collapse,
    discard_load,
    left_out,
    param_groups,
    record_load,
    share_load,
    upcycle,
    update_directors,
)
from dexcore.nn.records import Record, _Stamp
from nn.tiny import IMAGES, TINY, layers


def vit(depth=3, **kwargs):
    torch.manual_seed(0)
    return VisionTransformer(**{**TINY, "depth": depth}, mlp_layer=partial(DEXMlp, num_experts=4, **kwargs))


def states(model):
    return [copy.deepcopy(layer.state_dict()) for layer in layers(model)]


def unchanged(layer, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


def step(model, optimizer, images=IMAGES, scaler=None):
    """README's loop."""
    loss = model(images).square().mean()
    aux = aux_losses(model)
    loss = loss + 0.01 * aux.align + 0.001 * aux.balance
    optimizer.zero_grad()
    if scaler is None:
        loss.backward()
        optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    update_directors(model, momentum=0.9)


def optimizer_of(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def test_a_nan_image_under_gradscaler_leaves_directors_and_frequencies_finite():
    model = vit()
    optimizer, scaler = optimizer_of(model), torch.amp.GradScaler("cpu", init_scale=8.0)
    step(model, optimizer, scaler=scaler)
    before = states(model)
    bad = IMAGES.clone()
    bad[1] = float("nan")
    step(model, optimizer, bad, scaler)
    assert all(unchanged(layer, state) for layer, state in zip(layers(model), before, strict=True))
    assert left_out(model) == [(1, 0)] * 3
    step(model, optimizer, scaler=scaler)
    assert not any(unchanged(layer, state) for layer, state in zip(layers(model), before, strict=True))
    assert left_out(model) == [(1, 0)] * 3
    assert collapse(model)(IMAGES).isfinite().all()


def test_an_experts_element_that_is_not_finite_leaves_that_element_of_the_director():
    model = vit(depth=1)
    (layer,) = layers(model)
    with torch.no_grad():
        for pool, _ in layer.expert_director_pairs():
            pool += torch.randn_like(pool)
        layer.experts.fc1.weight[:, 2, 3] = float("inf")
    before = layer.director.fc1.weight.clone()
    model(IMAGES)
    update_directors(model, 0.5)
    moved = layer.director.fc1.weight != before
    assert not moved[2, 3]
    assert moved.sum() == moved.numel() - 1
    assert left_out(model) == [(0, 1)]


def early_exit(model):
    """The losses after an early exit behind the second of three blocks."""
    model.forward_intermediates(IMAGES, indices=[1], stop_early=True)
    return aux_losses(model)


@pytest.mark.parametrize("counted", [True, False])
def test_what_the_last_forward_did_not_reach_is_left_out_and_said_once(counted):
    model = vit()
    model(IMAGES)
    aux_losses(model)
    if counted:
        update_directors(model, 1.0)
    before = states(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            losses = early_exit(model)
            (losses.align + losses.balance).backward()
            with torch.no_grad():
                for layer in layers(model):
                    layer.experts.fc2.bias += 1
            update_directors(model, 0.5)
    left = [str(warning.message) for warning in said if "leaves out the DEX layers [2]" in str(warning.message)]
    assert len(left) == 1
    assert "stop_early" in left[0]
    *reached, last = layers(model)
    assert torch.equal(last.director.fc2.bias, before[2]["director.fc2.bias"])
    assert torch.equal(last.router.activation_frequency, before[2]["router.activation_frequency"])
    for layer, state in zip(reached, before, strict=False):
        assert not torch.equal(layer.director.fc2.bias, state["director.fc2.bias"])


def test_losses_after_an_early_exit_are_those_of_the_model_that_ends_there():
    model, short = vit(), vit(depth=2)
    short.load_state_dict(model.state_dict(), strict=False)
    for _ in range(2):
        short(IMAGES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for got, want in zip(early_exit(model), aux_losses(short), strict=True):
                assert torch.equal(got, want)
        model(IMAGES)
        short(IMAGES)


def test_a_block_that_is_skipped_in_the_middle_is_left_out():
    model = vit()
    optimizer = optimizer_of(model)
    step(model, optimizer)
    skipped = model.blocks[1]
    model(IMAGES)
    before = states(model)
    model.blocks[1] = nn.Identity()
    model(IMAGES)
    model.blocks[1] = skipped
    with pytest.warns(UserWarning, match=r"aux_losses leaves out the DEX layers \[1\]"):
        aux_losses(model)
    update_directors(model, 0.5)
    assert [unchanged(layer, state) for layer, state in zip(layers(model), before, strict=True)] == [False, True, False]


def test_losses_are_not_taken_again_once_the_directors_followed():
    for done in (lambda model: update_directors(model, 0.9), discard_load):
        model = vit()
        model(IMAGES)
        aux_losses(model)
        done(model)
        with pytest.raises(RuntimeError, match="no forward since update_directors or discard_load"):
            aux_losses(model)
        model(IMAGES)
        aux_losses(model)


def test_accumulation_without_record_load_is_said_once_and_names_it():
    model = vit()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            for micro in IMAGES.split(1):
                model(micro)
                aux_losses(model)
            update_directors(model, 0.9)
    assert len(said) == 1
    assert "record_load(model) after each micro-batch" in str(said[0].message)


def test_a_right_loop_says_nothing():
    model = vit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for micro in IMAGES.split(1):
                model(micro)
                aux_losses(model).align.backward()
                record_load(model)
            model.eval()(IMAGES)
            model.train()
            update_directors(model, 0.9)
        model(IMAGES)
        discard_load(model)
        step(model, optimizer_of(model))


def test_the_last_micro_batch_not_recorded_is_said():
    model = vit()
    model(IMAGES)
    record_load(model)
    model(IMAGES)
    with pytest.warns(UserWarning, match="a training forward after the last record_load is not counted"):
        update_directors(model, 0.9)


def test_collapse_refuses_directors_that_never_followed():
    model = vit()
    collapse(model)  # nothing was trained: the director is what the experts are
    optimizer = optimizer_of(model)
    for _ in range(2):
        (model(IMAGES).square().mean() + aux_losses(model).align).backward()
        optimizer.step()
        discard_load(model)
    with pytest.raises(ValueError, match=r"director that never followed them.*Call update_directors"):
        collapse(model)
    step(model, optimizer)
    collapse(model)


def test_streams_that_run_in_turn_are_held_to_the_order_in_which_they_ran():
    """Layers a0 a1 b0 b1 run as a0 b0 a1 b1."""
    model = nn.ModuleList(DEXMlp(8, 12, num_experts=4) for _ in range(4))
    x = torch.randn(5, 3, 8)

    def forward(pairs):
        for i in range(pairs):
            model[i](x), model[2 + i](x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            forward(2)
            aux_losses(model)
            update_directors(model, 0.9)
    forward(2)
    before = [copy.deepcopy(layer.state_dict()) for layer in model]
    forward(1)
    with pytest.warns(UserWarning, match=r"leaves out the DEX layers \[1, 3\]"):
        aux_losses(model)
    update_directors(model, 0.5)
    assert [unchanged(layer, state) for layer, state in zip(model, before, strict=True)] == [False, True, False, True]


def test_another_model_that_runs_in_between_hides_no_early_exit():
    student, teacher = vit(), vit().requires_grad_(False)
    student(IMAGES)
    x, y = (model._pos_embed(model.patch_embed(IMAGES)) for model in (student, teacher))
    for own, other in zip(student.blocks[:2], teacher.blocks[:2], strict=True):
        x, y = own(x), other(y)
    with pytest.warns(UserWarning, match=r"leaves out the DEX layers \[2\]"):
        losses = aux_losses(student)
    (x.sum() + losses.align).backward()


def test_a_layer_frozen_in_eval_is_left_out_without_a_word_and_hides_no_early_exit():
    model = vit()
    model.blocks[0].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer_of(model))
    with pytest.warns(UserWarning, match=r"leaves out the DEX layers \[2\]"):
        early_exit(model)


def test_losses_without_gradient_are_an_error_with_a_frozen_router_too():
    model = vit()
    for layer in layers(model):
        layer.router.requires_grad_(False)
    with torch.no_grad():
        model(IMAGES)
    with pytest.raises(RuntimeError, match="recorded no gradient"):
        aux_losses(model)


def test_a_forward_for_pseudo_labels_in_between_is_no_reentrant_checkpoint():
    layer = DEXMlp(8, 12, num_experts=4)
    x = torch.randn(5, 3, 8, requires_grad=True)
    y = checkpoint(nn.Sequential(layer, LayerScale(8)), x, use_reentrant=False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
    y.sum().backward()
    update_directors(layer, 0.9)


def test_a_poisoned_layer_is_counted_and_its_frequency_begins_anew():
    model = vit(depth=1)
    (layer,) = layers(model)
    layer.router.activation_frequency.fill_(float("nan"))
    with torch.no_grad():
        layer.director.fc1.weight[0, 0] = float("nan")
    assert left_out(model) == [(0, 1)]
    model(IMAGES)
    update_directors(model, 0.9)
    assert_close(layer.router.activation_frequency.sum(), torch.tensor(1.0))
    assert left_out(model) == [(0, 1)]


def test_an_expert_that_was_never_used_holds_no_director_back():
    model = vit(depth=1)
    (layer,) = layers(model)
    with torch.no_grad():
        layer.router.weight.zero_()  # a tie: experts 0 and 1 for all images
        layer.experts.fc1.weight[3] = float("nan")
    model(IMAGES)
    update_directors(model, 0.9)
    assert left_out(model) == [(0, 0)]
    assert layer.director.fc1.weight.isfinite().all()


def test_more_is_not_recorded_over_what_was_shared():
    layer = DEXMlp(8, 12)
    layer(torch.randn(2, 3, 8))
    record_load(layer)
    share_load(layer, torch.zeros(1))
    layer(torch.randn(2, 3, 8))
    with pytest.raises(RuntimeError, match="shared between processes already"):
        record_load(layer)


def test_data_parallel_training_is_refused_by_name():
    layer = DEXMlp(8, 12)
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        layer._replicate_for_data_parallel()
    assert isinstance(layer.eval()._replicate_for_data_parallel(), DEXMlp)


def test_collapse_of_a_trained_model_warns_where_training_went_on_without_updates():
    model = vit()
    step(model, optimizer_of(model))
    loaded = vit()
    loaded.load_state_dict(model.state_dict())
    loaded(IMAGES).square().mean().backward()
    with pytest.warns(UserWarning, match="directors that are behind their experts"):
        collapse(loaded)
    update_directors(loaded, 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collapse(loaded)


def test_stamps_of_compiled_forwards_do_not_pile_up():
    model = nn.Sequential(*(DEXMlp(8, 12, num_experts=4) for _ in range(2)))
    idle = copy.deepcopy(model)  # holds a stamp of an early forward
    for layer in idle:
        torch.compile(layer, backend="aot_eager")(torch.randn(2, 3, 8))
    calls = [torch.compile(layer, backend="aot_eager") for layer in model]
    for _ in range(5):
        calls[1](calls[0](torch.randn(2, 3, 8))).sum().backward()
        update_directors(model, 0.9)
    gc.collect()
    stamps = [thing for thing in gc.get_objects() if isinstance(thing, _Stamp)]
    assert sum(stamp.next is not None for stamp in stamps) <= 2


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("losses", [True, False])
def test_activation_checkpointing_counts_every_layer_once(every, compiled, losses):
    states = []
    for again in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(*(DEXMlp(8, 12, num_experts=4) for _ in range(3)))
        calls = [torch.compile(layer, backend="aot_eager") if compiled else layer for layer in model]
        x = torch.randn(5, 3, 8, requires_grad=True)
        y = x
        for i, call in enumerate(calls):
            with set_checkpoint_early_stop(False):  # so that the repetition reaches the record
                y = checkpoint(call, y, use_reentrant=False) if again and (every or i == 1) else call(y)
        loss = y.square().sum()
        if losses:
            loss = loss + aux_losses(model).align
        loss.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            update_directors(model, 0.5)
        states.append([x.grad, *model.state_dict().values()])
    for plain, again in zip(*states, strict=True):
        assert_close(again, plain)


def test_a_training_loop_is_compiled_once():
    model = nn.Sequential(*(DEXMlp(8, 12, num_experts=4) for _ in range(3)))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(4):
        for micro in torch.randn(4, 2, 3, 8).split(2):
            (compiled(micro[0]).sum() + aux_losses(model).align).backward()
            record_load(model)
        update_directors(model, 0.9)
    assert counter.frame_count == 1


def test_compiled_code_leaves_out_what_it_did_not_reach_too():
    model = nn.Sequential(*(DEXMlp(8, 12, num_experts=4) for _ in range(3)))
    calls = [torch.compile(layer, backend="aot_eager") for layer in model]
    x = torch.randn(5, 3, 8)
    calls[2](calls[1](calls[0](x)))
    calls[1](calls[0](x))
    with pytest.warns(UserWarning, match=r"leaves out the DEX layers \[2\]"):
        aux_losses(model)
    update_directors(model, 0.9)
    assert [bool(layer.router.activation_frequency.any()) for layer in model] == [True, True, False]


def test_a_copied_layer_has_a_record_of_its_own():
    layer = DEXMlp(8, 12)
    layer(torch.randn(2, 3, 8))
    twin = copy.deepcopy(layer)
    assert isinstance(twin.record, Record)
    assert twin.record is not layer.record
    assert twin.routing is None
    with pytest.raises(RuntimeError, match="no training forward"):
        update_directors(twin, 0.9)


def _train_ddp(rank, code, folder):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=(folder / "port").read_text()
    )
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3])) for _ in range(10)]
    space = {"TINY": TINY, "loader": batches, "timm": timm, "torch": torch, "upcycle": upcycle}
    space |= {"aux_losses": aux_losses, "param_groups": param_groups, "update_directors": update_directors}
    space["criterion"] = nn.functional.cross_entropy
    torch.manual_seed(0)
    exec(code, space)
    torch.save(space["model"].state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_the_documented_ddp_loop_has_equal_directors_on_two_ranks(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "training_loop.md").read_text()
    (code,) = [block.split("```")[0] for block in page.split("```python\n") if "DistributedDataParallel(" in block]
    assert "group=" not in code, "as a user who knows nothing of groups"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(_train_ddp, (code, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.manual_seed(0)
    start = upcycle(timm.create_model("vit_tiny_patch16_224", **TINY), num_experts=4).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert any("director" in name and not torch.equal(tensor, start[name]) for name, tensor in first.items())
