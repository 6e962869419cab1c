"""What only a device would say: that an index is out of range, and that a CUDA graph is being captured."""

from types import SimpleNamespace

import pytest
import torch

from dexcore import ops
from dexcore.kernels.group_ema import group_ema
from dexcore.ops import experts_triton


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    device = torch.device("cuda", 0)


def test_on_a_device_the_device_itself_checks_the_indices(monkeypatch):
    asserted = []
    monkeypatch.setattr(torch, "_assert_async", lambda *arguments: asserted.append(arguments))
    valid = torch.empty((), dtype=torch.int32, device="meta")  # not the CPU's: whoever reads it raises
    experts_triton._check_indices(SimpleNamespace(valid=valid, num_experts=4))
    ((tensor, message),) = asserted
    assert tensor is valid
    assert message == "indices must lie in 0..3 (w1 holds 4 experts)"


def test_a_table_of_addresses_is_not_built_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    director, experts = torch.zeros(3).as_subclass(OnGpu), torch.ones(2, 3).as_subclass(OnGpu)
    with pytest.raises(RuntimeError, match="before the capture"):
        group_ema([director], [experts], [torch.full((2,), 0.5)], 0.9)


def test_no_capture_is_looked_for_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: pytest.fail("asked"))
    director = torch.zeros(3)
    ops.group_ema_([director], [torch.ones(2, 3)], [torch.full((2,), 0.5)], 0.5, backend="triton")
    assert torch.equal(director, torch.full((3,), 0.5))
