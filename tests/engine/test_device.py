"""Device and precision."""

import pytest
import torch

from dexcore.engine.config import ConfigError
from dexcore.engine.device import choose_device

_CPU = torch.device("cpu")


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(ConfigError, match=r"^device: expected auto or a device that is here, got 'quantum'"):
        choose_device("quantum")


@pytest.mark.parametrize("name", ["meta", "privateuseone", "fpga"])
def test_a_device_that_pytorch_names_but_that_cannot_compute_is_refused_in_a_line(name):
    with pytest.raises(ConfigError, match=rf"^device: expected auto or a device that is here, got '{name}'") as told:
        choose_device(name)
    assert len(str(told.value)) < 300


def test_auto_is_a_device_that_works():
    torch.zeros(1, device=choose_device("auto"))
    assert choose_device("cpu") == _CPU


def test_processes_on_one_machine_get_a_device_each():
    assert choose_device("cpu", local_rank=3) == _CPU
    with pytest.raises(ConfigError, match=r"expected auto, cpu or cuda where several processes .* got 'cuda:1'"):
        choose_device("cuda:1", local_rank=0)
    with pytest.raises(ConfigError, match=r"'cuda' for process 77 of this machine"):
        choose_device("cuda", local_rank=77)
