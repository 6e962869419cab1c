"""A process that dies under torchrun: its agents start all of them again, and the run ends as if nothing had been."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs import EXAMPLE, ends, flags, free_port, wait_for_steps
from several_ranks import alone, assert_same_run, shared_run

from dexcore.train.config import ParallelConfig, PretrainConfig


def _workers(agent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def _agent(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "1", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _assert_began_again(agents: list[subprocess.Popen[str]], config: PretrainConfig, place: Path) -> None:
    """A process is killed, and the run still ends as the one that was left in peace."""
    wait_for_steps(agents[0], Path(config.out), 5)
    while not (Path(config.out) / "checkpoints" / "step-00000005").exists():  # written while training goes on
        time.sleep(0.001)
    os.kill(_workers(agents[-1].pid)[1], signal.SIGKILL)
    codes, printed, said = ends(agents)
    assert codes == [0] * len(agents), said
    assert "".join(printed).count("Share of masked-patch variance explained") == 1
    assert "holds no checkpoint yet: beginning at the first step" in "".join(said)
    assert f"resuming {config.out} after step " in "".join(said)
    assert_same_run(config.out, alone(replace(config, out=str(place / "one"), resume=False)).folder)


@pytest.mark.slow
def test_torchrun_starts_a_run_again_where_a_process_died(store, tmp_path):
    config = replace(shared_run(store, tmp_path / "run", steps=40), parallel=ParallelConfig("fsdp"), resume=True)
    agent = _agent("--standalone", "--nproc-per-node", "2", str(EXAMPLE), *flags(config, tmp_path))
    _assert_began_again([agent], config, tmp_path)


@pytest.mark.slow
def test_several_machines_start_a_run_again_where_a_process_of_one_died(store, tmp_path):
    config = replace(shared_run(store, tmp_path / "run", steps=40), resume=True)
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "test"]
    command = ["--nnodes", "2", "--nproc-per-node", "2", *meeting, str(EXAMPLE), *flags(config, tmp_path)]
    _assert_began_again([_agent(*command) for _ in range(2)], config, tmp_path)
