"""Memory that an op forgets to write holds NaN."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _nan_filled_memory():
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory too
    yield
    torch.use_deterministic_algorithms(False)
