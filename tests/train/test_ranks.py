"""Runs on one, two and three ranks, as torchrun starts them: the same samples, losses and weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import EXAMPLE, STEPS, ends, flags, free_port, metrics, start_ranks, state, tiny, wait_for_steps
from several_ranks import (
    BATCH,
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
from dexcore.engine.ranks import LostRankError, Ranks, environment_rank, join_ranks
from dexcore.engine.rendezvous import meet
from dexcore.engine.stop import EXIT_STOPPED
from dexcore.train.command import main
from dexcore.train.loop import Pretraining


@pytest.fixture(scope="module")
def one_rank(store, tmp_path_factory) -> Pretraining:
    return alone(shared_run(store, tmp_path_factory.mktemp("ranks") / "one"))


def test_two_ranks_are_one_run(store, one_rank, tmp_path):
    config = shared_run(store, tmp_path / "two")
    ranks = on_ranks(2, config, fresh=True)
    assert_same_run(config.out, one_rank.folder)
    assert_bit_identical(ranks)
    assert ranks[0]["all_reduces"] == 2 * FEW_STEPS
    for name, value in state(one_rank.model).items():
        if "director" in name or "frequency" in name:
            assert np.allclose(ranks[0][name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_three_ranks_are_one_run(store, one_rank, tmp_path):
    config = shared_run(store, tmp_path / "three")
    ranks = on_ranks(3, config)
    assert_same_run(config.out, one_rank.folder)
    assert_bit_identical(ranks)


def test_accumulated_parts_equal_the_large_batch(store, tmp_path):
    whole = alone(without_balance(shared_run(store, tmp_path / "whole")))
    parts = alone(without_balance(shared_run(store, tmp_path / "parts", accumulate=3)))
    assert_same_but_for_balance(parts.folder, whole.folder)
    for name, value in state(whole.model).items():
        if "director" in name or "frequency" in name:
            assert np.allclose(state(parts.model)[name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_ranks_that_accumulate_equal_the_large_batch(store, tmp_path):
    whole = alone(without_balance(shared_run(store, tmp_path / "whole")))
    config = without_balance(shared_run(store, tmp_path / "parts", accumulate=2))
    config = replace(config, model=replace(config.model, grad_checkpointing="selective"))
    ranks = on_ranks(2, config)
    assert ranks[0]["all_reduces"] == 3 * FEW_STEPS  # the balance loss is each part's own
    assert_same_but_for_balance(config.out, whole.folder)
    assert_bit_identical(ranks)


def test_a_batch_that_the_ranks_cannot_share_is_refused(store, tmp_path):
    config = shared_run(store, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.batch_size: expected a multiple of 5, the 5 processes times"):
        Pretraining(config, tmp_path, Ranks(rank=0, count=5, local_rank=0))
    config = replace(config, data=replace(config.data, accumulate=4))
    with pytest.raises(ConfigError, match=r"multiple of 8, .* data\.accumulate = 4, got 12"):
        Pretraining(config, tmp_path, Ranks(rank=0, count=2, local_rank=0))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_any_number_of_ranks_goes_on(store, tmp_path):
    whole = alone(shared_run(store, tmp_path / "whole", steps=STEPS))
    config = shared_run(store, tmp_path / "stopped", steps=STEPS)
    out = Path(config.out)
    for count, steps in ((2, 3), (3, 12)):
        processes = start_ranks(count, [str(EXAMPLE), *flags(config, tmp_path)])
        wait_for_steps(processes[0], out, steps)
        processes[1].send_signal(signal.SIGTERM)
        codes, printed, said = ends(processes)
        assert codes == [EXIT_STOPPED] * count, said
        done = len(metrics(out))
        assert steps <= done < STEPS
        assert f"a signal to another rank: stopped after step {done}; go on with --resume --out {out}" in said[0]
        assert [part for part in (*printed, *said[1:]) if part] == []
        newest = max((out / "checkpoints").glob("step-*"))
        assert newest.name == f"step-{done:08d}"
        assert sorted(entry.name for entry in newest.iterdir()) == [".metadata", "__0_0.distcp", "state.json"]
        config = replace(config, resume=True)
    alone(config)
    assert_same_run(out, whole.folder)


@pytest.mark.slow
def test_a_nan_on_one_rank_is_skipped_by_all_with_the_ids_of_all(store, one_rank, tmp_path):
    config = shared_run(store, tmp_path / "nan")
    ranks = on_ranks(3, config, "--poison", "1", "4")
    lines = metrics(config.out)
    assert [line["step"] for line in lines if line["skipped"]] == [4]
    assert len(lines) == FEW_STEPS
    assert all(np.isfinite(line["loss"]) for line in lines if not line["skipped"])
    assert_bit_identical(ranks)
    (skipped,) = [json.loads(line) for line in (Path(config.out) / "skipped.jsonl").read_text().splitlines()]
    keys = one_rank.order
    places = range(4 * BATCH, 5 * BATCH)
    expected = [int(one_rank.rows[keys.epoch(p // keys.epoch_size)[p % keys.epoch_size]]) for p in places]
    assert skipped == {"step": 4, "sample_ids": expected}


@pytest.mark.slow
def test_the_example_under_torchrun_speaks_once_and_says_how_to_repeat_it(store, tmp_path):
    config = shared_run(store, tmp_path / "run", steps=3)
    command = ["--nproc-per-node", "2", str(EXAMPLE), *flags(config, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Share of masked-patch variance explained") == 1
    assert done.stderr.count("step 3/3") == 1
    assert (tmp_path / "run" / "report.html").is_file()
    again = f"torchrun --nproc-per-node 2 {EXAMPLE} --config {config.out}/config.yaml --out {config.out}-again"
    assert f"Repeat it with  {again}" in done.stdout
    (start,) = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert start["machine"]["processes"] == 2
    assert start["command"].startswith("torchrun --nproc-per-node 2 ")


@pytest.mark.slow
def test_ranks_whose_folder_is_taken_leave_with_one_message(store, tmp_path):
    config = shared_run(store, tmp_path / "run")
    Path(config.out).mkdir()
    (Path(config.out) / "thesis.tex").write_text("years of work")
    codes, _, said = ends(start_ranks(2, [str(EXAMPLE), *flags(config, tmp_path)]))
    assert codes == [2, 2]
    assert said[0].startswith("error: out: ")
    assert said[1] == ""


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_others_along_with_a_clear_error(store, tmp_path):
    config = shared_run(store, tmp_path / "run", steps=500)
    processes = start_ranks(2, [str(EXAMPLE), *flags(config, tmp_path)])
    wait_for_steps(processes[0], Path(config.out), 6)
    processes[1].kill()
    began = time.monotonic()
    codes, _, said = ends(processes)
    assert time.monotonic() - began < 60
    assert codes[0] == 2, said
    assert "error: another rank has ended" in said[0]
    assert "Traceback" not in said[0]


def test_one_process_gathers_nothing():
    vector = torch.arange(3.0)
    assert Ranks().gather(vector) is vector
    assert Ranks().on_main(lambda: "done") == "done"


_TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"WORLD_SIZE": ""}, r"WORLD_SIZE must be a whole number in 1\.\..*got ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be .*got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be .*got '0'"),
        ({"RANK": None, "MASTER_ADDR": None, "MASTER_PORT": None}, "RANK and MASTER_ADDR and MASTER_PORT are not set"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE=2 .* MASTER_ADDR is not set"),
        ({"RANK": "2"}, r"RANK must be a whole number in 0\.\.1, .*got '2'"),
        ({"RANK": "-1"}, r"RANK must be .*got '-1'"),
        ({"RANK": "first"}, "RANK must be .*got 'first'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK must be .*got ''"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK must be .*got '2'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be .*got 'http'"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT must be .*got '65536'"),
    ],
)
def test_an_environment_that_torchrun_does_not_make_is_refused_by_name(
    store, tmp_path, monkeypatch, capsys, changed, words
):
    for name, value in {**_TWO, **changed}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words), join_ranks("cpu", patience=1):
        pass
    monkeypatch.setenv("RANK", "0") if "LOCAL_RANK" in changed else None
    assert main(flags(tiny(store, tmp_path / "run"), tmp_path)) == 2
    assert not (tmp_path / "run").exists()


def test_an_environment_for_one_process_needs_no_other_variable(monkeypatch):
    for name in _TWO:
        monkeypatch.delenv(name, raising=False)
    assert environment_rank() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert environment_rank() == (0, 1)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rendezvous_that_nobody_answers_says_so_and_ends(monkeypatch, capfd, rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {**_TWO, "RANK": rank, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(LostRankError, match=rf"rank {rank} did not meet .* 127\.0\.0\.1:{port} within 4 s"):
        join_ranks("cpu", patience=4).__enter__()
    assert time.monotonic() - began < 60
    assert f"rank {rank} waits for the other 1 of 2 processes" in capfd.readouterr().err


def test_a_rank_that_ends_between_the_meeting_and_its_connections_is_waited_for_no_longer(monkeypatch):
    for name, value in {**_TWO, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as other:
        other.submit(meet, 1, 2, timedelta(seconds=60))
        with pytest.raises(LostRankError, match="another rank has ended"):
            join_ranks("cpu", patience=4).__enter__()
    assert time.monotonic() - began < 60
