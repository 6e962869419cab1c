"""A store and one uninterrupted run, made once; on one thread."""

import pytest
from runs import coarse_pictures, one_thread, tiny, write_images

from dexcore.train import PretrainConfig, pretrain


# Not "package": where a folder of tests is no package, that lasts to the end of all tests.
@pytest.fixture(scope="module", autouse=True)
def _fast():
    with one_thread(), coarse_pictures():
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "store")


@pytest.fixture(scope="session")
def whole_run(store, tmp_path_factory) -> PretrainConfig:
    config = tiny(store, tmp_path_factory.mktemp("runs") / "whole")
    with one_thread(), coarse_pictures():
        assert pretrain(config).finished
    return config
