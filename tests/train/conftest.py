"""A store and one uninterrupted run, made once; on one thread."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import coarse_pictures, one_thread, pages_without_pictures, tiny, write_images

from dexcore.train import PretrainConfig, pretrain


# Not "package": where a folder of tests is no package, that lasts to the end of all tests.
@pytest.fixture(scope="module", autouse=True)
def _fast(request):
    looks = getattr(request.module, "LOOKS_AT_PAGES", False)
    with one_thread(), coarse_pictures() if looks else pages_without_pictures():
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "store")


@pytest.fixture(scope="session")
def _whole_run(store, tmp_path_factory) -> PretrainConfig:
    config = tiny(store, tmp_path_factory.mktemp("runs") / "whole")
    with one_thread(), coarse_pictures():
        assert pretrain(config).finished
    return config


@pytest.fixture
def whole_run(_whole_run):
    """A finished run that every test shares: it is read, and what it holds is the same afterwards."""
    before = _written(_whole_run)
    yield _whole_run
    assert _written(_whole_run) == before, "the shared run was written to: take `own_run`"


@pytest.fixture
def own_run(whole_run, tmp_path) -> PretrainConfig:
    """A copy of the finished run, to be resumed."""
    shutil.copytree(whole_run.out, tmp_path / "run")
    return replace(whole_run, out=str(tmp_path / "run"), resume=True)


def _written(config: PretrainConfig) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}
