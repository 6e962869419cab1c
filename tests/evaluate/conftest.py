"""A store, made once; on one thread: tensors this small only make two wait."""

import pytest
import torch
from made_models import Counted
from runs import write_images


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def store(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "store")


@pytest.fixture(autouse=True)
def _counts_no_longer():
    yield
    while Counted.hooks:
        Counted.hooks.pop().remove()
