"""A store, made once; on one thread."""

import pytest
from runs import one_thread, write_images


@pytest.fixture(scope="module", autouse=True)
def _fast():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "store")


@pytest.fixture(autouse=True)
def _counts_no_longer():
    from made_models import Counted  # not above: where only the core is installed, it cannot be imported

    yield
    while Counted.hooks:
        Counted.hooks.pop().remove()
