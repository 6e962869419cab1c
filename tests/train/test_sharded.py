"""FSDP and HSDP on real ranks: they are the run of one process, in checkpoints that any kind reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import metrics, state
from several_ranks import (
    FEW_STEPS,
    alone,
    assert_bit_identical,
    assert_same_but_for_balance,
    assert_same_run,
    on_ranks,
    shared_run,
    without_balance,
)

from dexcore.engine.config import ConfigError
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.train.config import ParallelConfig, PretrainConfig
from dexcore.train.loop import Pretraining
from dexcore.train.parallel.sharded import check_sizes

KINDS = {
    ("fsdp", 2): ParallelConfig("fsdp"),
    ("offload", 2): ParallelConfig("fsdp", offload=True),
    ("fsdp", 3): ParallelConfig("fsdp"),
    ("hsdp", 4): ParallelConfig("hsdp", replicas=2),
}


def _run(store: Path, out: Path, parallel: ParallelConfig | None = None, steps: int = FEW_STEPS) -> PretrainConfig:
    """Experts that can be cut into two, three and four parts."""
    config = shared_run(store, out, steps)
    model = replace(config.model, dim=24, decoder_depth=2)
    run = replace(config.run, ema_decay=0.9)
    return replace(config, model=model, run=run, parallel=parallel or ParallelConfig())


def _autoencoder(**more: Any) -> MaskedAutoencoder:
    encoder = DEXVisionTransformer(img_size=32, patch_size=8, embed_dim=20, depth=1, num_heads=2, num_experts=2, **more)
    return MaskedAutoencoder(encoder, 16, 1, 2)


@pytest.fixture(scope="module")
def one_process(store, tmp_path_factory) -> Pretraining:
    return alone(_run(store, tmp_path_factory.mktemp("sharded") / "one"))


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("fsdp", 2),
        ("offload", 2),
        pytest.param("fsdp", 3, marks=pytest.mark.slow),
        pytest.param("hsdp", 4, marks=pytest.mark.slow),
    ],
)
def test_shards_are_the_run_of_one_process(store, one_process, tmp_path, kind, count):
    config = _run(store, tmp_path / "run", KINDS[kind, count])
    ranks = on_ranks(count, config)
    assert_same_run(config.out, one_process.folder)
    assert_bit_identical(ranks)
    if kind == "fsdp":
        assert ranks[0]["all_reduces"] == 2 * FEW_STEPS
    for name, value in state(one_process.model).items():
        if "director" in name or "frequency" in name:
            assert np.allclose(ranks[0][name], value, rtol=1e-4, atol=1e-6), name
    with one_process.optimizer.averaged():
        for name, value in state(one_process.model).items():
            if ".experts." in name:  # keys' biases have gradients of rounding alone, which Adam makes steps of
                assert np.allclose(ranks[0][f"averaged.{name}"], value, rtol=1e-3, atol=1e-4), name
                assert not np.allclose(ranks[0][name], value, rtol=1e-3, atol=1e-4), name


@pytest.mark.slow
def test_four_ranks_of_either_kind_are_one_run_of_width_192(store, tmp_path):
    def config(out: str, parallel: ParallelConfig) -> PretrainConfig:
        small = shared_run(store, tmp_path / out, steps=8)
        data = replace(small.data, batch_size=24, epoch_size=40)
        optimizer = replace(small.optimizer, base_lr=0.01)  # of a larger one's steps rounding grows by itself
        model = replace(small.model, dim=192, heads=3)
        return replace(small, data=data, model=model, optimizer=optimizer, parallel=parallel)

    one = alone(config("one", ParallelConfig()))
    for kind in ("ddp", "fsdp"):
        whole = config(kind, ParallelConfig(kind))
        assert_bit_identical(on_ranks(4, whole))
        assert_same_run(whole.out, one.folder)


@pytest.mark.parametrize(
    "order",
    [
        [("fsdp", 2), ("alone", 1)],
        pytest.param([("alone", 1), ("fsdp", 3), ("hsdp", 4), ("ddp", 2)], marks=pytest.mark.slow),
    ],
    ids=lambda order: "-".join(kind for kind, _ in order),
)
def test_a_run_goes_on_with_another_kind_and_number_of_processes(store, one_process, tmp_path, order):
    config = _run(store, tmp_path / "run")
    for number, (kind, count) in enumerate(order, start=1):
        steps = FEW_STEPS * number // len(order)
        until = steps if number < len(order) else 0
        config = replace(config, parallel=KINDS.get((kind, count), ParallelConfig()), resume=number > 1)
        if kind == "alone":
            alone(config, until)
        else:
            more = [*(["--resume"] if config.resume else []), *(["--until", str(until)] if until else [])]
            on_ranks(count, config, *more)
        assert len(metrics(config.out)) == steps
    assert_same_run(config.out, one_process.folder)


@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(store, tmp_path):
    whole, cut = (_run(store, tmp_path / name, KINDS["fsdp", 2]) for name in ("whole", "cut"))
    undisturbed = on_ranks(2, whole)
    on_ranks(2, cut, "--until", "5")
    resumed = on_ranks(2, cut, "--resume")
    assert metrics(cut.out) == metrics(whole.out)
    for rank, other in zip(resumed, undisturbed, strict=True):
        assert all(np.array_equal(rank[name], value) for name, value in other.items() if name != "all_reduces")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["block", "selective"])
def test_parts_that_are_added_up_and_blocks_that_are_run_again_change_nothing(store, tmp_path, how):
    whole = without_balance(_run(store, tmp_path / "whole"))
    one = alone(whole)
    config = without_balance(_run(store, tmp_path / "parts", KINDS["fsdp", 2]))
    config = replace(
        config, data=replace(config.data, accumulate=2), model=replace(config.model, grad_checkpointing=how)
    )
    ranks = on_ranks(2, config)
    assert ranks[0]["all_reduces"] == 3 * FEW_STEPS  # the balance loss is each part's own
    assert_same_but_for_balance(config.out, one.folder)


@pytest.mark.slow
def test_a_nan_on_one_rank_is_skipped_by_all_and_gradients_are_cut_as_by_one_process(store, tmp_path):
    config = _run(store, tmp_path / "run", KINDS["fsdp", 2])
    config = replace(config, optimizer=replace(config.optimizer, clip_norm=0.05))
    ranks = on_ranks(2, config, "--poison", "1", "4")
    assert_bit_identical(ranks)
    lines = metrics(config.out)
    assert [line["step"] for line in lines if line["skipped"]] == [4]
    assert all(np.isfinite(value).all() for name, value in ranks[0].items())
    cut = replace(config, out=str(tmp_path / "one"), parallel=ParallelConfig())
    alone(cut, poison=(0, 4))
    for line, one in zip(lines, metrics(cut.out), strict=True):
        if not line["skipped"]:
            assert one["grad_norm"] > 0.05
            assert line["loss"] == pytest.approx(one["loss"], rel=2e-5)


def test_offload_is_for_shards_alone(store, tmp_path):
    with pytest.raises(ConfigError, match=r"parallel\.offload: expected false with parallel\.kind ddp, got True"):
        ParallelConfig(offload=True)
    config = _run(store, tmp_path / "run", ParallelConfig("fsdp", offload=True))
    with pytest.raises(ConfigError, match=r"parallel\.offload: expected false of a process alone, got True"):
        Pretraining(config, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.backend: expected auto or eager with parallel\.offload"):
        replace(config, model=replace(config.model, backend="triton"))


def test_sizes_that_cannot_be_cut_are_refused_with_the_nearest_that_can():
    model = _autoencoder()
    check_sizes(model, 4)
    with pytest.raises(
        ConfigError, match=r"model\.dim: expected a multiple of 3, .*got 20 \(nearest: 18 or 21\).*hsdp"
    ):
        check_sizes(model, 3)
    with pytest.raises(ConfigError, match=r"mlp_ratio: expected a multiple of 5, .* got 76 \(nearest: 75 or 80\)"):
        check_sizes(_autoencoder(mlp_ratio=3.8), 5)
