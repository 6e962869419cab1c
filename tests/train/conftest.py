"""A store and one uninterrupted run, made once; on one thread."""

from contextlib import contextmanager

import pytest
from runs import one_thread, tiny, write_images

from dexcore.report import pictures
from dexcore.train import PretrainConfig, pretrain


@contextmanager
def coarse_pictures():
    """Else the drawing of a report takes longer than all that a run does before. tests/report looks at pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_DPI", 20)
        patch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)
        yield


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
