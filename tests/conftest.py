"""Shared by all tests: offline, deterministic, two threads."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(2)
settings.register_profile("dexcore", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("dexcore")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
