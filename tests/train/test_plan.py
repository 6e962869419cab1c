"""What a run on many GPUs would take: what is counted is counted right, and the page shows what is computed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from dexcore import cli
from dexcore.engine.config import ConfigError
from dexcore.shards import own_share
from dexcore.train.build import build_model
from dexcore.train.config import PRESETS, ModelConfig
from dexcore.train.counted import count
from dexcore.train.parallel.sharded import _mesh, shard
from dexcore.train.plan import (
    GPUS,
    IMAGES_A_CORE,
    KINDS,
    MODELS,
    MVU_IMAGES,
    Machines,
    copies_of_weights,
    fitting_batch,
    messages,
    plan,
    states_of,
    table,
)

SMALL = replace(PRESETS["laptop"].model, dim=96, decoder_dim=96, decoder_depth=3, num_experts=3)
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def _forward(model: torch.nn.Module, config: ModelConfig, images: int = 1) -> torch.Tensor:
    image = torch.rand(images, 3, config.image_size, config.image_size)
    return model(image, noise=torch.rand(images, model.num_patches), hidden_only=True).loss


@pytest.fixture
def of_eight():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("replicas", [1, 4])
def test_messages_and_bytes_are_those_of_a_sharded_step(of_eight, replicas):
    counted, shards = count(SMALL), 8 // replicas
    model = build_model(SMALL).train()
    shard(model, _mesh(torch.device("cpu"), 8, replicas))
    with CommDebugMode() as seen:
        _forward(model, SMALL).backward()
    found = {str(op): number for op, number in seen.get_comm_counts().items()}

    def number(name: str) -> int:
        return sum(count for op, count in found.items() if name in op)

    told = messages(counted, 8, shards)
    assert number("allgather") == told.gathers
    assert number("reduce_scatter") == told.scatters
    assert number("allreduce") == told.reduces
    held = sum(own_share(parameter).numel() for parameter in model.parameters())
    trained = sum(own_share(parameter).numel() for parameter in model.parameters() if parameter.requires_grad)
    assert states_of(counted, shards) == pytest.approx(4 * held + 12 * trained, rel=0.03)  # tokens are rank 0's


def test_more_shards_hold_less_and_a_block_stays():
    counted = count(MODELS["base"])
    memory = [plan(counted, Machines(gpus, GPUS["h100"]), "fsdp", 512).memory for gpus in (8, 64, 512)]
    assert memory[0] > memory[1] > memory[2] > 4 * max(counted.units)
    far = Machines(512, GPUS["h100"])
    assert plan(counted, far, "ddp", 512).memory > 16 * counted.trained
    # Blocks that are gathered within a machine do not wait for 64 machines' ring.
    assert plan(counted, far, "hsdp", 512).step < plan(counted, far, "fsdp", 512).step


def test_shards_in_host_memory_take_none_of_the_card():
    counted, machines = count(SMALL), Machines(8, GPUS["h100"])
    for kind in KINDS[:2]:
        one, offloaded = (plan(counted, machines, kind, 512, offload=offload) for offload in (False, True))
        assert offloaded.host == (states_of(counted, 8) if kind == "fsdp" else 0)
        assert offloaded.memory + offloaded.host == pytest.approx(one.memory)


def test_a_weight_has_one_copy_in_half_precision():
    counted, model = count(SMALL), build_model(SMALL)
    in_pool = re.compile(r".*\.(experts|director)\.fc[12]\.weight")
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    pools = sum(number for name, number in numbers.items() if in_pool.fullmatch(name))
    blocks = [f"encoder.blocks.{i}." for i in range(SMALL.depth)]
    blocks += [f"decoder_blocks.{i}." for i in range(SMALL.decoder_depth)]

    def of(block: str, there: bool) -> int:
        found = [name for name in numbers if name.startswith(block) and bool(in_pool.fullmatch(name)) == there]
        return sum(numbers[name] for name in found)

    beside, pool = max(of(block, False) for block in blocks), max(of(block, True) for block in blocks)
    assert copies_of_weights(counted, 1, "none") == 2 * counted.parameters
    assert copies_of_weights(counted, 8, "none") == 2 * (counted.parameters - pools + pool)
    for checkpointing in ("selective", "block"):
        assert copies_of_weights(counted, 1, checkpointing) == 2 * (pools + beside)
        assert copies_of_weights(counted, 8, checkpointing) == 2 * (beside + pool)


def test_what_cannot_be_is_refused_by_its_flag(capsys):
    counted = count(SMALL)
    with pytest.raises(ConfigError, match=r"--gpus: expected a multiple of the 8 of a machine, got 12"):
        Machines(12, GPUS["h100"])
    with pytest.raises(ConfigError, match=r"--batch-size: expected a multiple of the 64 GPUs, got 448\d"):
        plan(counted, Machines(64, GPUS["h100"]), "fsdp", 4481)
    assert fitting_batch(448, 512) == 512
    for flag, value in (("--gpus", "12"), ("--batch-size", "-448"), ("--images", "0"), ("--epochs", "-1")):
        assert cli.main(["plan", "--gpus", "64", flag, value]) == 2
        assert flag in capsys.readouterr().err


def test_the_command_tells_every_kind_and_what_it_costs(capsys):
    assert cli.main(["plan", "--gpus", "64", "--price-per-gpu-hour", "2.5"]) == 0
    told = capsys.readouterr().out
    rows = {line.split()[0]: line for line in told.splitlines() if line.split()[:1] and line.split()[0] in KINDS}
    assert set(rows) == set(KINDS)
    one = plan(count(MODELS["base"]), Machines(64, GPUS["h100"]), "hsdp", 448)
    hours = 200 * MVU_IMAGES / 448 * one.step / 3600
    assert f"{2.5 * 64 * hours:,.0f}" in rows["hsdp"]
    assert "Not measured on such machines" in told
    assert cli.main(["plan", "--gpus", "64", "--offload"]) == 0
    assert re.search(r"In host memory, a process: fsdp [\d.]+ GiB, hsdp [\d.]+ GiB\.", capsys.readouterr().out)


def test_what_a_core_prepares_was_measured():
    lines = (Path(__file__).parents[2] / "bench" / "results" / "feed.jsonl").read_text().splitlines()
    assert any(f'"images_per_second": {IMAGES_A_CORE - 1}.' in line for line in lines)


def test_the_page_shows_what_is_computed():
    assert table() == re.search(r"(?ms)^\| model.*?(?=\n\n)", PAGE.read_text())[0]
