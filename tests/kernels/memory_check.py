"""What interpreted kernels do to memory: every address checked, every byte counted.

Inside `check_memory` each tensor argument of a launch gets an address range of its own, far from all others, so that
an access is known by the pointer it came from and cannot fall into a neighbour unseen. A launch fails if

- an active lane reads or writes outside the tensor whose pointer it used, or with another width than its elements';
- an element is written twice, by two programs or by one;
- an element is touched by one program and written by another: programs run in any order on a GPU;
- it uses an atomic: results would depend on that order;
- `tl.multiple_of` promises what is not so: compiled loads and stores would be too wide, past a tensor's end.

Lanes that are masked out do not count. A faulty lane is masked out too, so the process survives it.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

_NOBODY, _SEVERAL = -1, -2
_SHIFT = 48  # the bits above say which argument; offsets up to 2^47 bytes either way stay with it
_FIRST = 1 << 15  # the uppermost bit, which no address of the process has


@dataclass
class Traffic:
    """Bytes that a launch moved of one tensor: over all lanes, and counting each byte once."""

    issued_read: int = 0
    unique_read: int = 0
    issued_written: int = 0
    unique_written: int = 0

    @property
    def unique(self) -> int:
        """Read and written; a byte that is both counts twice."""
        return self.unique_read + self.unique_written


@dataclass
class Launch:
    """One launch of a kernel."""

    kernel: str
    grid: tuple[int, ...]
    traffic: dict[str, Traffic] = field(default_factory=dict)  # by the kernel's argument


class Memory:
    """The launches so far."""

    def __init__(self, reachable: tuple[Tensor, ...]) -> None:
        self.launches: list[Launch] = []
        self.reachable = reachable
        self._written: dict[int, Tensor] = {}  # storage -> flags, over all launches
        self._alive: list[Tensor] = []  # so that no address is used twice

    @property
    def unique_bytes(self) -> int:
        """Unique bytes read and written, summed over launches and tensors."""
        return sum(traffic.unique for launch in self.launches for traffic in launch.traffic.values())

    def assert_written(self, *tensors: Tensor) -> None:
        """Every element of these was written by some launch."""
        for i, tensor in enumerate(tensors):
            if tensor.numel() == 0:
                continue
            flags = self._written.get(_storage(tensor))
            assert flags is not None, f"output {i} {tuple(tensor.shape)} was never written"
            never = ~flags.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            assert not never.any(), (
                f"output {i} {tuple(tensor.shape)}: {int(never.sum())} elements never written, "
                f"first at {never.nonzero()[0].tolist()}"
            )

    def finish(self, launch: Launch, accounts: dict[int, "_Account"]) -> None:
        self.launches.append(launch)
        for key, account in accounts.items():
            launch.traffic[account.name] = account.traffic()
            self._alive.append(account.tensor)
            flags = torch.from_numpy(account.writer != _NOBODY)
            before = self._written.get(key)
            self._written[key] = flags if before is None else before | flags


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Account:
    """Who touched which element of a storage in this launch."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.tensor, self.itemsize = name, tensor, tensor.element_size()
        size = tensor.untyped_storage().nbytes() // self.itemsize
        self.reader = np.full(size, _NOBODY, np.int64)
        self.writer = np.full(size, _NOBODY, np.int64)
        self.issued_read = self.issued_written = 0

    def read(self, elements: np.ndarray, program: int) -> str | None:
        self.issued_read += elements.size * self.itemsize
        readers = self.reader[elements]
        self.reader[elements] = np.where((readers == _NOBODY) | (readers == program), program, _SEVERAL)
        writers = self.writer[elements]
        if ((writers != _NOBODY) & (writers != program)).any():
            return "read by one program, written by another"
        return None

    def write(self, elements: np.ndarray, program: int) -> str | None:
        self.issued_written += elements.size * self.itemsize
        twice = (self.writer[elements] != _NOBODY).any() or np.unique(elements).size < elements.size
        self.writer[elements] = program
        readers = self.reader[elements]
        if twice:
            return "written twice"
        if ((readers != _NOBODY) & (readers != program)).any():
            return "read by one program, written by another"
        return None

    def traffic(self) -> Traffic:
        return Traffic(
            self.issued_read,
            int((self.reader != _NOBODY).sum()) * self.itemsize,
            self.issued_written,
            int((self.writer != _NOBODY).sum()) * self.itemsize,
        )


@dataclass
class _Region:
    """The addresses that one argument may touch."""

    name: str
    tensor: Tensor
    base: int  # what the kernel sees as its first element

    @property
    def nbytes(self) -> int:
        shape, stride = self.tensor.shape, self.tensor.stride()
        if 0 in shape:
            return 0
        return (1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))) * self.tensor.element_size()


class _Watch:
    """One launch while it runs."""

    def __init__(self, names: dict[int, str], reachable: tuple[Tensor, ...]) -> None:
        self.names = names
        self.regions: list[_Region] = []
        self.real = [_Region(f"reachable[{i}]", tensor, tensor.data_ptr()) for i, tensor in enumerate(reachable)]
        self.accounts: dict[int, _Account] = {}
        self.faults: list[str] = []

    def add(self, tensor: Tensor) -> int:
        """The address that the kernel gets in the tensor's place, aligned as the real one."""
        index = len(self.regions)
        base = (_FIRST + index << _SHIFT) + (1 << _SHIFT - 1) + tensor.data_ptr() % 4096
        self.regions.append(_Region(self.names.get(tensor.data_ptr(), f"argument {index}"), tensor, base))
        return base

    def fault(self, what: str) -> None:
        self.faults.append(f"program {interpreter.interpreter_builder.grid_idx}: {what}")

    def access(self, pointers: Any, mask: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Real addresses, and the lanes that may touch them."""
        addresses = np.array(pointers.data, np.uint64)
        active = np.broadcast_to(np.asarray(mask, bool), addresses.shape).copy()
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        unknown = active.copy()
        for region, lanes in self._owners(addresses, active):
            unknown &= ~lanes
            offsets = (addresses[lanes] - np.uint64(region.base)).astype(np.int64)
            inside = (offsets >= 0) & (offsets + width <= region.nbytes)
            itemsize = region.tensor.element_size()
            if not inside.all():
                wrong = offsets[~inside]
                self.fault(
                    f"{kind} outside {region.name} {tuple(region.tensor.shape)}: {wrong.size} lanes, "
                    f"first at element {wrong[0] / itemsize:g}"
                )
            elif width != itemsize or (offsets % itemsize).any():
                self.fault(f"{kind} of {width} bytes in {region.name}, whose elements have {itemsize}")
                inside[:] = False
            else:
                first = region.tensor.storage_offset()
                account = self._account(region)
                program = int(np.ravel_multi_index(*self._place()))
                complaint = getattr(account, kind)(first + offsets // itemsize, program)
                if complaint:
                    self.fault(f"an element of {region.name} {tuple(region.tensor.shape)} is {complaint}")
            active[lanes] = inside
            addresses[lanes] = np.uint64(region.tensor.data_ptr()) + offsets.astype(np.uint64)
        if unknown.any():
            self.fault(f"{kind} through a pointer to no known tensor")
            active &= ~unknown
        return addresses, active

    def _place(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        builder = interpreter.interpreter_builder
        return builder.grid_idx, builder.grid_dim

    def _account(self, region: _Region) -> _Account:
        key = _storage(region.tensor)
        if key not in self.accounts:
            self.accounts[key] = _Account(region.name, region.tensor)
        account = self.accounts[key]
        assert account.itemsize == region.tensor.element_size(), f"{region.name} views {account.name} in another dtype"
        return account

    def _owners(self, addresses: np.ndarray, active: np.ndarray) -> Iterator[tuple[_Region, np.ndarray]]:
        indices = (addresses >> np.uint64(_SHIFT)).astype(np.int64) - _FIRST
        for index in np.unique(indices[active]):
            if 0 <= index < len(self.regions):
                yield self.regions[index], active & (indices == index)
        if (indices[active] < 0).any():
            for region in self.real:
                lanes = active & (addresses >= region.base) & (addresses < region.base + region.nbytes)
                if lanes.any():
                    yield region, lanes


def _named_tensors(name: str, argument: Any) -> Iterator[tuple[int, str]]:
    if isinstance(argument, tuple):
        for i, part in enumerate(argument):
            yield from _named_tensors(f"{name}[{i}]", part)
    elif isinstance(argument, interpreter.TensorDescriptor):
        yield from _named_tensors(name, argument.base)
    elif hasattr(argument, "data_ptr"):
        yield argument.data_ptr(), name


@contextmanager
def check_memory(*reachable: Tensor) -> Iterator[Memory]:
    """Check and count all interpreted launches; see the module.

    Args:
        reachable: tensors that kernels reach through pointers stored in memory, not as arguments.

    Raises:
        AssertionError: at a launch's end, naming its faults.
    """
    memory = Memory(reachable)
    watch: _Watch | None = None
    call, convert = interpreter.GridExecutor.__call__, interpreter._implicit_cvt
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    set_attribute = interpreter.TensorHandle.set_attr

    def checked_call(executor: Any, *arguments: Any, **settings: Any) -> None:
        nonlocal watch
        parameters = {k: v for k, v in settings.items() if k in executor.arg_names}
        named = inspect.getcallargs(executor.fn, *arguments, **parameters)
        names = dict(pair for name, value in named.items() for pair in _named_tensors(name, value))
        watch = _Watch(names, reachable)
        try:
            call(executor, *arguments, **settings)
        except Exception as error:
            if not watch.faults:
                raise
            watch.fault(f"then {error!r}")
        finally:
            finished, watch = watch, None
        kernel = executor.fn.__name__
        assert not finished.faults, f"{kernel}: {len(finished.faults)} faults\n" + "\n".join(finished.faults[:5])
        memory.finish(Launch(kernel, tuple(executor.grid)), finished.accounts)

    def checked_convert(argument: Any) -> Any:
        if watch is None or not hasattr(argument, "data_ptr"):
            return convert(argument)
        kind = tl.str_to_ty(triton.runtime.jit.mangle_type(argument), None)
        return tl.tensor(interpreter.TensorHandle(np.array([watch.add(argument)], np.uint64), kind), kind)

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **settings: Any) -> Any:
        addresses, active = watch.access(pointers, getattr(mask, "data", mask), "read")
        pointers = interpreter.TensorHandle(addresses, pointers.dtype)
        return load(self, pointers, interpreter.TensorHandle(active, tl.int1), *rest, **settings)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        addresses, active = watch.access(pointers, getattr(mask, "data", mask), "write")
        pointers = interpreter.TensorHandle(addresses, pointers.dtype)
        return store(self, pointers, value, interpreter.TensorHandle(active, tl.int1), *rest)

    def checked_attribute(self: Any, name: str, values: Any) -> None:
        if name == "tt.divisibility" and (np.asarray(self.data).astype(np.int64) % values[-1]).any():
            watch.fault(f"a promise that {np.asarray(self.data).ravel()[:4]} are multiples of {values[-1]}")
        set_attribute(self, name, values)

    def no_atomic(self: Any, *_: Any) -> None:
        watch.fault("an atomic operation")
        raise RuntimeError("not carried out")

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", checked_call),
        mock.patch.object(interpreter, "_implicit_cvt", checked_convert),
        mock.patch.object(builder, "create_masked_load", checked_load),
        mock.patch.object(builder, "create_masked_store", checked_store),
        mock.patch.object(interpreter.TensorHandle, "set_attr", checked_attribute),
        mock.patch.object(builder, "create_atomic_rmw", no_atomic),
        mock.patch.object(builder, "create_atomic_cas", no_atomic),
    ):
        yield memory
