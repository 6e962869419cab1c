"""A store and one uninterrupted run, made once; on one thread: tensors this small only make two wait."""

import pytest
import torch
from runs import tiny, write_images

from dexcore.report import pictures
from dexcore.train import PretrainConfig, pretrain


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", autouse=True)
def _coarse_pictures():
    """Else the drawing of a report takes longer than all that a run does before. tests/report looks at pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_DPI", 20)
        patch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)
        yield


@pytest.fixture(scope="package")
def store(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "store")


@pytest.fixture(scope="package")
def whole_run(store, tmp_path_factory) -> PretrainConfig:
    config = tiny(store, tmp_path_factory.mktemp("runs") / "whole")
    assert pretrain(config).finished
    return config
