"""What Python code asks of a device, counted under the interpreter: our launches, and ATen calls."""

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_ROOM = {"detach_", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}  # no kernel


class Calls(TorchDispatchMode):
    """The ATen calls that read or write more than ``limit`` elements of one tensor, those inside dexcore's ops too."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.names = limit, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op.namespace == "dexcore":
            with self:
                return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        results = op(*args, **kwargs)
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs, results)) if torch.is_tensor(leaf)]
        name = op._schema.name.removeprefix("aten::")
        if not op.is_view and name not in _ROOM and max((t.numel() for t in tensors), default=0) > self.limit:
            self.names.append(name)
        return results


def note_launches(monkeypatch, run=True):
    """A list that gets the name of every kernel launched, in order, by what of `dexcore.kernels` is imported.

    Without ``run`` none is: outputs are as they were allocated.
    """
    names = []

    def wrapped(launch):
        def note(kernel, grid, *arguments, **settings):
            if 0 not in grid:
                names.append(kernel.fn.__name__)
            with _disable_current_modes():  # the interpreter calls ATen too
                if run:
                    launch(kernel, grid, *arguments, **settings)

        return note

    for name, module in list(sys.modules.items()):
        if name.startswith("dexcore.kernels.") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", wrapped(module.launch))
    return names
