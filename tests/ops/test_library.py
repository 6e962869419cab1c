"""What PyTorch is told of the ops, and what it tells: a compiled layer trains, an exported one infers."""

import pytest
import torch

from dexcore.ops.library import is_exporting


class SaysWhoTraces(torch.nn.Module):
    def forward(self, x):
        return x + 1 if is_exporting() else x


def test_a_compiled_module_is_not_taken_for_an_exported_one():
    x = torch.zeros(2)
    compiled = torch.compile(SaysWhoTraces(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), x)
    assert not is_exporting()


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_module_is_known_as_such(strict):
    x = torch.zeros(2)
    program = torch.export.export(SaysWhoTraces(), (x,), strict=strict)
    assert torch.equal(program.module()(x), x + 1)
