"""A build on a Dask cluster of real processes."""

import os
import signal
import threading
import time

import pytest
from made_clusters import dask_cluster, running_workers
from made_folders import write_picture, write_series

from dexcore.cli import main
from dexcore.data import build_store, open_mvu
from dexcore.data.assemble import plan
from dexcore.data.assemble.cluster import cluster

pytestmark = pytest.mark.slow  # a cluster takes seconds to begin


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    root = tmp_path / "scans"
    write_series(root / "ct", slices=4)
    for index in range(60):
        write_picture(root / "xray" / f"{index:03d}.png", shape=(300, 320), seed=index)
    (root / "xray" / "dataset.yaml").write_text("modality: X-ray\n")
    return root


@pytest.fixture
def local():
    with dask_cluster() as cluster:
        yield cluster


def test_a_cluster_builds_the_store_that_one_process_builds(folder, tmp_path, local, capsys):
    expected = build_store(folder, tmp_path / "here", jobs=1).fingerprint
    assert main(["mvu", "build", str(folder), "--out", str(tmp_path / "there"), "--dask", local.scheduler_address]) == 0
    assert expected in capsys.readouterr().out


def test_a_worker_that_is_killed_half_way_costs_nothing(folder, tmp_path, monkeypatch, local):
    monkeypatch.setattr(plan, "_FILES_A_TASK", 2)  # 30 tasks and more
    expected = build_store(folder, tmp_path / "here", jobs=1).fingerprint
    first, _ = running_workers(local)
    ended = threading.Event()
    killed = []

    def kill():
        while not ended.is_set():
            if len(list((tmp_path / "there").glob(".building-*/*/task-*.json"))) >= 5:
                os.kill(first, signal.SIGKILL)
                killed.append(first)
                return
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with cluster(local.scheduler_address) as (executor, jobs):
            manifest = build_store(folder, tmp_path / "there", executor=executor, jobs=jobs)
    finally:
        ended.set()
        killer.join()
    assert killed == [first]
    assert manifest.fingerprint == expected
    assert len(open_mvu(tmp_path / "there")) == 64


def test_a_scheduler_that_is_not_there_is_told_in_a_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dexcore.data.assemble.cluster._SECONDS", 2)
    code = main(["mvu", "build", str(folder), "--out", str(tmp_path / "store"), "--dask", "tcp://127.0.0.1:1"])
    assert code == 2
    assert "no scheduler of Dask answers there" in capsys.readouterr().err
