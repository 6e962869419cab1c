"""What PyTorch is told of the ops, and what it tells: a compiled layer trains, an exported one infers."""

from typing import NamedTuple

import pytest
import torch

from dexcore.ops.library import ArgumentList, flatten, is_exporting


class Settings(NamedTuple):
    keep: str
    backend: str


class Call(NamedTuple):
    x: torch.Tensor
    settings: Settings
    needs: list[bool]


class Clash(NamedTuple):
    keep: str
    settings: Settings


def test_a_nested_named_tuple_stands_for_its_own_fields():
    arguments, call = ArgumentList(Call), Call(torch.zeros(2), Settings("z", "eager"), [True, False])
    assert arguments.types == {"x": torch.Tensor, "keep": str, "backend": str, "needs": list[bool]}
    flat = flatten(call)
    assert flat == [call.x, "z", "eager", [True, False]]
    assert arguments.nest(flat) == call
    assert arguments.place({"backend": 1, "x": 2}) == (2, None, 1, None)


def test_two_arguments_of_one_name_are_refused():
    with pytest.raises(TypeError, match=r"Clash has two arguments of one name: \['keep'\]"):
        ArgumentList(Clash)


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
