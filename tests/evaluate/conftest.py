"""A store, made once; on one thread: tensors this small only make two wait."""

import pytest
import torch
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
    from made_models import Counted  # not above: where only the core is installed, it cannot be imported

    yield
    while Counted.hooks:
        Counted.hooks.pop().remove()
