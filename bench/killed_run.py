"""One process of a run that `bench.kills` kills: without its report, with the images that its steps have shown."""

import json
import os
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from dexcore.engine.ranks import LostRankError, join_ranks
from dexcore.engine.stop import StopRequest
from dexcore.train.config import PretrainConfig
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import open_run_folder

WEIGHTS = "weights.npz"  # of the run's end, in its folder


class _Watched(Pretraining):
    """A run whose main rank writes down which images a step has shown."""

    def step(self, batch: dict[str, Any], *arguments: Any) -> dict[str, Any]:
        shown = self.ranks.gather(batch["sample_id"]).tolist()
        line = super().step(batch, *arguments)
        if self.ranks.main:
            with open(self.folder.with_suffix(".seen"), "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": line["step"], "images": shown}) + "\n")
        return line


def train(config: PretrainConfig, environment: dict[str, str]) -> None:
    """Train, or go on, as the process that ``environment`` says; the main one leaves the weights of the end."""
    os.environ.update(environment)
    with open(f"{config.out}.log", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    try:
        with join_ranks("cpu", patience=30) as ranks, ExitStack() as held, StopRequest() as stop:
            folder = ranks.on_main(lambda: held.enter_context(open_run_folder(config)))
            run = _Watched(config, folder, ranks)
            run.resume()
            run.train(stop)
            whole = run.parallel.whole()
            if ranks.main:
                weights = {name: value.numpy() for name, value in whole.state_dict().items()}
                with open(folder / f".{WEIGHTS}", "wb") as file:
                    np.savez(file, **weights)
                os.replace(folder / f".{WEIGHTS}", folder / WEIGHTS)
    except LostRankError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(2) from error
