"""Where memory does not suffice one message says which rank lacks it, in which step, and what takes less."""

from pathlib import Path

import pytest
import torch
from runs import ends, start_ranks

from dexcore.engine.config import ConfigError
from dexcore.engine.memory import NotEnoughMemoryError
from dexcore.engine.ranks import ALONE, Ranks
from dexcore.train.config import RunConfig
from dexcore.train.run import memory
from dexcore.train.run.memory import MemoryWatch

CPU = torch.device("cpu")


def _ask_for_too_much(step: int) -> None:
    with MemoryWatch(RunConfig(), Path(), Ranks(rank=3), CPU, lambda: step):
        torch.empty(2**55)


def test_the_message_names_rank_step_numbers_and_settings():
    with pytest.raises(NotEnoughMemoryError) as told:
        _ask_for_too_much(7)
    message = str(told.value)
    assert message.startswith("rank 3 has no memory left on cpu in step 7: this process took ")
    for words in ("can't allocate memory", "--data.accumulate", "--model.grad-checkpointing", "--parallel.kind fsdp"):
        assert words in message
    assert "\n" not in message


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="a bug") as raised, MemoryWatch(RunConfig(), Path(), ALONE, CPU, int):
        raise RuntimeError("a bug")
    assert type(raised.value) is RuntimeError


def test_a_history_is_recorded_on_a_gpu_alone_and_written_where_memory_ends(tmp_path, monkeypatch):
    run = RunConfig(memory_snapshot=True)
    with pytest.raises(ConfigError, match=r"run\.memory_snapshot: expected false on cpu: .* got True"):
        MemoryWatch(run, tmp_path, ALONE, CPU, int)
    calls = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **given: calls.append(given))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_bytes(b"history"))
    monkeypatch.setattr(memory, "memory_in_words", lambda device: "5 MiB allocated, 6 reserved, 0 free of 7")
    watch = MemoryWatch(run, tmp_path, Ranks(rank=1), torch.device("cuda", 1), int)
    written = tmp_path / "profile" / "memory-rank-1.pickle"
    with pytest.raises(NotEnoughMemoryError, match=rf"on cuda:1 in step 0: 5 MiB allocated.* {written}$"), watch:
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert written.read_bytes() == b"history"
    assert calls == [{"max_entries": 100_000}, {"enabled": None}]


_RANKS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from dexcore.engine.command_line import run_command
from dexcore.engine.ranks import join_ranks
from dexcore.train.config import RunConfig
from dexcore.train.run.memory import MemoryWatch

def run(config, rank):
    with join_ranks("cpu") as ranks, MemoryWatch(RunConfig(), Path(), ranks, torch.device("cpu"), lambda: 5):
        dist.barrier()
        if str(rank) in sys.argv[1:]:
            torch.empty(2**55)
        dist.all_reduce(torch.ones(1))
    return 0

raise SystemExit(run_command(lambda: "config", run, (), "take less"))
"""


def test_a_rank_without_memory_ends_all_and_is_the_one_that_says_so(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(_RANKS)
    codes, _, said = ends(start_ranks(3, [str(script), "2"]))
    assert codes == [2, 2, 2], said
    assert said[:2] == ["", ""]
    assert said[2].startswith("error on rank 2: rank 2 has no memory left on cpu in step 5: ")
    assert said[2].count("\n") == 1
