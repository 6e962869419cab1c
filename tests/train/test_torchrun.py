"""A process that dies under torchrun: it starts all of them again, and the run ends as if nothing had been."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import EXAMPLE, ends, flags, wait_for_steps
from several_ranks import alone, assert_same_run, shared_run

from dexcore.train.config import ParallelConfig


def _workers(agent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


@pytest.mark.slow
def test_torchrun_starts_a_run_again_where_a_process_died(store, tmp_path):
    config = replace(shared_run(store, tmp_path / "run"), parallel=ParallelConfig("fsdp"), resume=True)
    command = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1", str(EXAMPLE), *flags(config, tmp_path)]
    agent = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for_steps(agent, Path(config.out), 7)
    os.kill(_workers(agent.pid)[1], signal.SIGKILL)
    (code,), (printed,), (said,) = ends([agent])
    assert code == 0, said
    assert printed.count("Share of masked-patch variance explained") == 1
    assert "holds no checkpoint yet: beginning at the first step" in said
    assert f"resuming {config.out} after step " in said
    assert_same_run(config.out, alone(replace(config, out=str(tmp_path / "one"), resume=False)).folder)
