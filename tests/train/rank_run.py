"""One rank of a run without its report, which leaves its weights for a test to look at.

    rank_run.py CONFIG.yaml STATES [--resume] [--until STEP] [--poison RANK STEP]

STATES/rank0.npz, ... hold the ranks' weights, their averages if the run keeps them, and under "all_reduces" how often
they called `dist.all_reduce`.
"""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist
from runs import state
from several_ranks import Disturbed

from dexcore.engine.config_file import read_yaml
from dexcore.engine.ranks import join_ranks
from dexcore.engine.stop import EXIT_STOPPED, StopRequest
from dexcore.train.config import PretrainConfig
from dexcore.train.run.folder import open_run_folder

_calls = 0
_all_reduce = dist.all_reduce


def _counted(*args, **kwargs):
    global _calls
    _calls += 1
    return _all_reduce(*args, **kwargs)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("states", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--until", type=int, default=0)
    parser.add_argument("--poison", type=int, nargs=2, default=(-1, -1))
    asked = parser.parse_args()
    config = replace(read_yaml(asked.config, PretrainConfig()), resume=asked.resume)
    dist.all_reduce = _counted
    with join_ranks(config.run.device) as ranks, ExitStack() as held, StopRequest() as stop:
        folder = ranks.on_main(lambda: held.enter_context(open_run_folder(config)))
        run = Disturbed(config, folder, ranks)
        run.until, run.poison = asked.until, tuple(asked.poison)
        run.resume()
        run.train(stop)
        whole = run.parallel.whole(main_only=False)
        calls, weights = _calls, state(whole)
        with run.optimizer.averaged():
            averaged = run.parallel.whole(main_only=False)
            weights |= {f"averaged.{name}": value for name, value in state(averaged).items() if config.run.ema_decay}
        np.savez(asked.states / f"rank{ranks.rank}.npz", all_reduces=calls, **weights)
    return EXIT_STOPPED if run.stopping else 0


if __name__ == "__main__":
    raise SystemExit(main())
